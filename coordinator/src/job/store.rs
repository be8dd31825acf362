//! What a coordinator must not forget: the jobs it accepted, how far each got, and the images of
//! those that ended. An SQLite database in a folder of its own, or a Postgres database.
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

mod database;
mod ended;
mod error;
mod keep;
mod older;
mod postgres;
mod sqlite;
#[cfg(test)]
mod tests;
mod written;

pub use ended::EndedJob;
pub use error::StoreError;
pub use keep::Keep;

use bytes::Bytes;
use database::{Database, Durable, Misread, Row, Statement, Value};
use postgres::Postgres;
use protocol::codec::encode_body;
use protocol::job::{JobRequest, JobSpec, Priority};
use protocol::message::{Event, JobStage};
use protocol::plan::Plan;
use protocol::{Epoch, Fault, JobId, RELEASE, RunId, Version};
use serde::Serialize;
use sqlite::Sqlite;
use std::fmt::Display;
use std::path::Path;
use written::Written;

/// The jobs of one coordinator.
///
/// Each call ends when it is stored: milliseconds, most of them the disk's. Times are unix seconds.
#[derive(Debug)]
pub struct Store {
    database: Box<dyn Database>,
    doubts: Doubts,
}

/// What may have been stored, though the database's answer was lost and its caller heard that it was not.
#[derive(Debug)]
struct Doubts {
    /// The highest number of the jobs that were told to be accepted.
    accepted_max: i64,
    accept: bool,
    start: Option<RunId>,
    finish: Option<JobId>,
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
    /// By whom, if the next run is to have the same bands.
    pub plan: Option<Plan>,
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

impl Store {
    /// The jobs kept in `folder`, which is made (for this user alone) if it is not there.
    ///
    /// # Errors
    /// If another coordinator uses it, a later release wrote it, or it cannot be used or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Self::of(Sqlite::open(folder)?)
    }

    /// The jobs kept in the Postgres database at `url`, whose tables are made if they are not there. `on_taken` hears
    /// if another coordinator goes on with them while the database was out of this one's reach: this one must end.
    ///
    /// # Errors
    /// If another coordinator uses it, a later release wrote it, or it cannot be reached or used.
    pub fn connect(
        url: &str,
        on_taken: impl FnOnce(StoreError) + Send + 'static,
    ) -> Result<Self, StoreError> {
        Self::of(Postgres::connect(url, Box::new(on_taken))?)
    }

    /// A store that ends with this process. Its images take memory until they are forgotten.
    #[must_use]
    pub fn in_memory() -> Self {
        let opened = Sqlite::in_memory().and_then(Self::of);
        opened.expect("memory is there, and an empty database has room")
    }

    fn of(database: impl Database + 'static) -> Result<Self, StoreError> {
        let last = "SELECT coalesce(max(id), 0) AS id FROM jobs";
        let what = "the last job";
        let mut rows = database.select(&what, Statement::new(last, Vec::new()))?;
        let last = rows.first_mut().ok_or(Misread("id")).and_then(|row| row.take("id"));
        let accepted_max = last.map_err(|misread| damaged(&database, misread))?;
        let (accept, start, finish) = (false, None, None);
        let doubts = Doubts { accepted_max, accept, start, finish };
        let mut store = Self { database: Box::new(database), doubts };
        store.renew()?;
        Ok(store)
    }

    /// Where the jobs are kept, as people call it.
    #[must_use]
    pub fn place(&self) -> &str {
        self.database.place()
    }

    /// Takes back what was accepted, perhaps, though its client heard that it was not.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.doubts.accept {
            let orphans = "DELETE FROM jobs WHERE id > $1";
            let orphans = Statement::new(orphans, [self.doubts.accepted_max.into()]);
            self.database.change(Durable::Now, &"what is in doubt", vec![orphans])?;
            self.doubts.accept = false;
        }
        Ok(())
    }

    fn rows<T>(
        &self,
        what: &dyn Display,
        statement: Statement,
        read: impl Fn(Row) -> Result<T, Misread>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.database.select(what, statement)?;
        let read: Result<Vec<T>, Misread> = rows.into_iter().map(read).collect();
        read.map_err(|misread| damaged(&*self.database, misread))
    }

    fn row<T>(
        &self,
        what: &dyn Display,
        statement: Statement,
        read: impl Fn(Row) -> Result<T, Misread>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.rows(what, statement, read)?.pop())
    }

    /// Why nothing was changed for `run`, if nothing was.
    fn check_taken(&self, rows: i64, run: RunId) -> Result<(), StoreError> {
        if rows > 0 {
            return Ok(());
        }
        let select = "SELECT epoch FROM jobs WHERE id = $1 AND ended IS NULL";
        let select = Statement::new(select, [key(run.job)]);
        let last = self.row(&run, select, |mut row| row.take::<Option<u32>>("epoch"))?;
        Err(match last {
            Some(last) => StoreError::OutOfOrder { run, last: last.map(Epoch) },
            None => StoreError::NotUnfinished(run.job),
        })
    }
}

