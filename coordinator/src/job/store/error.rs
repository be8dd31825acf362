//! Why the store cannot do what it was asked, and what to do about it.

use super::disk;
use protocol::codec::FrameError;
use protocol::{Epoch, JobId, RunId};
use rusqlite::ErrorCode;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Why nothing was stored, or found. What was stored before is all there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder, or a file in it, cannot be made or used.
    #[error("cannot keep jobs in {}: {cause}; give another --data DIR", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Another process has it.
    #[error(
        "another coordinator uses {}: stop it, or give this one another --data DIR",
        .0.display()
    )]
    InUse(PathBuf),
    /// A later release made the database.
    #[error(
        "{} has schema {found}, this release reads up to {known}: use the later release that wrote \
         it, or give another --data DIR",
        file.display()
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its schema's number.
        found: i32,
        /// The highest number that this release knows.
        known: i32,
    },
    /// The file is no database, or a part of it is overwritten or gone.
    #[error(
        "{} is damaged ({cause}): put a copy of it back, or move it away to begin with an empty one",
        file.display()
    )]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        cause: String,
    },
    /// There is no room.
    #[error(
        "no room in {} for {what}: make some, or keep finished images for a shorter time; what was \
         stored before is all there",
        folder.display()
    )]
    Full {
        /// The folder.
        folder: PathBuf,
        /// What was to be stored.
        what: String,
    },
    /// The system cannot read or write.
    #[error(
        "cannot read or write {what} in {} ({cause}): look at its disk and permissions; what was \
         stored before is all there",
        folder.display()
    )]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What was to be read or stored.
        what: String,
        /// What SQLite says.
        cause: String,
    },
    /// What was to be stored has no bytes.
    #[error("cannot store {what}: {cause}")]
    Unencodable {
        /// What was to be stored.
        what: String,
        /// What the codec says.
        cause: FrameError,
    },
    /// The job has ended, was forgotten, or never was.
    #[error("{0} is not among the unfinished jobs: it has ended, or was never accepted")]
    NotUnfinished(JobId),
    /// The run is not the one that its job is at.
    #[error("{run} is out of order: the last run of its job is {}", name(*.last))]
    OutOfOrder {
        /// The run.
        run: RunId,
        /// The epoch of the job's last run; None if it has none.
        last: Option<Epoch>,
    },
}

fn name(epoch: Option<Epoch>) -> String {
    epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string())
}

impl StoreError {
    /// What SQLite said while `what` was read from or written to `folder`.
    pub(super) fn of(folder: &Path, what: &dyn Display, error: &rusqlite::Error) -> Self {
        let (folder, what, cause) = (folder.to_owned(), what.to_string(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { folder, what },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { file: folder.join(disk::DATABASE), cause }
            }
            _ => Self::Io { folder, what, cause },
        }
    }
}
