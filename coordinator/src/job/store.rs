//! What a coordinator must not forget: the jobs it accepted, how far each got, and the images of
//! those that ended. An SQLite database in a folder of its own.
//!
//! Invariants, cited by tests:
//! - **K-1 accepted**: a job that [`Keep::accept`] gave a number has an end ([`Keep::outcome`]), or
//!   is among the [`Keep::unfinished`], whatever happened to the process or the machine; until it
//!   has ended for longer than is kept.
//! - **K-2 once**: no job's number, and no epoch of a job, is ever given twice.
//! - **K-3 whole**: a checkpoint is that of one call, never parts of two, and one of the spec and the
//!   model that are stored with it.
//!
//! What K-1 and K-2 are about is on the disk when a call returns. A checkpoint may be in the system's
//! memory still: a crash of the process does not touch it, a loss of power may bring the one before
//! back, which only costs its steps. What is stored later never is there without it.

mod disk;
mod ended;
mod error;
mod keep;
#[cfg(test)]
mod tests;

pub use ended::EndedJob;
pub use error::StoreError;
pub use keep::Keep;

use bytes::Bytes;
use protocol::codec::{decode_body, encode_body};
use protocol::job::{JobRequest, JobSpec, Priority};
use protocol::message::{Event, JobStage};
use protocol::{Epoch, Fault, FaultKind, JobId, RELEASE, RunId, WIRE_VERSION};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The jobs of one coordinator.
///
/// Each call ends when it is stored: milliseconds, most of them the disk's. Times are unix seconds.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    folder: PathBuf,
    /// Held as long as the connection is there, so it is dropped after it; none if nothing is kept.
    lock: Option<File>,
}

/// The jobs that had not ended when the coordinator did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unfinished {
    /// Those that can go on, in the order in which they were accepted.
    pub jobs: Vec<StoredJob>,
    /// Those that cannot, as another release wrote them, and why. They stay as they are: that
    /// release can still go on with them. [`Keep::outcome`] says the same of each.
    pub unreadable: Vec<(JobId, Fault)>,
}

/// What a job was accepted as.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What was asked for.
    pub request: JobRequest,
    /// The seed that was settled then.
    pub seed: u64,
    /// Who submitted it.
    pub owner: String,
    /// Whether it is rendered before others.
    pub priority: Priority,
    /// The owner's name for this submission.
    pub idempotency_key: Option<String>,
}

impl Asked {
    /// What someone on this machine asks for, in turn with others.
    #[must_use]
    pub fn new(request: JobRequest, seed: u64) -> Self {
        let (owner, priority) = ("local".to_owned(), Priority::Normal);
        Self { request, seed, owner, priority, idempotency_key: None }
    }
}

/// A job that has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredJob {
    /// Its number.
    pub job: JobId,
    /// When it was accepted.
    pub accepted: u64,
    /// When its first run started.
    pub started: Option<u64>,
    /// What it was accepted as.
    pub asked: Asked,
    /// The last run of it; None if it never had workers.
    pub run: Option<StoredRun>,
    /// How far it got; None if no call was ever done.
    pub checkpoint: Option<StoredCheckpoint>,
}

/// The last run of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRun {
    /// Its epoch: the job's highest.
    pub epoch: Epoch,
    /// The digest of the model it was rendered with.
    pub model: String,
    /// What was rendered.
    pub spec: JobSpec,
}

/// How far a job got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// Model calls done.
    pub calls: u32,
    /// Model calls in all.
    pub of: u32,
    /// What going on needs; the store does not know what it means.
    pub bytes: Bytes,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// When it did; when it was accepted, if it cannot be read.
    pub ended: u64,
    /// What a client that comes back is told. The last is [`Event::Finished`] or [`Event::Failed`].
    pub events: Vec<Event>,
    /// The last event's payload: RGB bytes [height, width, 3], 8 bits a channel; empty if it failed.
    pub image: Bytes,
}

/// When what was written is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    /// When the call returns.
    Now,
    /// With the next that is.
    Later,
}

impl Durable {
    /// SQLite's word for it, where the log is a WAL.
    fn synchronous(self) -> &'static str {
        match self {
            Self::Now => "FULL",
            Self::Later => "NORMAL",
        }
    }
}