impl Keep for Store {
    fn is_kept(&self) -> bool {
        self.database.is_kept()
    }

    fn unfinished(&self) -> Result<Unfinished, StoreError> {
        let select = "SELECT jobs.*, calls, calls_total, bytes \
                      FROM jobs LEFT JOIN checkpoints ON job = id \
                      WHERE ended IS NULL ORDER BY id";
        let select = Statement::new(select, Vec::new());
        let rows = self.rows(&"the unfinished jobs", select, |mut row| {
            let written = Written::of(&mut row, "accepted")?;
            Ok((written.job, written.stored_job(row)?))
        })?;
        let mut unfinished = Unfinished::default();
        for (job, stored) in rows {
            match stored {
                Ok(stored) => unfinished.jobs.push(stored),
                Err(fault) => unfinished.unreadable.push((job, fault)),
            }
        }
        Ok(unfinished)
    }

    fn accept(&mut self, asked: &Asked, now: u64) -> Result<JobId, StoreError> {
        self.settle()?;
        let what = "a new job";
        let Asked { request, seed, owner, priority, idempotency_key: once } = asked;
        let request = encode(&what, request)?;
        let insert = "INSERT INTO jobs \
                          (wire, release, accepted, seed, request, owner, priority, once) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id";
        let values = [
            i64::from(Version::newest().number()).into(),
            RELEASE.into(),
            integer(now),
            seed.cast_signed().into(),
            request.into(),
            owner.as_str().into(),
            priority.name().into(),
            Value::MaybeText(once.clone()),
        ];
        let stored =
            self.database.change(Durable::Now, &what, vec![Statement::new(insert, values)]);
        self.doubts.accept = stored.as_ref().is_err_and(StoreError::is_doubtful);
        let id = stored?.first().copied().unwrap_or_default();
        self.doubts.accepted_max = id;
        Ok(JobId(id.cast_unsigned()))
    }

    fn known(&mut self, owner: &str, key: &str) -> Result<Option<(JobId, Asked)>, StoreError> {
        self.settle()?;
        let select = "SELECT * FROM jobs WHERE owner = $1 AND once = $2";
        let select = Statement::new(select, [owner.into(), key.into()]);
        let what = format_args!("the job of idempotency key `{key}`");
        let known = self.row(&what, select, |mut row| {
            let written = Written::of(&mut row, "accepted")?;
            Ok(written.asked(&mut row)?.ok().map(|asked| (written.job, asked)))
        });
        known.map(Option::flatten)
    }

    fn started(&mut self, job: JobId, new: &StoredRun, now: u64) -> Result<(), StoreError> {
        let run = RunId { job, epoch: new.epoch };
        let what = format_args!("the start of {run}");
        let spec = encode(&what, &new.spec)?;
        let plan = new.plan.as_ref().map(|plan| encode(&what, plan)).transpose()?;
        // One that may be there already was given to no worker: it is given anew.
        let again = self.doubts.start == Some(run);
        let below = i64::from(new.epoch.0) + i64::from(again);
        let drop = "DELETE FROM checkpoints WHERE job = (SELECT id FROM jobs WHERE id = $1 \
                            AND ended IS NULL AND epoch < $2 AND (model <> $3 OR spec <> $4))";
        let update = "UPDATE jobs SET epoch = $1, model = $2, spec = $3, plan = $4, \
                          started = coalesce(started, $5) \
                      WHERE id = $6 AND ended IS NULL AND (epoch IS NULL OR epoch < $7)";
        let model = new.model.as_str();
        let outdated = [key(job), below.into(), model.into(), spec.clone().into()];
        let updated = [
            i64::from(new.epoch.0).into(),
            model.into(),
            spec.into(),
            Value::MaybeBytes(plan),
            integer(now),
            key(job),
            below.into(),
        ];
        let outdated = Statement::new(drop, outdated);
        let update = Statement::new(update, updated);
        let stored = self.database.change(Durable::Now, &what, vec![outdated, update]);
        match &stored {
            Ok(_) if again => self.doubts.start = None,
            Err(error) if error.is_doubtful() => self.doubts.start = Some(run),
            _ => {}
        }
        self.check_taken(stored?.pop().unwrap_or_default(), run)
    }

