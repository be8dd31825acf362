//! A file in a shared folder, by which processes that were started together find the coordinator of one of them.

use protocol::identity::{Token, TokenFormatError};
use protocol::keyfile;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What it is called.
const FILE: &str = "coordinator";

/// Where the coordinator is, and what lets workers in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendezvous {
    /// Its HOST:PORT.
    pub(crate) address: String,
    /// For all workers but the coordinator's own.
    pub(crate) token: Token,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RendezvousError {
    /// The folder cannot be used.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is something else.
    #[error("{}: {cause}", path.display())]
    Senseless {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        cause: TokenFormatError,
    },
}

impl Rendezvous {
    /// Tells the others, who have the same user and folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn publish(&self, folder: &Path) -> Result<(), RendezvousError> {
        keyfile::make_folder(folder)?;
        let text = format!("{}\n{}\n", self.address, self.token);
        Ok(keyfile::write(&folder.join(FILE), &text)?)
    }

    /// What is told in this folder; None while nothing is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>, RendezvousError> {
        let path = folder.join(FILE);
        if !path.try_exists()? {
            return Ok(None);
        }
        let text = match keyfile::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let (address, token) = text.split_once('\n').unwrap_or_default();
        let token = token.parse().map_err(|cause| RendezvousError::Senseless { path, cause })?;
        Ok(Some(Self { address: address.to_owned(), token }))
    }

    /// Tells the others that it is over.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn withdraw(folder: &Path) -> Result<(), RendezvousError> {
        match fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_tells_the_others_find_until_it_is_over() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("run/7");
        assert_eq!(Rendezvous::find(&folder).unwrap(), None);
        let token = ("tessera1.".to_owned() + &"00".repeat(61)).parse().unwrap();
        let told = Rendezvous { address: "node1:7411".to_owned(), token };
        told.publish(&folder).unwrap();
        assert_eq!(Rendezvous::find(&folder).unwrap(), Some(told));
        Rendezvous::withdraw(&folder).unwrap();
        Rendezvous::withdraw(&folder).unwrap();
        assert_eq!(Rendezvous::find(&folder).unwrap(), None);
        keyfile::write(&folder.join(FILE), "x").unwrap();
        assert!(Rendezvous::find(&folder).unwrap_err().to_string().contains("no token"));
    }
}
