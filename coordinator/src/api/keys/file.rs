//! The file that keys are kept in, a line of JSON each, for its owner alone to read.

use super::{KeyError, Keys};
use protocol::keyfile;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile(PathBuf);

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is none.
    #[error(
        "there are no keys in {}: make one with `coordinator key new NAME --file {}`",
        .0.display(),
        .0.display()
    )]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is in it makes no sense.
    #[error("{}: {cause}", path.display())]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        cause: KeyError,
    },
}

/// One version of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64, i64, i64);

impl KeyFile {
    /// The one at `path`.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The keys in it.
    ///
    /// # Errors
    /// If it is not there, others can read it, or it makes no sense.
    pub fn read(&self) -> Result<Keys, KeyFileError> {
        let text = keyfile::read(&self.0).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KeyFileError::Missing(self.0.clone()),
            _ => error.into(),
        })?;
        let damaged = |cause| KeyFileError::Damaged { path: self.0.clone(), cause };
        Keys::parse(&text).map_err(damaged)
    }

    /// Changes the keys, one process at a time. A file that is not there is made.
    ///
    /// # Errors
    /// If it cannot be read or written; what `change` gives is given whatever it is.
    pub fn change<T>(&self, change: impl FnOnce(&mut Keys) -> T) -> Result<T, KeyFileError> {
        if let Some(folder) = self.0.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            keyfile::make_folder(folder)?;
        }
        let mut lock = self.0.clone().into_os_string();
        lock.push(".lock");
        let lock = File::create(lock)?;
        lock.lock()?;
        let before = if self.0.try_exists()? { self.read()? } else { Keys::default() };
        let mut keys = before.clone();
        let given = change(&mut keys);
        if keys != before {
            keyfile::write(&self.0, &keys.text())?;
        }
        Ok(given)
    }

    /// Which version is there; None while there is none.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        let about = fs::metadata(&self.0).ok()?;
        Some(Stamp(about.ino(), about.mtime(), about.mtime_nsec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::keys::KeyLimits;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_private_and_a_change_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile::at(&folder.path().join("a/keys"));
        assert_eq!(file.stamp(), None);
        let missing = file.read().unwrap_err().to_string();
        assert!(missing.contains("coordinator key new NAME --file"), "{missing}");
        let shown =
            file.change(|keys| keys.make("alice", KeyLimits::default(), 1)).unwrap().unwrap();
        let before = file.stamp();
        assert!(before.is_some());
        assert!(file.read().unwrap().find(&shown).is_some());
        assert!(file.change(|keys| keys.revoke("alice")).unwrap());
        assert_ne!(file.stamp(), before);
        assert!(file.read().unwrap().find(&shown).is_none());
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(file.read().unwrap_err().to_string().contains("chmod 600"));
    }
}
