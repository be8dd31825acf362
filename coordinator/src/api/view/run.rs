//! How a job is rendered, as JSON.

use super::FaultBody;
use crate::api::schema;
use protocol::job::{
    Decode, GnVariance, JobSpec, Lora, Mode, Parallelism, Scheduler, Warmup, Wire,
};
use protocol::message::{BandView, RecoveryView, WaitView};
use protocol::plan::Branch;
use protocol::plan::netcheck::LinkFigures;
use serde::Serialize;
use utoipa::ToSchema;

/// What is rendered, every default settled.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Spec {
    prompt: String,
    negative: Option<String>,
    width: u32,
    height: u32,
    steps: u32,
    guidance: f32,
    seed: u64,
    #[schema(schema_with = schema::scheduler)]
    scheduler: Scheduler,
    #[schema(schema_with = schema::warmup)]
    warmup: Warmup,
    #[schema(schema_with = schema::parallelism)]
    parallelism: Parallelism,
    #[schema(schema_with = schema::mode)]
    mode: Mode,
    #[schema(schema_with = schema::gn_variance)]
    gn_variance: GnVariance,
    #[schema(schema_with = schema::wire)]
    wire: Wire,
    #[schema(schema_with = schema::decode)]
    decode: Decode,
    /// What is added to the model.
    loras: Vec<AddedLora>,
    /// The picture that it begins with.
    init: Option<Begun>,
}

/// A LoRA file's changes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddedLora {
    /// Hex blake3 of the file.
    file: String,
    /// What people call it.
    name: String,
    /// What they are multiplied by.
    scale: f32,
}

/// A picture to begin with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Begun {
    /// Hex blake3 of the file.
    file: String,
    /// How much of it is changed, up to 1.
    strength: f32,
}

/// Who renders which rows.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Band {
    rank: u16,
    /// The worker's name.
    worker: String,
    /// What it computes of guidance's two predictions.
    #[schema(schema_with = schema::branch)]
    branch: Branch,
    /// First image row.
    top: u32,
    /// Image rows.
    rows: u32,
}

/// A job that broke off and went on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Recovery {
    /// Why it broke off.
    fault: FaultBody,
    /// Model calls that were done.
    broke_at: u32,
    /// Model calls that were kept.
    resumed_at: u32,
    /// Seconds from when that was noticed to the new start.
    seconds: f64,
    /// Workers before and after.
    workers: [u16; 2],
    /// Whether the image is still the one that an undisturbed run gives, bit for bit.
    exact: bool,
}

/// What one rank waited for its peers, and what memory it took.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Wait {
    rank: u16,
    /// The worker's name.
    worker: String,
    /// Seconds its compute thread waited for peers.
    seconds: f64,
    /// Bytes it posted to peers.
    posted_bytes: u64,
    /// The most memory that was resident in its process; 0 where its system does not tell.
    peak_bytes: u64,
}

/// What was measured of a link.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Figures {
    /// From a post to its landing, of a value of few bytes, in microseconds.
    latency_us: f64,
    /// Bytes a second that landed while as many were sent.
    bytes_per_second: f64,
}

impl From<&Lora> for AddedLora {
    fn from(lora: &Lora) -> Self {
        let Lora { file, name, scale } = lora;
        Self { file: file.to_string(), name: name.clone(), scale: *scale }
    }
}

impl From<&JobSpec> for Spec {
    fn from(spec: &JobSpec) -> Self {
        Self {
            prompt: spec.prompt.clone(),
            negative: spec.negative.clone(),
            width: spec.width,
            height: spec.height,
            steps: spec.steps,
            guidance: spec.guidance,
            seed: spec.seed,
            scheduler: spec.scheduler,
            warmup: spec.warmup,
            parallelism: spec.parallelism,
            mode: spec.mode,
            gn_variance: spec.gn_variance,
            wire: spec.wire,
            decode: spec.decode,
            loras: spec.loras.iter().map(AddedLora::from).collect(),
            init: spec
                .init
                .as_ref()
                .map(|init| Begun { file: init.file.to_string(), strength: init.strength }),
        }
    }
}

impl From<&BandView> for Band {
    fn from(band: &BandView) -> Self {
        let BandView { rank, worker, branch, top, rows } = band.clone();
        Self { rank, worker, branch, top, rows }
    }
}

impl From<&RecoveryView> for Recovery {
    fn from(recovery: &RecoveryView) -> Self {
        let RecoveryView { fault, broke_at, resumed_at, seconds, workers, exact } = recovery;
        Self {
            fault: FaultBody::from(fault),
            broke_at: *broke_at,
            resumed_at: *resumed_at,
            seconds: *seconds,
            workers: *workers,
            exact: *exact,
        }
    }
}

impl From<&WaitView> for Wait {
    fn from(wait: &WaitView) -> Self {
        let WaitView { rank, worker, seconds, posted_bytes, peak_bytes } = wait.clone();
        Self { rank, worker, seconds, posted_bytes, peak_bytes }
    }
}

impl From<&LinkFigures> for Figures {
    fn from(figures: &LinkFigures) -> Self {
        let LinkFigures { latency_us, bytes_per_second } = *figures;
        Self { latency_us, bytes_per_second }
    }
}