impl Store {
    /// The jobs kept in `folder`, which is made (for this user alone) if it is not there.
    ///
    /// # Errors
    /// If another coordinator uses it, a later release wrote it, or it cannot be used or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let (folder, lock) = disk::claim(folder)?;
        let connection = disk::open(&folder)?;
        Ok(Self { connection, folder, lock: Some(lock) })
    }

    /// A store that ends with this process. Its images take memory until they are forgotten.
    #[must_use]
    pub fn in_memory() -> Self {
        let folder = PathBuf::from("memory");
        let connection = Connection::open_in_memory().expect("memory is there");
        let connection = disk::prepare(connection, &folder).expect("an empty database has room");
        Self { connection, folder, lock: None }
    }

    /// One change, whole or not at all.
    fn write<T>(
        &mut self,
        durable: Durable,
        what: &dyn Display,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let Self { connection, folder, .. } = self;
        let written = (|| {
            connection.pragma_update(None, "synchronous", durable.synchronous())?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let given = change(&transaction)?;
            transaction.commit()?;
            Ok(given)
        })();
        written.map_err(|error| StoreError::of(folder, what, &error))
    }

    /// Why nothing was changed for `run`, if nothing was.
    fn check_taken(&self, rows: usize, run: RunId) -> Result<(), StoreError> {
        if rows > 0 {
            return Ok(());
        }
        let select = "SELECT epoch FROM jobs WHERE id = ?1 AND ended IS NULL";
        let last = self
            .connection
            .query_row(select, [key(run.job)], |row| row.get::<_, Option<u32>>(0))
            .optional()
            .map_err(|error| self.failed(&run, &error))?;
        Err(match last {
            Some(last) => StoreError::OutOfOrder { run, last: last.map(Epoch) },
            None => StoreError::NotUnfinished(run.job),
        })
    }

    fn failed(&self, what: &dyn Display, error: &rusqlite::Error) -> StoreError {
        StoreError::of(&self.folder, what, error)
    }
}

impl Keep for Store {
    fn is_kept(&self) -> bool {
        self.lock.is_some()
    }

