//! An SQLite database in a folder of its own, or in memory.
//!
//! | file | what it is |
//! |---|---|
//! | `tessera.db` | the database |
//! | `tessera.db-wal` | what was written to it last; belongs to it, also in a copy |
//! | `tessera.lock` | locked by the coordinator that uses the folder; the lock ends with its process |

use super::StoreError;
use super::database::{Cell, Database, Durable, Row, SCHEMA, Statement, Value};
use protocol::keyfile;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, TransactionBehavior, params_from_iter};
use std::fmt::Display;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const DATABASE: &str = "tessera.db";
const LOCK: &str = "tessera.lock";

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
        plan BLOB,                 -- of the last run, if the next is to have its bands
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

/// What makes [`TABLES`] of those of earlier schemas, each from the one before.
const CHANGES: [&str; 2] = [
    "
    ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal';
    ALTER TABLE jobs ADD COLUMN once TEXT;
    ALTER TABLE jobs ADD COLUMN started INTEGER;
    ALTER TABLE jobs ADD COLUMN stage TEXT;
    CREATE UNIQUE INDEX jobs_once ON jobs (owner, once) WHERE once IS NOT NULL;
    ",
    "
    ALTER TABLE jobs ADD COLUMN plan BLOB;
    ",
];

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

/// A database that is this process's own.
#[derive(Debug)]
pub(super) struct Sqlite {
    pub(super) connection: Connection,
    file: PathBuf,
    place: String,
    /// Held as long as the connection is there, so it is dropped after it; none if nothing is kept.
    lock: Option<File>,
}

impl Sqlite {
    /// The database in `folder`, which is made (for this user alone) if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let (folder, lock) = claim(folder)?;
        let file = folder.join(DATABASE);
        private(&file).map_err(|cause| StoreError::Folder { folder: folder.clone(), cause })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |error| failed(&folder, &"the database", &error);
        let connection = Connection::open_with_flags(&file, flags).map_err(failed)?;
        Self::prepare(connection, &folder, Some(lock))
    }

    /// One that ends with this process.
    pub(super) fn in_memory() -> Result<Self, StoreError> {
        let folder = Path::new("memory");
        let failed = |error| failed(folder, &"the database", &error);
        Self::prepare(Connection::open_in_memory().map_err(failed)?, folder, None)
    }

    /// A new database, or one that was made before, ready for use.
    fn prepare(
        connection: Connection,
        folder: &Path,
        lock: Option<File>,
    ) -> Result<Self, StoreError> {
        let failed = |error| failed(folder, &"the database", &error);
        // Before anything is read: the log's index is then in this process's memory, not in a shared
        // mapping, which network file systems lack and a full disk turns into a SIGBUS.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
        let found = connection
            .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
            .map_err(failed)?;
        let file = folder.join(DATABASE);
        let place = folder.display().to_string();
        if found > SCHEMA {
            let place = file.display().to_string();
            return Err(StoreError::Newer { place, found, known: SCHEMA });
        }
        connection.execute_batch(BEHAVIOUR).map_err(failed)?;
        let changes = match usize::try_from(found) {
            Ok(0) | Err(_) => TABLES.to_owned(),
            Ok(found) => CHANGES[(found - 1).min(CHANGES.len())..].concat(),
        };
        if found < SCHEMA {
            let change =
                format!("BEGIN IMMEDIATE; {changes} PRAGMA user_version = {SCHEMA}; COMMIT;");
            connection.execute_batch(&change).map_err(failed)?;
        }
        Ok(Self { connection, file, place, lock })
    }

    fn failed(&self, what: &dyn Display, error: &rusqlite::Error) -> StoreError {
        failed(self.file.parent().unwrap_or(&self.file), what, error)
    }
}

impl Database for Sqlite {
    fn place(&self) -> &str {
        &self.place
    }

    fn is_kept(&self) -> bool {
        self.lock.is_some()
    }

    fn change(
        &mut self,
        durable: Durable,
        what: &dyn Display,
        statements: Vec<Statement>,
    ) -> Result<Vec<i64>, StoreError> {
        let connection = &mut self.connection;
        // Where the log is a WAL.
        let synchronous = match durable {
            Durable::Now => "FULL",
            Durable::Later => "NORMAL",
        };
        let changed = (|| {
            connection.pragma_update(None, "synchronous", synchronous)?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut answers = Vec::with_capacity(statements.len());
            for Statement { sql, values } in &statements {
                let mut statement = transaction.prepare(sql)?;
                let values = params_from_iter(values);
                answers.push(if statement.column_count() == 0 {
                    i64::try_from(statement.execute(values)?).unwrap_or(i64::MAX)
                } else {
                    statement.query_row(values, |row| row.get(0))?
                });
            }
            transaction.commit()?;
            Ok(answers)
        })();
        changed.map_err(|error| self.failed(what, &error))
    }

    fn select(&self, what: &dyn Display, statement: Statement) -> Result<Vec<Row>, StoreError> {
        let Statement { sql, values } = statement;
        let read = || {
            let mut statement = self.connection.prepare(&sql)?;
            let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
            let mut rows = statement.query(params_from_iter(values.iter()))?;
            let mut read = Vec::new();
            while let Some(row) = rows.next()? {
                let cell = |(index, name): (usize, &String)| {
                    Ok((name.clone(), cell(row.get_ref(index)?)?))
                };
                read.push(Row(names
                    .iter()
                    .enumerate()
                    .map(cell)
                    .collect::<Result<_, rusqlite::Error>>()?));
            }
            Ok(read)
        };
        read().map_err(|error| self.failed(what, &error))
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Integer(value) => value.to_sql(),
            Self::Text(value) => value.to_sql(),
            Self::MaybeText(value) => value.to_sql(),
            Self::Bytes(value) => value.to_sql(),
            Self::MaybeBytes(value) => value.to_sql(),
        }
    }
}

fn cell(value: ValueRef<'_>) -> rusqlite::Result<Cell> {
    Ok(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(value) => Cell::Integer(value),
        ValueRef::Text(_) => Cell::Text(value.as_str()?.to_owned()),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_owned()),
        // No table has such a column; whoever reads it finds none of the type that it wants.
        ValueRef::Real(_) => Cell::Null,
    })
}

/// What SQLite said while `what` was read from or written to `folder`.
fn failed(folder: &Path, what: &dyn Display, error: &rusqlite::Error) -> StoreError {
    let (place, what, cause) = (folder.display().to_string(), what.to_string(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { place, what },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { place: folder.join(DATABASE).display().to_string(), cause }
        }
        _ => StoreError::Io { place, what, cause },
    }
}

/// The folder, made if need be, and the lock that makes it this process's own.
fn claim(folder: &Path) -> Result<(PathBuf, File), StoreError> {
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