    fn checkpoint(
        &mut self,
        run: RunId,
        calls: u32,
        of: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let replace = "INSERT INTO checkpoints (job, calls, calls_total, bytes) \
                           SELECT id, $1, $2, $3 FROM jobs \
                           WHERE id = $4 AND epoch = $5 AND ended IS NULL \
                       ON CONFLICT (job) DO UPDATE SET calls = excluded.calls, \
                           calls_total = excluded.calls_total, bytes = excluded.bytes";
        let (calls_value, of_value) = (i64::from(calls).into(), i64::from(of).into());
        let epoch = i64::from(run.epoch.0).into();
        let values = [calls_value, of_value, bytes.to_vec().into(), key(run.job), epoch];
        let what = format_args!("the checkpoint of {run} after call {calls} of {of}");
        let replace = Statement::new(replace, values);
        let mut rows = self.database.change(Durable::Later, &what, vec![replace])?;
        self.check_taken(rows.pop().unwrap_or_default(), run)
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
        let update = "UPDATE jobs SET wire = $1, release = $2, ended = $3, events = $4, \
                          image = $5, stage = $6 \
                      WHERE id = $7 AND ended IS NULL";
        let values = [
            i64::from(Version::newest().number()).into(),
            RELEASE.into(),
            integer(now),
            events.into(),
            image.to_vec().into(),
            stage.name().into(),
            key(job),
        ];
        let done = Statement::new("DELETE FROM checkpoints WHERE job = $1", [key(job)]);
        let update = Statement::new(update, values);
        let stored = self.database.change(Durable::Now, &what, vec![done, update]);
        let again = self.doubts.finish == Some(job);
        match &stored {
            Ok(_) if again => self.doubts.finish = None,
            Err(error) if error.is_doubtful() => self.doubts.finish = Some(job),
            _ => {}
        }
        // One that may have been stored is, then.
        if stored?.pop() == Some(0) && !again {
            return Err(StoreError::NotUnfinished(job));
        }
        Ok(())
    }

    fn outcome(&self, job: JobId) -> Result<Option<Outcome>, StoreError> {
        let select = Statement::new("SELECT * FROM jobs WHERE id = $1", [key(job)]);
        let what = format_args!("the end of {job}");
        self.row(&what, select, written::outcome).map(Option::flatten)
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
        let old = "DELETE FROM jobs WHERE ended < $1 \
                      OR (ended IS NULL AND wire NOT BETWEEN $2 AND $3 AND accepted < $1)";
        let many = "DELETE FROM jobs WHERE id IN (SELECT id FROM ( \
                        SELECT id, sum(length(image)) OVER (ORDER BY ended DESC, id DESC) AS kept \
                        FROM jobs WHERE ended IS NOT NULL) AS sizes WHERE kept > $1)";
        let known = [Version::OLDEST, Version::newest()].map(|version| version.number());
        let [oldest, newest] = known.map(|wire| i64::from(wire).into());
        let old = Statement::new(old, [integer(time), oldest, newest]);
        let many = Statement::new(many, [integer(image_bytes_max)]);
        let what = "what is forgotten";
        let forgotten = self.database.change(Durable::Later, &what, vec![old, many])?;
        Ok(forgotten.into_iter().filter_map(|rows| usize::try_from(rows).ok()).sum())
    }
}

fn encode<M: Serialize>(what: &dyn Display, message: &M) -> Result<Vec<u8>, StoreError> {
    let body = Version::newest().speak(|| encode_body(message));
    body.map_err(|cause| StoreError::Unencodable { what: what.to_string(), cause })
}

fn damaged(database: &dyn Database, misread: Misread) -> StoreError {
    StoreError::Damaged { place: database.place().to_owned(), cause: misread.to_string() }
}

/// A job's number as databases have it; one that is too high for them is nobody's.
fn key(job: JobId) -> Value {
    Value::Integer(i64::try_from(job.0).unwrap_or(-1))
}

/// A number as databases have it.
fn integer(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}