    fn unfinished(&self) -> Result<Unfinished, StoreError> {
        let select = "SELECT *, calls, calls_total, bytes FROM jobs LEFT JOIN checkpoints ON job = id \
                      WHERE ended IS NULL ORDER BY id";
        let mut unfinished = Unfinished::default();
        let mut collect = || {
            let mut statement = self.connection.prepare(select)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let written = Written::of(row, "accepted")?;
                match stored_job(&written, row)? {
                    Ok(job) => unfinished.jobs.push(job),
                    Err(fault) => unfinished.unreadable.push((written.job, fault)),
                }
            }
            Ok(())
        };
        collect().map_err(|error| self.failed(&"the unfinished jobs", &error))?;
        Ok(unfinished)
    }

    fn accept(&mut self, asked: &Asked, now: u64) -> Result<JobId, StoreError> {
        let what = "a new job";
        let Asked { request, seed, owner, priority, idempotency_key: once } = asked;
        let request = encode(&what, request)?;
        let (seed, priority) = (seed.cast_signed(), priority.name());
        let values =
            params![WIRE_VERSION, RELEASE, integer(now), seed, request, owner, priority, once];
        let insert = "INSERT INTO jobs \
                          (wire, release, accepted, seed, request, owner, priority, once) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let id = self.write(Durable::Now, &what, |transaction| {
            transaction.execute(insert, values)?;
            Ok(transaction.last_insert_rowid())
        })?;
        Ok(JobId(id.cast_unsigned()))
    }

    fn known(&self, owner: &str, key: &str) -> Result<Option<(JobId, Asked)>, StoreError> {
        let select = "SELECT * FROM jobs WHERE owner = ?1 AND once = ?2";
        let read = |row: &Row<'_>| {
            let written = Written::of(row, "accepted")?;
            Ok(written.asked(row)?.ok().map(|asked| (written.job, asked)))
        };
        let known = self.connection.query_row(select, [owner, key], read).optional();
        let what = format_args!("the job of idempotency key `{key}`");
        known.map(Option::flatten).map_err(|error| self.failed(&what, &error))
    }

    fn started(
        &mut self,
        run: RunId,
        model: &str,
        spec: &JobSpec,
        now: u64,
    ) -> Result<(), StoreError> {
        let what = format_args!("the start of {run}");
        let spec = encode(&what, spec)?;
        let outdated = "DELETE FROM checkpoints WHERE job = (SELECT id FROM jobs WHERE id = ?1 \
                    AND ended IS NULL AND epoch < ?2 AND (model <> ?3 OR spec <> ?4))";
        let update = "UPDATE jobs SET epoch = ?2, model = ?3, spec = ?4, \
                          started = coalesce(started, ?5) \
                      WHERE id = ?1 AND ended IS NULL AND (epoch IS NULL OR epoch < ?2)";
        let rows = self.write(Durable::Now, &what, |transaction| {
            transaction.execute(outdated, params![key(run.job), run.epoch.0, model, spec])?;
            let values = params![key(run.job), run.epoch.0, model, spec, integer(now)];
            transaction.execute(update, values)
        })?;
        self.check_taken(rows, run)
    }

    fn checkpoint(
        &mut self,
        run: RunId,
        calls: u32,
        of: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let replace = "REPLACE INTO checkpoints SELECT id, ?3, ?4, ?5 FROM jobs \
                       WHERE id = ?1 AND epoch = ?2 AND ended IS NULL";
        let values = params![key(run.job), run.epoch.0, calls, of, bytes];
        let what = format_args!("the checkpoint of {run} after call {calls} of {of}");
        let rows =
            self.write(Durable::Later, &what, |transaction| transaction.execute(replace, values))?;
        self.check_taken(rows, run)
    }

    fn finish(
        &mut self,
        job: JobId,
        events: &[Event],
        image: &[u8],
        now: u64,
    ) -> Result<(), StoreError> {
        let what = format_args!("the end of {job}");
        let stage = ended::stage_of(events);
        let events = encode(&what, &events)?;
        let update = "UPDATE jobs SET wire = ?2, release = ?3, ended = ?4, events = ?5, image = ?6, \
                          stage = ?7 \
                      WHERE id = ?1 AND ended IS NULL";
        let (now, stage) = (integer(now), stage.name());
        let values = params![key(job), WIRE_VERSION, RELEASE, now, events, image, stage];
        let rows = self.write(Durable::Now, &what, |transaction| {
            transaction.execute("DELETE FROM checkpoints WHERE job = ?1", [key(job)])?;
            transaction.execute(update, values)
        })?;
        if rows == 0 { Err(StoreError::NotUnfinished(job)) } else { Ok(()) }
    }

    fn outcome(&self, job: JobId) -> Result<Option<Outcome>, StoreError> {
        let select = "SELECT * FROM jobs WHERE id = ?1";
        self.connection
            .query_row(select, [key(job)], outcome_of)
            .optional()
            .map(Option::flatten)
            .map_err(|error| self.failed(&format_args!("the end of {job}"), &error))
    }

    fn ended_job(&self, job: JobId) -> Result<Option<EndedJob>, StoreError> {
        self.read_ended(job)
    }

    fn ended_jobs(
        &self,
        before: Option<JobId>,
        stages: &[JobStage],
        limit: usize,
    ) -> Result<Vec<EndedJob>, StoreError> {
        self.list_ended(before, stages, limit)
    }

    fn forget(&mut self, time: u64, image_bytes_max: u64) -> Result<usize, StoreError> {
        let old = "DELETE FROM jobs WHERE ended < ?1 \
                      OR (ended IS NULL AND wire <> ?2 AND accepted < ?1)";
        let many = "DELETE FROM jobs WHERE id IN (SELECT id FROM ( \
                        SELECT id, sum(length(image)) OVER (ORDER BY ended DESC, id DESC) AS bytes \
                        FROM jobs WHERE ended IS NOT NULL) WHERE bytes > ?1)";
        self.write(Durable::Later, &"what is forgotten", |transaction| {
            let forgotten = transaction.execute(old, params![integer(time), WIRE_VERSION])?;
            Ok(forgotten + transaction.execute(many, [integer(image_bytes_max)])?)
        })
    }
}

/// Who wrote a row.
struct Written {
    job: JobId,
    wire: u16,
    release: String,
    /// What that release did with the job.
    did: &'static str,
}

impl Written {
    /// Of a row of all columns of jobs.
    fn of(row: &Row<'_>, did: &'static str) -> rusqlite::Result<Self> {
        let job = JobId(row.get::<_, i64>("id")?.cast_unsigned());
        Ok(Self { job, wire: row.get("wire")?, release: row.get("release")?, did })
    }

