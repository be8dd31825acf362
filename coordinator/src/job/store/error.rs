//! Why the store cannot do what it was asked, and what to do about it.

use protocol::codec::FrameError;
use protocol::{Epoch, JobId, RunId};
use std::io;
use std::path::PathBuf;

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
        "{place} has schema {found}, this release reads up to {known}: use the later release that wrote \
         it, or give another --data DIR or --database URL"
    )]
    Newer {
        /// The database.
        place: String,
        /// Its schema's number.
        found: i64,
        /// The highest number that this release knows.
        known: i64,
    },
    /// The file is no database, or a part of it is overwritten or gone.
    #[error(
        "{place} is damaged ({cause}): put a copy of it back, or move it away to begin with an empty one"
    )]
    Damaged {
        /// The database.
        place: String,
        /// What the database says.
        cause: String,
    },
    /// There is no room.
    #[error(
        "no room in {place} for {what}: make some, or keep finished images for a shorter time; what was \
         stored before is all there"
    )]
    Full {
        /// The folder or database.
        place: String,
        /// What was to be stored.
        what: String,
    },
    /// The system cannot read or write.
    #[error(
        "cannot read or write {what} in {place} ({cause}): look at its disk and permissions; what was \
         stored before is all there"
    )]
    Io {
        /// The folder or database.
        place: String,
        /// What was to be read or stored.
        what: String,
        /// What the database says.
        cause: String,
    },
    /// The URL of a database cannot be read, or asks for something that there is not.
    #[error(
        "not a database's URL: {0}; give one like postgres://USER@HOST:5432/NAME, with the password in it or in \
         TESSERA_DATABASE"
    )]
    Url(String),
    /// The database cannot be reached.
    #[error(
        "cannot reach {place} for {what} ({cause}): see that it runs and lets this machine in; what was stored before \
         is all there"
    )]
    Unreachable {
        /// The database.
        place: String,
        /// What was to be read or stored.
        what: String,
        /// What the connection says.
        cause: String,
    },
    /// The connection was lost, or took too long, before it was known whether something was stored.
    #[error(
        "{place} did not say whether it stored {what} ({cause}): that is found out when it answers again"
    )]
    Unanswered {
        /// The database.
        place: String,
        /// What was to be stored.
        what: String,
        /// What the connection says.
        cause: String,
    },
    /// Another coordinator keeps its jobs there.
    #[error(
        "another coordinator ({by}) keeps its jobs in {place}: stop it, or give this one a schema of its own \
         (CREATE SCHEMA NAME, and ?options=-csearch_path=NAME in the URL)"
    )]
    Held {
        /// The database.
        place: String,
        /// Whose connection it is.
        by: String,
    },
    /// Another coordinator took the jobs while this one could not reach the database.
    #[error(
        "another coordinator went on with the jobs in {0} while this one could not reach it: this one ends"
    )]
    Taken(String),
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
    /// Whether something may have been stored all the same.
    pub(super) fn is_doubtful(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }
}
