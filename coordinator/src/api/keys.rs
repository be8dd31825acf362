//! API keys: who may call, and how much of what. The file has hashes only.

mod file;
mod rate;

pub use file::{KeyFile, KeyFileError};
pub(crate) use rate::Rates;

use blake3::Hash;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// What every key begins with, so that people and scanners of secrets know what they found.
const PREFIX: &str = "tessera-";
/// Bytes of a key that nobody can guess.
const SECRET_BYTES: usize = 32;
/// The most letters of a key's name: it is shown as the owner of jobs.
const NAME_LETTERS_MAX: usize = 64;

/// One key, as the file has it: a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Whose it is: the owner of the jobs that are submitted with it.
    pub name: String,
    /// Hex blake3 of the key.
    hash: String,
    /// When it was made, in unix seconds.
    pub made: u64,
    /// How many of its jobs may wait at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<usize>,
    /// The most pixels of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<u64>,
    /// The most sampler steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// How many jobs may be submitted with it in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
}

/// Why a key cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A line of the file is none.
    #[error("line {line}: {cause}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
    /// The name is one that no owner of jobs has.
    #[error(
        "`{0}` is no name of a key: take 1 to {NAME_LETTERS_MAX} letters, digits, dots, dashes and \
         underscores, and not `local`, whose jobs are those of commands on this machine"
    )]
    Name(String),
    /// There is one of that name.
    #[error("there is a key `{0}` already: revoke it first, or take another name")]
    Exists(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

impl Key {
    /// A key without limits, made by [`Keys::make`].
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        let hash = blake3::hash(name.as_bytes()).to_hex().to_string();
        let name = name.to_owned();
        Self { name, hash, made: 0, waiting: None, pixels: None, steps: None, per_minute: None }
    }
}

/// What a key may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// As [`Key::waiting`].
    pub waiting: Option<usize>,
    /// As [`Key::pixels`].
    pub pixels: Option<u64>,
    /// As [`Key::steps`].
    pub steps: Option<u32>,
    /// As [`Key::per_minute`].
    pub per_minute: Option<u32>,
}

/// All keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    keys: Vec<(Key, Hash)>,
}

impl Keys {
    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// If a line is none of a key, or two have one name.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys = Self::default();
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let wrong = |cause: String| KeyError::Line { line, cause };
            let key: Key = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
            let hash = Hash::from_hex(&key.hash).map_err(|error| wrong(error.to_string()))?;
            keys.check_name(&key.name).map_err(|error| wrong(error.to_string()))?;
            keys.keys.push((key, hash));
        }
        Ok(keys)
    }

    /// All keys, a line each.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.keys.iter().filter_map(|(key, _)| serde_json::to_string(key).ok());
        lines.map(|line| line + "\n").collect()
    }

    /// Every key, in the order in which they were made.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().map(|(key, _)| key)
    }

    /// Makes a key and gives it: it is not kept, and cannot be shown again.
    ///
    /// # Errors
    /// If there is one of this name, or the system gives no random numbers.
    pub fn make(&mut self, name: &str, limits: KeyLimits, now: u64) -> Result<String, KeyError> {
        self.check_name(name)?;
        let secret = protocol::identity::random::<SECRET_BYTES>();
        let secret = secret.map_err(|_| KeyError::NoRandomness)?;
        let mut text = PREFIX.to_owned();
        for byte in secret {
            write!(text, "{byte:02x}").ok(); // a string takes everything
        }
        let hash = blake3::hash(text.as_bytes());
        let KeyLimits { waiting, pixels, steps, per_minute } = limits;
        let (name, hex) = (name.to_owned(), hash.to_hex().to_string());
        let key = Key { name, hash: hex, made: now, waiting, pixels, steps, per_minute };
        self.keys.push((key, hash));
        Ok(text)
    }

    fn check_name(&self, name: &str) -> Result<(), KeyError> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let fits = (1..=NAME_LETTERS_MAX).contains(&name.len()) && name.chars().all(plain);
        if !fits || name == super::LOCAL {
            return Err(KeyError::Name(name.to_owned()));
        }
        if self.iter().any(|key| key.name == name) {
            return Err(KeyError::Exists(name.to_owned()));
        }
        Ok(())
    }

    /// Takes a key out; false if there is none of this name.
    pub fn revoke(&mut self, name: &str) -> bool {
        let before = self.keys.len();
        self.keys.retain(|(key, _)| key.name != name);
        self.keys.len() < before
    }

    /// The key that was shown. Takes the same time whichever it is, and whether it is one: hashes of what is shown are compared,
    /// each as a whole.
    pub(crate) fn find(&self, shown: &str) -> Option<&Key> {
        let shown = blake3::hash(shown.as_bytes());
        let each = self.keys.iter().enumerate();
        let at =
            each.fold(None, |at, (next, (_, hash))| if *hash == shown { Some(next) } else { at });
        self.keys.get(at?).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_what_was_printed_once_and_kept_as_a_hash() {
        let mut keys = Keys::default();
        let limits = KeyLimits { waiting: Some(3), ..KeyLimits::default() };
        let alice = keys.make("alice", limits, 7).unwrap();
        let bob = keys.make("bob", KeyLimits::default(), 8).unwrap();
        assert_eq!(alice.len(), PREFIX.len() + 64);
        assert_ne!(alice, bob);
        let text = keys.text();
        assert!(!text.contains(&alice[PREFIX.len()..]), "{text}");
        let read = Keys::parse(&text).unwrap();
        assert_eq!(read, keys);
        assert_eq!(
            read.find(&alice).map(|key| (&*key.name, key.waiting)),
            Some(("alice", Some(3)))
        );
        assert_eq!(read.find(&bob).map(|key| &*key.name), Some("bob"));
        for wrong in ["", "tessera-", &alice[1..], &alice[..alice.len() - 1], &alice.to_uppercase()]
        {
            assert_eq!(read.find(wrong), None, "{wrong}");
        }
        assert!(keys.revoke("alice") && !keys.revoke("alice"));
        assert_eq!(keys.find(&alice), None);
    }

    #[test]
    fn names_are_owners_and_there_is_one_key_of_each() {
        let mut keys = Keys::default();
        keys.make("ci.runner-2_a", KeyLimits::default(), 0).unwrap();
        let again = keys.make("ci.runner-2_a", KeyLimits::default(), 0);
        assert_eq!(again, Err(KeyError::Exists("ci.runner-2_a".to_owned())));
        for wrong in ["", "local", "a b", "a\n", "\u{e9}", &"a".repeat(65)] {
            assert!(matches!(keys.make(wrong, KeyLimits::default(), 0), Err(KeyError::Name(_))));
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let mut keys = Keys::default();
        keys.make("alice", KeyLimits::default(), 0).unwrap();
        let good = keys.text();
        for bad in [
            "{}",
            "x",
            &good,
            &good.replace("\"made\"", "\"mode\""),
            &good.replace("alice", "local"),
        ] {
            let error = Keys::parse(&format!("{good}\n{bad}")).unwrap_err().to_string();
            assert!(error.starts_with("line 3: "), "{error}");
        }
    }
}