    /// What its job was accepted as.
    fn asked(&self, row: &Row<'_>) -> rusqlite::Result<Result<Asked, Fault>> {
        let (request, priority): (Vec<u8>, String) = (row.get("request")?, row.get("priority")?);
        let read = self.decode(&request).and_then(|request| {
            Ok((request, priority.parse().map_err(|error| self.unreadable(&error))?))
        });
        let (request, priority) = match read {
            Ok(read) => read,
            Err(fault) => return Ok(Err(fault)),
        };
        let (seed, owner) = (row.get::<_, i64>("seed")?.cast_unsigned(), row.get("owner")?);
        let idempotency_key = row.get("once")?;
        Ok(Ok(Asked { request, seed, owner, priority, idempotency_key }))
    }

    /// What the bytes mean, if they are of this release's wire version.
    fn decode<M: DeserializeOwned>(&self, bytes: &[u8]) -> Result<M, Fault> {
        if self.wire != WIRE_VERSION {
            let why = format!("its wire version is {}, not {WIRE_VERSION}", self.wire);
            return Err(self.unreadable(&why));
        }
        decode_body(bytes).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, why: &dyn Display) -> Fault {
        let Self { job, release, did, .. } = self;
        let cause = format!(
            "{job} was {did} by release {release} and cannot be read by {RELEASE}: {why}; serve its \
             folder with release {release}, or submit it again"
        );
        Fault::new(FaultKind::VersionMismatch, cause)
    }
}

/// The job of a row of [`Keep::unfinished`].
fn stored_job(written: &Written, row: &Row<'_>) -> rusqlite::Result<Result<StoredJob, Fault>> {
    let spec = row.get::<_, Option<Vec<u8>>>("spec")?;
    let decoded = written.asked(row)?.and_then(|asked| {
        Ok((asked, spec.map(|spec| written.decode::<JobSpec>(&spec)).transpose()?))
    });
    let (asked, spec) = match decoded {
        Ok(decoded) => decoded,
        Err(fault) => return Ok(Err(fault)),
    };
    let run = match spec {
        Some(spec) => {
            Some(StoredRun { epoch: Epoch(row.get("epoch")?), model: row.get("model")?, spec })
        }
        None => None,
    };
    let checkpoint = match row.get::<_, Option<Vec<u8>>>("bytes")? {
        Some(bytes) => Some(StoredCheckpoint {
            calls: row.get("calls")?,
            of: row.get("calls_total")?,
            bytes: bytes.into(),
        }),
        None => None,
    };
    let accepted = natural(row.get("accepted")?);
    let started = row.get::<_, Option<i64>>("started")?.map(natural);
    Ok(Ok(StoredJob { job: written.job, accepted, started, asked, run, checkpoint }))
}

/// How the job of a row of [`Keep::outcome`] ended, or that it cannot be read.
fn outcome_of(row: &Row<'_>) -> rusqlite::Result<Option<Outcome>> {
    let unreadable = |ended, fault| {
        let (events, image) = (vec![Event::Failed { fault }], Bytes::new());
        Some(Outcome { ended, events, image })
    };
    let Some(ended) = row.get::<_, Option<i64>>("ended")?.map(natural) else {
        let request: Vec<u8> = row.get("request")?;
        let read = Written::of(row, "accepted")?.decode::<JobRequest>(&request);
        let accepted = natural(row.get("accepted")?);
        return Ok(read.err().and_then(|fault| unreadable(accepted, fault)));
    };
    let events: Vec<u8> = row.get("events")?;
    Ok(match Written::of(row, "ended")?.decode(&events) {
        Ok(events) => {
            let image = Bytes::from(row.get::<_, Vec<u8>>("image")?);
            Some(Outcome { ended, events, image })
        }
        Err(fault) => unreadable(ended, fault),
    })
}

fn encode<M: Serialize>(what: &dyn Display, message: &M) -> Result<Vec<u8>, StoreError> {
    encode_body(message).map_err(|cause| StoreError::Unencodable { what: what.to_string(), cause })
}

/// A job's number as SQLite has it; one that is too high for it is nobody's.
fn key(job: JobId) -> i64 {
    i64::try_from(job.0).unwrap_or(-1)
}

/// Seconds as SQLite has them.
fn integer(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Seconds as we have them.
fn natural(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}
