//! The folder that an identity is kept in.
//!
//! | file | what it is |
//! |---|---|
//! | `authority.pem`, `authority.key` | the cluster's authority: on the coordinator's machine alone |
//! | `coordinator.pem`, `coordinator.key` | the coordinator's credentials: likewise |
//! | `client.pem`, `client.key` | those that commands use |
//! | `trust.json` | the certificates that were issued, and the tokens |
//! | `lock` | held while `trust.json` is changed |

use super::now;
use crate::cluster::trust::Trust;
use protocol::identity::{Authority, Credentials, IdentityError, Role, Subject};
use protocol::keyfile;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names the folder unless an option does.
const VARIABLE: &str = "TESSERA_IDENTITY";
const AUTHORITY: &str = "authority";
const TRUST: &str = "trust.json";

/// Where an identity is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

/// Why a folder is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Nobody says where it is.
    #[error("no folder for identities: set {VARIABLE} or HOME, or give --identity DIR")]
    Nowhere,
    /// It has no such identity.
    #[error("no {role}'s identity in {}", folder.display())]
    Missing {
        /// Whose.
        role: Role,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// It has one that would be overwritten.
    #[error("{} is there already: nothing was changed; give another --identity DIR", .0.display())]
    Exists(PathBuf),
    /// Its files cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is in it makes no sense.
    #[error("{}: {cause}", folder.display())]
    Damaged {
        /// Where it is.
        folder: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// One version of `trust.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64, i64, i64);

impl Folder {
    /// The folder that was asked for, or else this user's: `$TESSERA_IDENTITY`,
    /// `$XDG_CONFIG_HOME/tessera` or `~/.config/tessera`.
    ///
    /// # Errors
    /// If none of them is given.
    pub fn find(asked: Option<&Path>) -> Result<Self, FolderError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        asked
            .map(Path::to_owned)
            .or_else(|| variable(VARIABLE).map(PathBuf::from))
            .or_else(|| variable("XDG_CONFIG_HOME").map(|home| Path::new(&home).join("tessera")))
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config/tessera")))
            .map(Self)
            .ok_or(FolderError::Nowhere)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn damaged(&self, cause: &dyn Display) -> FolderError {
        FolderError::Damaged { folder: self.0.clone(), cause: cause.to_string() }
    }

    /// Makes a cluster's authority, and the credentials of its coordinator and of a client called
    /// `client`.
    ///
    /// # Errors
    /// If one of them is there already, or cannot be written.
    pub fn init(&self, client: &str) -> Result<Authority, FolderError> {
        for name in [AUTHORITY, Role::Coordinator.name(), Role::Client.name()] {
            self.check_free(&format!("{name}.pem"))?;
        }
        let failed = |error: IdentityError| self.damaged(&error);
        let authority = Authority::new(now()).map_err(failed)?;
        let own = Subject::new(Role::Coordinator, "coordinator", now());
        let own = authority.credentials(&own).map_err(failed)?;
        let client = Subject::new(Role::Client, client, now());
        let client = authority.credentials(&client).map_err(failed)?;
        keyfile::make_folder(&self.0)?;
        keyfile::store(&self.0, Role::Coordinator.name(), &own)?;
        keyfile::store(&self.0, Role::Client.name(), &client)?;
        self.write_trust(&Trust::of(&[&client]))?;
        keyfile::write(&self.0.join(format!("{AUTHORITY}.key")), &authority.key())?;
        keyfile::write(&self.0.join(format!("{AUTHORITY}.pem")), authority.certificate())?;
        Ok(authority)
    }

    fn check_free(&self, name: &str) -> Result<(), FolderError> {
        let path = self.0.join(name);
        if path.try_exists()? { Err(FolderError::Exists(path)) } else { Ok(()) }
    }

    /// The cluster's authority.
    ///
    /// # Errors
    /// If it is not here, or cannot be read.
    pub fn authority(&self) -> Result<Authority, FolderError> {
        let [certificate, key] =
            ["pem", "key"].map(|what| self.0.join(format!("{AUTHORITY}.{what}")));
        if !certificate.try_exists()? {
            let (role, folder) = (Role::Coordinator, self.0.clone());
            return Err(FolderError::Missing { role, folder });
        }
        let authority = Authority::from_pem(&keyfile::read(&certificate)?, &keyfile::read(&key)?);
        authority.map_err(|error| self.damaged(&error))
    }

    /// The credentials of this role.
    ///
    /// # Errors
    /// If they are not here, or cannot be read.
    pub fn credentials(&self, role: Role) -> Result<Credentials, FolderError> {
        let found = keyfile::load(&self.0, role.name())?;
        found.ok_or_else(|| FolderError::Missing { role, folder: self.0.clone() })
    }

    /// Whether there is room for a client's credentials.
    ///
    /// # Errors
    /// If there are some.
    pub fn check_no_client(&self) -> Result<(), FolderError> {
        self.check_free(&format!("{}.pem", Role::Client))
    }

    /// Keeps a client's credentials.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn store_client(&self, credentials: &Credentials) -> Result<(), FolderError> {
        keyfile::make_folder(&self.0)?;
        Ok(keyfile::store(&self.0, Role::Client.name(), credentials)?)
    }

    /// Whom the cluster knows.
    ///
    /// # Errors
    /// If it is not said here, or cannot be read.
    pub fn trust(&self) -> Result<Trust, FolderError> {
        let text = keyfile::read(&self.0.join(TRUST))?;
        serde_json::from_str(&text).map_err(|error| self.damaged(&format!("{TRUST}: {error}")))
    }

    fn write_trust(&self, trust: &Trust) -> Result<(), FolderError> {
        let text = serde_json::to_string_pretty(trust).map_err(|error| self.damaged(&error))?;
        Ok(keyfile::write(&self.0.join(TRUST), &(text + "\n"))?)
    }

    /// Changes whom the cluster knows, one process at a time.
    ///
    /// # Errors
    /// If it cannot be read or written; what `change` gives is given whatever it is.
    pub fn change<T>(&self, change: impl FnOnce(&mut Trust) -> T) -> Result<T, FolderError> {
        let lock = File::create(self.0.join("lock"))?;
        lock.lock()?;
        let before = self.trust()?;
        let mut trust = before.clone();
        let given = change(&mut trust);
        if trust != before {
            self.write_trust(&trust)?;
        }
        Ok(given)
    }

    /// Which version of what the cluster knows is here; None while there is none.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let about = std::fs::metadata(self.0.join(TRUST)).ok()?;
        Some(Stamp(about.ino(), about.mtime(), about.mtime_nsec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::identity::{Terms, Tokens};
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, Folder) {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder(scratch.path().join("a/b"));
        folder.init("me").unwrap();
        (scratch, folder)
    }

    #[test]
    fn an_identity_is_kept_private_and_never_overwritten() {
        let (_scratch, folder) = folder();
        let authority = folder.authority().unwrap().fingerprint();
        assert!(matches!(folder.init("me"), Err(FolderError::Exists(_))));
        assert_eq!(folder.authority().unwrap().fingerprint(), authority);
        for role in [Role::Coordinator, Role::Client] {
            let found = folder.credentials(role).unwrap();
            assert_eq!((found.identity().role, found.authority()), (role, authority));
        }
        assert!(matches!(folder.credentials(Role::Worker), Err(FolderError::Missing { .. })));
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
        let key = folder.path().join("client.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = folder.credentials(Role::Client).unwrap_err().to_string();
        assert!(refused.contains("client.key") && refused.contains("mode 644"), "{refused}");
    }

    #[test]
    fn a_change_is_kept_and_seen() {
        let (_scratch, folder) = folder();
        let (before, authority) = (folder.stamp(), folder.authority().unwrap().fingerprint());
        let terms = Terms { role: Role::Worker, expires: now() + 60, uses: 1 };
        let token =
            folder.change(|trust| trust.tokens.make(terms, authority, now())).unwrap().unwrap();
        assert_ne!(folder.stamp(), before);
        let tokens: Tokens = folder.trust().unwrap().tokens;
        assert_eq!(tokens.records()[0].id, token.id);
        let text = std::fs::read_to_string(folder.path().join(TRUST)).unwrap();
        let secret = &token.to_string()[9 + 26..9 + 26 + 32];
        assert!(!text.contains(secret), "only hashes are kept");
        let unchanged = folder.stamp();
        folder.change(|_| ()).unwrap();
        assert_eq!(folder.stamp(), unchanged);
    }
}
