//! What became of jobs that ended, without their images.

use super::{Asked, Store, StoreError, Written, key, natural};
use protocol::message::{Event, JobStage};
use protocol::{FaultKind, JobId};
use rusqlite::{OptionalExtension, Row, params_from_iter, types::Value};

/// A job that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedJob {
    /// Its number.
    pub job: JobId,
    /// What it was accepted as.
    pub asked: Asked,
    /// When it was accepted, in unix seconds.
    pub accepted: u64,
    /// When its first run started; None if it never had workers.
    pub started: Option<u64>,
    /// When it ended.
    pub ended: u64,
    /// What a client that comes back is told.
    pub events: Vec<Event>,
}

/// All that is read of a job but its image, which is long.
const COLUMNS: &str = "id, wire, release, accepted, started, ended, seed, request, owner, priority, \
                       once, events";

impl Store {
    pub(super) fn read_ended(&self, job: JobId) -> Result<Option<EndedJob>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1 AND ended IS NOT NULL");
        let read = self.connection.query_row(&select, [key(job)], ended_job).optional();
        let what = format_args!("the end of {job}");
        read.map(Option::flatten).map_err(|error| self.failed(&what, &error))
    }

    pub(super) fn list_ended(
        &self,
        before: Option<JobId>,
        stages: &[JobStage],
        limit: usize,
    ) -> Result<Vec<EndedJob>, StoreError> {
        let places = vec!["?"; stages.len()].join(", ");
        let select = format!(
            "SELECT {COLUMNS} FROM jobs \
             WHERE ended IS NOT NULL AND id < ? AND stage IN ({places}) ORDER BY id DESC"
        );
        let mut values = vec![Value::Integer(before.map_or(i64::MAX, key))];
        values.extend(stages.iter().map(|stage| Value::Text(stage.name().to_owned())));
        let read = || {
            let mut statement = self.connection.prepare(&select)?;
            let jobs = statement.query_map(params_from_iter(values), ended_job)?;
            // Those that cannot be read do not count.
            jobs.filter_map(Result::transpose).take(limit).collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.failed(&"the jobs that ended", &error))
    }
}

/// The job of a row; None if another release wrote it.
fn ended_job(row: &Row<'_>) -> rusqlite::Result<Option<EndedJob>> {
    let written = Written::of(row, "ended")?;
    let (Ok(asked), events) = (written.asked(row)?, row.get::<_, Vec<u8>>("events")?) else {
        return Ok(None);
    };
    let Ok(events) = written.decode(&events) else { return Ok(None) };
    Ok(Some(EndedJob {
        job: written.job,
        asked,
        accepted: natural(row.get("accepted")?),
        started: row.get::<_, Option<i64>>("started")?.map(natural),
        ended: natural(row.get("ended")?),
        events,
    }))
}

/// At which stage the last of a job's events leaves it.
pub(super) fn stage_of(events: &[Event]) -> JobStage {
    match events.last() {
        Some(Event::Finished { .. }) => JobStage::Finished,
        Some(Event::Failed { fault }) if fault.kind == FaultKind::Cancelled => JobStage::Cancelled,
        _ => JobStage::Failed,
    }
}
