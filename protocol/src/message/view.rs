//! The cluster, its workers and jobs as people see them.

use crate::fault::Fault;
use crate::id::{JobId, Rank, WorkerId};
use crate::identity::Fingerprint;
use crate::job::ModelCard;
use crate::plan::netcheck::LinkFigures;
use crate::plan::{Branch, Fabric};
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
