//! When a job's ranks did what.

use super::{BandView, LinkView, Phase, Profile};
use serde::{Deserialize, Serialize};

/// What is known of when a job's ranks did what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobTrace {
    /// When the first of its runs began by the coordinator's clock, in microseconds since 1970.
    pub start_us: u64,
    /// Its runs, in order: one, unless it broke off.
    pub runs: Vec<RunTrace>,
    /// Of one in so many calls the stretches that profiles tell of are there: there was no room for more.
    pub detail_every: u32,
    /// Calls of ranks that there was no room for at all.
    pub left_out: u64,
}

/// What is known of when the ranks of a run did what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunTrace {
    /// Who rendered which rows.
    pub bands: Vec<BandView>,
    /// Over what its ranks exchanged.
    pub links: Vec<LinkView>,
    /// What ranks reported of their phases and calls, in the order in which they did.
    pub parts: Vec<PartTrace>,
    /// Where ranks' time went, if the job asked for it.
    pub profiles: Vec<(u16, Profile)>,
}

/// How one rank spent a phase of a run, or one call of it, as far as every job tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTrace {
    /// The rank.
    pub rank: u16,
    /// The phase.
    pub phase: Phase,
    /// The call, while denoising; else 0.
    pub call: u32,
    /// Whether peers' values were one call old, or older.
    pub displaced: bool,
    /// When its report reached the coordinator, in microseconds after [`JobTrace::start_us`].
    pub end_us: u64,
    /// How long it took by the rank's own clock, in microseconds.
    pub took_us: u64,
    /// How much of it the compute thread waited for peers.
    pub waited_us: u64,
    /// Bytes posted to peers in it.
    pub posted_bytes: u64,
}
