//! Checkpoint configurations, read strictly: every key is used, known to change nothing at the
//! value it has, or refused by name.

use super::{Error, Result};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// The largest integer that is taken. Of the models that are read only CLIP's vocabulary comes near it, and
/// what is computed from sizes fits 64 bits up to it, if there are no more blocks than [`BLOCKS_MAX`].
const INTEGER_MAX: usize = 1 << 16;

/// The most resolutions of a network: known ones have three or four.
pub const BLOCKS_MAX: usize = 8;

/// One configuration file and which of its keys have been looked at.
#[derive(Debug)]
pub struct Config {
    file: String,
    values: Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Parses the JSON object in `bytes`; `file` is its name in errors.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let values = serde_json::from_slice(bytes)
            .map_err(|error| Error::Checkpoint(format!("{file} is not a JSON object: {error}")))?;
        Ok(Self { file: file.to_owned(), values, seen: RefCell::default() })
    }

    /// The file's name in errors.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value at `key`; a missing key and `null` are the same.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.seen.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The refusal of `key`'s value, naming what is supported.
    #[must_use]
    pub fn refuse(&self, key: &str, supported: &str) -> Error {
        let value =
            self.values.get(key).map_or_else(|| "missing".to_owned(), |value| format!("`{value}`"));
        Error::Checkpoint(format!("{}: `{key}` is {value}; supported: {supported}", self.file))
    }

    /// The positive integer at `key`.
    ///
    /// # Errors
    /// If it is missing or not one.
    pub fn positive(&self, key: &str) -> Result<usize> {
        self.positive_or(key, 0)
    }

    /// The positive integer at `key`, or `default` (0: there is none).
    ///
    /// # Errors
    /// If it is not a positive integer.
    pub fn positive_or(&self, key: &str, default: usize) -> Result<usize> {
        let value = match self.get(key) {
            None => default,
            Some(value) => as_positive(value).unwrap_or(0),
        };
        if value == 0 { Err(self.refuse(key, &positives("a positive integer"))) } else { Ok(value) }
    }

    /// The number at `key`, or `default`.
    ///
    /// # Errors
    /// If it is not a number.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.refuse(key, "a number")),
        }
    }

    /// The truth value at `key`, or `default`.
    ///
    /// # Errors
    /// If it is not a truth value.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(key, "true, false")),
        }
    }

    /// The text at `key`, if it is there.
    ///
    /// # Errors
    /// If it is not a text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.refuse(key, "a text")),
        }
    }

    /// The list of texts at `key`.
    ///
    /// # Errors
    /// If it is missing or not one.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let list = self.get(key).and_then(Value::as_array);
        list.and_then(|list| list.iter().map(Value::as_str).collect())
            .ok_or_else(|| self.refuse(key, "a list of texts"))
    }

    /// The list of positive integers at `key`.
    ///
    /// # Errors
    /// If it is missing, empty, or not one.
    pub fn positives(&self, key: &str) -> Result<Vec<usize>> {
        let list = self.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
        list.and_then(|list| list.iter().map(as_positive).collect())
            .ok_or_else(|| self.refuse(key, &positives("a list of positive integers")))
    }

    /// The channels of each of a network's resolutions at `key`.
    ///
    /// # Errors
    /// If it is missing, empty, longer than [`BLOCKS_MAX`], or no list of positive integers.
    pub fn blocks(&self, key: &str) -> Result<Vec<usize>> {
        let blocks = self.positives(key)?;
        if blocks.len() > BLOCKS_MAX {
            let supported = format!("a list of up to {BLOCKS_MAX} positive integers");
            return Err(self.refuse(key, &supported));
        }
        Ok(blocks)
    }

    /// The positive integers at `key`, one for each of `blocks` blocks: a list, or one for all.
    ///
    /// # Errors
    /// If it is missing, not that, or of another length.
    pub fn per_block(&self, key: &str, blocks: usize) -> Result<Vec<usize>> {
        let list: Option<Vec<usize>> = match self.get(key) {
            Some(Value::Array(list)) => list.iter().map(as_positive).collect(),
            Some(value) => as_positive(value).map(|value| vec![value; blocks]),
            None => None,
        };
        list.filter(|list| list.len() == blocks).ok_or_else(|| {
            let list = format!("a positive integer, or a list of {blocks} of them,");
            self.refuse(key, &positives(&list))
        })
    }

    /// Checks that `key` is missing, null, or one of `supported`.
    ///
    /// # Errors
    /// The refusal of any other value.
    pub fn only(&self, key: &str, supported: &[Value]) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(value) if supported.iter().any(|known| same(known, value)) => Ok(()),
            Some(_) if supported.is_empty() => Err(self.refuse(key, "null")),
            Some(_) => {
                let names: Vec<String> = supported.iter().map(Value::to_string).collect();
                Err(self.refuse(key, &names.join(", ")))
            }
        }
    }

    /// Marks keys that change nothing for us at any value.
    pub fn inert(&self, keys: &[&str]) {
        self.seen.borrow_mut().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Checks that every key was looked at. Keys from newer software that are switched off (null
    /// or false) and notes to self (`_...`) pass.
    ///
    /// # Errors
    /// Names the first key that nothing here understands.
    pub fn finish(&self) -> Result<()> {
        let seen = self.seen.borrow();
        let strange = self.values.iter().find(|(key, value)| {
            let off = value.is_null() || **value == Value::Bool(false);
            !off && !key.starts_with('_') && !seen.contains(*key)
        });
        strange.map_or(Ok(()), |(key, _)| Err(self.refuse(key, "null (the key is unknown here)")))
    }
}

fn as_positive(value: &Value) -> Option<usize> {
    let value = usize::try_from(value.as_u64()?).ok()?;
    (1..=INTEGER_MAX).contains(&value).then_some(value)
}

fn positives(what: &str) -> String {
    format!("{what} up to {INTEGER_MAX}")
}

/// Equality in which 1 and 1.0 are the same.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => (one - other).abs() < f64::EPSILON,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("unet/config.json", text.as_bytes()).unwrap()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_value() {
        let config = config(r#"{"_note": 1, "off": false, "gone": null, "frobnicate": 3}"#);
        let refusal = config.finish().unwrap_err().to_string();
        assert_eq!(
            refusal,
            "unet/config.json: `frobnicate` is `3`; supported: null (the key is unknown here)"
        );
    }

    #[test]
    fn an_unsupported_value_names_what_is_supported() {
        let config = config(r#"{"act_fn": "mish"}"#);
        let refusal = config.only("act_fn", &["silu".into(), "swish".into()]).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            r#"unet/config.json: `act_fn` is `"mish"`; supported: "silu", "swish""#
        );
    }

    #[test]
    fn per_block_takes_one_for_all_or_a_list_of_the_right_length() {
        let config = config(r#"{"one": 4, "all": [1, 2, 3], "short": [1, 2]}"#);
        assert_eq!(config.per_block("one", 3).unwrap(), [4, 4, 4]);
        assert_eq!(config.per_block("all", 3).unwrap(), [1, 2, 3]);
        assert!(config.per_block("short", 3).is_err());
    }

    #[test]
    fn sizes_that_no_model_has_are_refused() {
        let config = config(r#"{"most": 65536, "more": 65537, "deep": [1,2,3,4,5,6,7,8,9]}"#);
        assert_eq!(config.positive("most").unwrap(), INTEGER_MAX);
        let refusal = config.positive("more").unwrap_err().to_string();
        assert!(refusal.ends_with("`more` is `65537`; supported: a positive integer up to 65536"));
        assert!(config.positives("deep").is_ok() && config.blocks("deep").is_err());
    }
}
