//! The store's files, and the tables in them.
//!
//! | file | what it is |
//! |---|---|
//! | `tessera.db` | the database |
//! | `tessera.db-wal` | what was written to it last; belongs to it, also in a copy |
//! | `tessera.lock` | locked by the coordinator that uses the folder; the lock ends with its process |

use super::StoreError;
use protocol::keyfile;
use rusqlite::{Connection, OpenFlags};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(super) const DATABASE: &str = "tessera.db";
const LOCK: &str = "tessera.lock";

/// Counts the changes of [`TABLES`]: a database with a higher number was made by a later release.
const SCHEMA: i32 = 2;

/// The tables of an empty database.
///
/// `wire` and `release` are those that wrote a row's blobs, which other wire versions misread.
/// AUTOINCREMENT never gives a number twice, not even after its job was forgotten. Large columns are
/// last: a row's others are read without them.
const TABLES: &str = "
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        wire INTEGER NOT NULL,
        release TEXT NOT NULL,
        accepted INTEGER NOT NULL, -- unix seconds
        ended INTEGER,             -- unix seconds; null: unfinished
        seed INTEGER NOT NULL,     -- the same 64 bits, signed
        epoch INTEGER,             -- of the last run
        model TEXT,                -- of the last run
        request BLOB NOT NULL,
        owner TEXT NOT NULL,
        priority TEXT NOT NULL,
        once TEXT,                 -- the owner's idempotency key
        started INTEGER,           -- unix seconds, of the first run
        stage TEXT,                -- at which it ended
        spec BLOB,                 -- of the last run
        events BLOB,
        image BLOB
    ) STRICT;
    CREATE INDEX jobs_by_end ON jobs (ended, id);
    CREATE UNIQUE INDEX jobs_once ON jobs (owner, once) WHERE once IS NOT NULL;
    CREATE TABLE checkpoints (
        job INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        calls INTEGER NOT NULL,
        calls_total INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
";

/// What makes [`TABLES`] of those that schema 1 had.
const FROM_SCHEMA_1: &str = "
    ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal';
    ALTER TABLE jobs ADD COLUMN once TEXT;
    ALTER TABLE jobs ADD COLUMN started INTEGER;
    ALTER TABLE jobs ADD COLUMN stage TEXT;
    CREATE UNIQUE INDEX jobs_once ON jobs (owner, once) WHERE once IS NOT NULL;
";

/// How the connection behaves.
///
/// - Pages of 16 KiB: checkpoints and images are long, and a page is the unit of every write. Storing
///   them takes half as long as with pages of 4 KiB, accepting no longer; larger ones gain little.
/// - The log is cut to 64 MiB once it is in the database: more than all of it in common use, and the
///   image of the largest admitted size (192 MiB) does not hold that much of the disk for ever.
const BEHAVIOUR: &str = "
    PRAGMA page_size = 16384;
    PRAGMA journal_mode = WAL;
    PRAGMA journal_size_limit = 67108864;
    PRAGMA foreign_keys = ON;
";

/// The folder, made if need be, and the lock that makes it this process's own.
pub(super) fn claim(folder: &Path) -> Result<(PathBuf, File), StoreError> {
    let unusable = |cause| StoreError::Folder { folder: folder.to_owned(), cause };
    keyfile::make_folder(folder).map_err(unusable)?;
    // SQLite takes a name that starts with `file:` for a URI; a whole path never does.
    let whole = folder.canonicalize().map_err(unusable)?;
    let lock = private(&whole.join(LOCK)).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok((whole, lock)),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(folder.to_owned())),
        Err(TryLockError::Error(cause)) => Err(unusable(cause)),
    }
}

/// The file, made if need be for its owner alone: prompts and images are nobody else's business.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The database in a claimed folder.
pub(super) fn open(folder: &Path) -> Result<Connection, StoreError> {
    let file = folder.join(DATABASE);
    private(&file).map_err(|cause| StoreError::Folder { folder: folder.to_owned(), cause })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |error| StoreError::of(folder, &"the database", &error);
    prepare(Connection::open_with_flags(&file, flags).map_err(failed)?, folder)
}

/// A new database, or one that was made before, ready for use.
pub(super) fn prepare(connection: Connection, folder: &Path) -> Result<Connection, StoreError> {
    let failed = |error| StoreError::of(folder, &"the database", &error);
    // Before anything is read: the log's index is then in this process's memory, not in a shared
    // mapping, which network file systems lack and a full disk turns into a SIGBUS.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
    let found = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))
        .map_err(failed)?;
    if found > SCHEMA {
        return Err(StoreError::Newer { file: folder.join(DATABASE), found, known: SCHEMA });
    }
    connection.execute_batch(BEHAVIOUR).map_err(failed)?;
    let change = match found {
        0 => TABLES,
        1 => FROM_SCHEMA_1,
        _ => return Ok(connection),
    };
    let change = format!("BEGIN IMMEDIATE; {change} PRAGMA user_version = {SCHEMA}; COMMIT;");
    connection.execute_batch(&change).map_err(failed)?;
    Ok(connection)
}
