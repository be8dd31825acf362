//! Where a compute thread's time goes.

use super::Phase;
use crate::id::Rank;
use serde::{Deserialize, Serialize};

/// What a stretch of time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Work {
    /// Convolutions.
    Convolution,
    /// Linear layers.
    Linear,
    /// Attention, without its projections.
    Attention,
    /// Group and layer norms, with what is fused into them.
    Norm,
    /// Activations and sums that are not part of another layer.
    Pointwise,
    /// Values brought to another place.
    Copy,
    /// Waiting for a peer.
    Wait(Rank),
}

/// A stretch of one kind of work. Stretches of a profile do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub work: Work,
    /// When it began, in microseconds after the profile's start.
    pub start_us: u32,
    /// How long it took, in microseconds.
    pub took_us: u32,
}

/// How one rank spent a phase of a run, or one call of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The phase.
    pub phase: Phase,
    /// The call, while denoising; else 0.
    pub call: u32,
    /// Whether peers' values were one call old, or older.
    pub displaced: bool,
    /// When it began by the clock of the rank's machine, in microseconds since 1970.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// What was done in it.
    pub spans: Vec<Span>,
    /// Bytes posted to each peer over the link to it: none for those that NCCL reaches.
    pub posted: Vec<(Rank, u64)>,
}
