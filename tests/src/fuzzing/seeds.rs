//! What fuzzers start from: real messages, and the files of the checkpoints that tests have.

mod files;
mod given;
mod messages;

use super::folder;
use std::fs;

/// One input to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The target's name.
    pub target: &'static str,
    /// Its own, which is its file's.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

impl Seed {
    fn new(target: &'static str, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { target, name: name.into(), bytes: bytes.into() }
    }
}

/// Every seed. Those of `identity` hold keys, which nobody can make twice: they stay as they are once
/// they are there.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut seeds = messages::all();
    seeds.extend(files::all());
    seeds.extend(given::all());
    if !folder("corpus", "identity").exists() {
        seeds.extend(files::identities());
    }
    seeds
}

impl Seed {
    /// Whether its file is there and holds it.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        let file = folder("corpus", self.target).join(&self.name);
        fs::read(file).is_ok_and(|bytes| bytes == self.bytes)
    }

    /// Writes its file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self) -> std::io::Result<()> {
        let folder = folder("corpus", self.target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(&self.name), &self.bytes)
    }
}
