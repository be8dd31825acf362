//! What a row means, if this release can read it.

use super::database::{Misread, Row};
use super::{Asked, Outcome, StoredCheckpoint, StoredJob, StoredRun};
use bytes::Bytes;
use protocol::codec::decode_body;
use protocol::job::{JobRequest, JobSpec};
use protocol::message::Event;
use protocol::plan::Plan;
use protocol::{Epoch, Fault, FaultKind, JobId, RELEASE, Version};
use serde::de::DeserializeOwned;
use std::fmt::Display;

/// Who wrote a row.
pub(super) struct Written {
    pub(super) job: JobId,
    wire: u16,
    release: String,
    /// What that release did with the job.
    did: &'static str,
}

impl Written {
    /// Of a row of jobs.
    pub(super) fn of(row: &mut Row, did: &'static str) -> Result<Self, Misread> {
        Ok(Self { job: row.job()?, wire: row.take("wire")?, release: row.take("release")?, did })
    }

    /// What its job was accepted as.
    pub(super) fn asked(&self, row: &mut Row) -> Result<Result<Asked, Fault>, Misread> {
        let (request, priority): (Vec<u8>, String) = (row.take("request")?, row.take("priority")?);
        let read = self.decode(&request).and_then(|request| {
            Ok((request, priority.parse().map_err(|error| self.unreadable(&error))?))
        });
        let (request, priority) = match read {
            Ok(read) => read,
            Err(fault) => return Ok(Err(fault)),
        };
        let seed = row.take::<i64>("seed")?.cast_unsigned();
        let (owner, idempotency_key) = (row.take("owner")?, row.take("once")?);
        Ok(Ok(Asked { request, seed, owner, priority, idempotency_key }))
    }

    /// What the bytes mean, if they are of a wire version that this release knows.
    pub(super) fn decode<M: DeserializeOwned>(&self, bytes: &[u8]) -> Result<M, Fault> {
        let Some(version) = Version::of(self.wire) else {
            let (oldest, newest) = (Version::OLDEST, Version::newest());
            let why = format!("its wire version is {}, not one of {oldest} to {newest}", self.wire);
            return Err(self.unreadable(&why));
        };
        version.speak(|| decode_body(bytes)).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, why: &dyn Display) -> Fault {
        let Self { job, release, did, .. } = self;
        let cause = format!(
            "{job} was {did} by release {release} and cannot be read by {RELEASE}: {why}; serve its \
             folder with release {release}, or submit it again"
        );
        Fault::new(FaultKind::VersionMismatch, cause)
    }

    /// The last run of its job, if it had one.
    fn run(&self, row: &mut Row) -> Result<Result<Option<StoredRun>, Fault>, Misread> {
        let Some(spec) = row.take::<Option<Vec<u8>>>("spec")? else { return Ok(Ok(None)) };
        let plan = row.take::<Option<Vec<u8>>>("plan")?;
        let (epoch, model) = (Epoch(row.take("epoch")?), row.take("model")?);
        let decoded = self.decode::<JobSpec>(&spec).and_then(|spec| {
            let plan = plan.map(|plan| self.decode::<Plan>(&plan)).transpose()?;
            Ok(Some(StoredRun { epoch, model, spec, plan }))
        });
        Ok(decoded)
    }

    /// The job of a row that has its checkpoint, too.
    pub(super) fn stored_job(&self, mut row: Row) -> Result<Result<StoredJob, Fault>, Misread> {
        let asked = self.asked(&mut row)?;
        let run = self.run(&mut row)?;
        let (asked, run) = match asked.and_then(|asked| Ok((asked, run?))) {
            Ok(read) => read,
            Err(fault) => return Ok(Err(fault)),
        };
        let checkpoint = match row.take::<Option<Vec<u8>>>("bytes")? {
            Some(bytes) => Some(StoredCheckpoint {
                calls: row.take("calls")?,
                of: row.take("calls_total")?,
                bytes: bytes.into(),
            }),
            None => None,
        };
        let (accepted, started) = (row.take("accepted")?, row.take("started")?);
        Ok(Ok(StoredJob { job: self.job, accepted, started, asked, run, checkpoint }))
    }
}

/// How the job of a row ended, or that it cannot be read.
pub(super) fn outcome(mut row: Row) -> Result<Option<Outcome>, Misread> {
    let unreadable = |ended, fault| {
        let (events, image) = (vec![Event::Failed { fault }], Bytes::new());
        Some(Outcome { ended, events, image })
    };
    let Some(ended) = row.take::<Option<u64>>("ended")? else {
        let written = Written::of(&mut row, "accepted")?;
        let request: Vec<u8> = row.take("request")?;
        let read = written.decode::<JobRequest>(&request);
        let accepted = row.take("accepted")?;
        return Ok(read.err().and_then(|fault| unreadable(accepted, fault)));
    };
    let events: Vec<u8> = row.take("events")?;
    Ok(match Written::of(&mut row, "ended")?.decode(&events) {
        Ok(events) => {
            let image = Bytes::from(row.take::<Vec<u8>>("image")?);
            Some(Outcome { ended, events, image })
        }
        Err(fault) => unreadable(ended, fault),
    })
}
