//! A job as JSON.

mod run;

pub(crate) use run::{Band, Figures, Recovery, Spec, Wait};

use super::error;
use super::request::RequestBody;
use super::schema;
use protocol::Fault;
use protocol::job::{Field, Priority};
use protocol::message::{JobRecord, JobResult, JobStage};
use serde::Serialize;
use utoipa::ToSchema;

/// What became of a job, from its submission to its end.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Job {
    /// Its number.
    pub(crate) id: u64,
    /// Where it is between its submission and its end.
    #[schema(schema_with = schema::stage)]
    pub(crate) state: JobStage,
    /// Whether it is rendered before others.
    #[schema(schema_with = schema::priority)]
    priority: Priority,
    /// Who submitted it.
    owner: String,
    /// What was asked for, with the seed that was drawn if none was: sent again, it asks for the same image.
    request: RequestBody,
    /// The seed.
    seed: u64,
    /// When it was accepted, in unix seconds.
    accepted: u64,
    /// When it was first given workers, in unix seconds.
    started: Option<u64>,
    /// When it ended, in unix seconds.
    ended: Option<u64>,
    /// Jobs before it, while it waits.
    ahead: Option<u32>,
    /// What is rendered, every default settled; null before it was given workers.
    spec: Option<Spec>,
    /// The model's name, once it is known.
    model: Option<String>,
    /// How far it is, while it is rendered.
    progress: Option<Progress>,
    /// Who renders which rows, or did last.
    bands: Vec<Band>,
    /// Why the work is shared this way.
    reason: String,
    /// Why it is broken off, while it is.
    interrupted: Option<FaultBody>,
    /// Why it ended without an image.
    error: Option<FaultBody>,
    /// What is known of it once its image is there.
    result: Option<Outcome>,
    /// Where its image is, once it is there.
    image: Option<String>,
}

/// Model calls done, and in all.
#[derive(Debug, Serialize, ToSchema)]
struct Progress {
    call: u32,
    calls: u32,
}

/// Why something went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FaultBody {
    /// What programs tell faults apart by.
    kind: String,
    /// What a person needs to know.
    message: String,
    /// The field of the request that it is about, if that is one.
    param: Option<&'static str>,
    /// The rank it happened on, where one is known.
    rank: Option<u16>,
    /// The model call it happened in, where one is known.
    call: Option<u32>,
}

/// How an image came to be.
#[derive(Debug, Serialize, ToSchema)]
struct Outcome {
    /// Seconds from the start of the run to the image.
    seconds: f64,
    /// Mean seconds per model call.
    seconds_per_step: f64,
    /// Hex blake3 of the final latent, little-endian f32 [channels, rows, columns].
    latent: String,
    /// Model calls in which peers' values were one call old, or older.
    displaced_calls: u32,
    /// How often it broke off and went on.
    recoveries: Vec<Recovery>,
    /// What each rank waited for its peers.
    waits: Vec<Wait>,
}

/// Where a job's image is.
pub(crate) fn image_path(job: protocol::JobId) -> String {
    format!("/v1/jobs/{}/image", job.0)
}

impl From<&JobRecord> for Job {
    fn from(record: &JobRecord) -> Self {
        let fault = record.fault.as_ref().map(FaultBody::from);
        let (error, interrupted) = match record.stage {
            JobStage::Failed | JobStage::Cancelled => (fault, None),
            JobStage::Queued | JobStage::Running | JobStage::Interrupted | JobStage::Finished => {
                (None, fault)
            }
        };
        let progress = record.progress.map(|(call, calls)| Progress { call, calls });
        let image = (record.stage == JobStage::Finished).then(|| image_path(record.id));
        Self {
            id: record.id.0,
            state: record.stage,
            priority: record.priority,
            owner: record.owner.clone(),
            request: RequestBody::from(record),
            seed: record.seed,
            accepted: record.accepted,
            started: record.started,
            ended: record.ended,
            ahead: record.ahead,
            spec: record.spec.as_ref().map(Spec::from),
            model: record.model.clone(),
            progress,
            bands: record.bands.iter().map(Band::from).collect(),
            reason: record.reason.clone(),
            interrupted,
            error,
            result: record.result.as_ref().map(Outcome::from),
            image,
        }
    }
}

impl From<&Fault> for FaultBody {
    fn from(fault: &Fault) -> Self {
        Self {
            kind: error::code(fault.kind),
            message: fault.cause.clone(),
            param: fault.field.map(Field::path),
            rank: fault.rank.map(|rank| rank.0),
            call: fault.call.map(|call| call.0),
        }
    }
}

impl From<&JobResult> for Outcome {
    fn from(result: &JobResult) -> Self {
        Self {
            seconds: result.seconds,
            seconds_per_step: result.seconds_per_step,
            latent: result.latent.clone(),
            displaced_calls: result.displaced_calls,
            recoveries: result.recoveries.iter().map(Recovery::from).collect(),
            waits: result.waits.iter().map(Wait::from).collect(),
        }
    }
}
