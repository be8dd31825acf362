//! What became of jobs that ended, without their images.

use super::database::{Misread, Row, Statement, Value};
use super::written::Written;
use super::{Asked, Store, StoreError, key};
use protocol::message::{Event, JobStage};
use protocol::{FaultKind, JobId};
use std::fmt::Write;

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
        let select = format!("SELECT {COLUMNS} FROM jobs WHERE id = $1 AND ended IS NOT NULL");
        let what = format_args!("the end of {job}");
        let read = self.row(&what, Statement::new(&select, [key(job)]), ended_job);
        read.map(|row| row.and_then(|(_, ended)| ended))
    }

    pub(super) fn list_ended(
        &self,
        before: Option<JobId>,
        stages: &[JobStage],
        limit: usize,
    ) -> Result<Vec<EndedJob>, StoreError> {
        if stages.is_empty() {
            return Ok(Vec::new());
        }
        let mut select = format!(
            "SELECT {COLUMNS} FROM jobs WHERE ended IS NOT NULL AND id < $1 AND stage IN ("
        );
        for place in 2..stages.len() + 2 {
            let comma = if place == 2 { "" } else { ", " };
            write!(select, "{comma}${place}").ok(); // into a string, which takes all
        }
        write!(select, ") ORDER BY id DESC LIMIT ${}", stages.len() + 2).ok();
        let mut before = before.map_or(Value::Integer(i64::MAX), key);
        let mut jobs = Vec::new();
        // Those that cannot be read do not count.
        while jobs.len() < limit {
            let missing = limit - jobs.len();
            let mut values = vec![before];
            values.extend(stages.iter().map(|stage| stage.name().into()));
            values.push(i64::try_from(missing).unwrap_or(i64::MAX).into());
            let select = Statement::new(&select, values);
            let rows = self.rows(&"the jobs that ended", select, ended_job)?;
            let last = rows.last().map(|(job, _)| *job).filter(|_| rows.len() == missing);
            jobs.extend(rows.into_iter().filter_map(|(_, ended)| ended));
            let Some(last) = last else { break };
            before = key(last);
        }
        Ok(jobs)
    }
}

/// The job of a row; None if another release wrote it.
fn ended_job(mut row: Row) -> Result<(JobId, Option<EndedJob>), Misread> {
    let written = Written::of(&mut row, "ended")?;
    let job = written.job;
    let (asked, events) = (written.asked(&mut row)?, row.take::<Vec<u8>>("events")?);
    let Ok((asked, events)) = asked.and_then(|asked| Ok((asked, written.decode(&events)?))) else {
        return Ok((job, None));
    };
    let (accepted, started) = (row.take("accepted")?, row.take("started")?);
    Ok((job, Some(EndedJob { job, asked, accepted, started, ended: row.take("ended")?, events })))
}

/// At which stage the last of a job's events leaves it.
pub(super) fn stage_of(events: &[Event]) -> JobStage {
    match events.last() {
        Some(Event::Finished { .. }) => JobStage::Finished,
        Some(Event::Failed { fault }) if fault.kind == FaultKind::Cancelled => JobStage::Cancelled,
        _ => JobStage::Failed,
    }
}
