//! The cluster, its workers and jobs as people see them.

use crate::fault::Fault;
use crate::id::{JobId, Rank, WorkerId};
use crate::identity::Fingerprint;
use crate::job::{JobRequest, JobSpec, ModelCard, Priority};
use crate::plan::netcheck::LinkFigures;
use crate::plan::{Branch, Fabric, Geometry, Kind};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One band of a running job, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BandView {
    /// The rank.
    pub rank: u16,
    /// The worker's name.
    pub worker: String,
    /// What it computes of guidance's two predictions.
    pub branch: Branch,
    /// First image row.
    pub top: u32,
    /// Image rows.
    pub rows: u32,
}

/// A job that broke off and went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryView {
    /// Why it broke off.
    pub fault: Fault,
    /// Model calls that were done.
    pub broke_at: u32,
    /// Model calls that were kept: it went on with the next.
    pub resumed_at: u32,
    /// Seconds from when that was noticed to the new start.
    pub seconds: f64,
    /// Workers before and after.
    pub workers: [u16; 2],
    /// Whether the image is still the one that an undisturbed run gives, bit for bit.
    pub exact: bool,
}

/// What one rank waited for its peers in a job, and what memory it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitView {
    /// The rank.
    pub rank: u16,
    /// The worker's name.
    pub worker: String,
    /// Seconds its compute thread waited for peers.
    pub seconds: f64,
    /// Bytes it posted to peers.
    pub posted_bytes: u64,
    /// The most memory that was resident in its process during the job; 0 where its system does not tell.
    pub peak_bytes: u64,
}

/// What a rank exchanged with its peers in a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes that it posted, by what they are and over which fabric: each pair once.
    pub posted: Vec<(Fabric, Kind, u64)>,
    /// How many values that peers sent over links it read: of this call, and of an earlier one.
    pub read: [u64; 2],
}

impl Traffic {
    /// Bytes that it posted.
    #[must_use]
    pub fn posted_bytes(&self) -> u64 {
        self.posted.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// So many more bytes are posted.
    pub fn post(&mut self, fabric: Fabric, kind: Kind, bytes: u64) {
        match self.posted.iter_mut().find(|known| (known.0, known.1) == (fabric, kind)) {
            Some((_, _, posted)) => *posted += bytes,
            None => self.posted.push((fabric, kind, bytes)),
        }
    }
}

/// The cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The coordinator's release.
    pub release: String,
    /// Seconds since it started.
    pub up_seconds: u64,
    /// The model its workers hold; None while there are none.
    pub model: Option<ModelCard>,
    /// Its workers, in the order they joined.
    pub workers: Vec<WorkerView>,
    /// Over what each pair of workers would exchange; of the first [`crate::plan::RANKS_MAX`] workers.
    pub pairs: Vec<PairView>,
    /// Running and queued jobs, in the order they will be rendered.
    pub jobs: Vec<JobView>,
}

/// One worker, as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its number.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// Compute threads.
    pub threads: u16,
    /// The instruction set its kernels run on.
    pub kernels: String,
    /// Resident memory, in bytes, as last reported.
    pub resident_bytes: u64,
    /// Latent pixels a second of one prediction: measured when it joined, corrected by each job.
    pub speed: u64,
    /// The job and rank it renders.
    pub busy: Option<(JobId, Rank)>,
    /// Whether it gets no more work and leaves.
    pub draining: bool,
    /// Which key it has, as `coordinator revoke` takes it; None in a cluster without identities.
    pub identity: Option<Fingerprint>,
}

/// One job, as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// The first words of its prompt.
    pub prompt: String,
    /// Model calls done and in all; None while it is queued.
    pub progress: Option<(u32, u32)>,
    /// Why it is broken off, if it is.
    pub interrupted: Option<Fault>,
    /// Who renders which rows; none while it is queued.
    pub bands: Vec<BandView>,
    /// Why the work is shared this way; empty while it is queued.
    pub reason: String,
    /// Over what its ranks exchange; none while it is queued.
    pub links: Vec<LinkView>,
}

/// Over what two ranks of a job exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// The two ranks.
    pub ranks: [u16; 2],
    /// The fabric.
    pub fabric: Fabric,
}

/// Over what two workers would exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairView {
    /// The two workers.
    pub workers: [WorkerId; 2],
    /// The nearest fabric that both have; None if there is none.
    pub fabric: Option<Fabric>,
    /// Why none nearer.
    pub why: String,
    /// What was last measured of it.
    pub figures: Option<LinkFigures>,
}

/// Where a job is between its submission and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStage {
    /// It waits for its turn.
    Queued,
    /// It is rendered.
    Running,
    /// It broke off, and goes on once there are workers.
    Interrupted,
    /// Its image is there.
    Finished,
    /// It ended without an image.
    Failed,
    /// Someone asked for it to end.
    Cancelled,
}

impl JobStage {
    /// Every stage, in the order in which jobs go through them.
    pub const ALL: &[Self] = &[
        Self::Queued,
        Self::Running,
        Self::Interrupted,
        Self::Finished,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name for people and programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens to it.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

/// What became of a job, from its submission to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// Where it is.
    pub stage: JobStage,
    /// Whether it is rendered before others.
    pub priority: Priority,
    /// Who submitted it.
    pub owner: String,
    /// What was asked for.
    pub request: JobRequest,
    /// The seed, drawn if none was asked for.
    pub seed: u64,
    /// When it was accepted, in unix seconds.
    pub accepted: u64,
    /// When it was first given workers, in unix seconds.
    pub started: Option<u64>,
    /// When it ended, in unix seconds.
    pub ended: Option<u64>,
    /// Jobs before it, while it waits.
    pub ahead: Option<u32>,
    /// What is rendered, every default settled; None before it was given workers.
    pub spec: Option<JobSpec>,
    /// The model's name, once it is known.
    pub model: Option<String>,
    /// The latent's shape, once it is known.
    pub geometry: Option<Geometry>,
    /// Model calls done and in all, while it is rendered.
    pub progress: Option<(u32, u32)>,
    /// Who renders which rows, or did last.
    pub bands: Vec<BandView>,
    /// Why the work is shared this way.
    pub reason: String,
    /// Why it is broken off, or ended without an image.
    pub fault: Option<Fault>,
    /// What is known of it once its image is there.
    pub result: Option<JobResult>,
}

/// How an image came to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// Mean wall-clock seconds per model call.
    pub seconds_per_step: f64,
    /// Seconds from the start of the run to the image.
    pub seconds: f64,
    /// What each rank waited for its peers.
    pub waits: Vec<WaitView>,
    /// Hex blake3 of the final latent, little-endian f32 [channels, rows, columns].
    pub latent: String,
    /// Model calls in which peers' values were one call old, or older.
    pub displaced_calls: u32,
    /// How often it broke off and went on.
    pub recoveries: Vec<RecoveryView>,
}

/// What is wanted of a job beside its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Nothing.
    Record,
    /// The last latent that is known while it is rendered, f32 [channels, rows, columns]; empty
    /// before the first.
    Latent,
    /// The finished image, RGB bytes [height, width, 3], 8 bits a channel; empty if there is none.
    Image,
    /// When its ranks did what so far, a [`JobTrace`](super::JobTrace) as the body of a frame is; empty if it was never
    /// given workers.
    Trace,
}
