//! Messages on a link between two ranks of a run.

use crate::fault::Fault;
use crate::id::{Call, Epoch, Rank, RunId, Site};
use crate::plan::Digest;
use serde::{Deserialize, Serialize};

/// The first message on a link, from the higher rank to the lower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// [`crate::LINK_VERSION`] of the caller.
    pub wire: u16,
    /// The run this link is for.
    pub run: RunId,
    /// The caller's rank.
    pub from: Rank,
    /// The rank it means to reach.
    pub to: Rank,
    /// The caller's digest of plan, sites and slots.
    pub digest: Digest,
}

/// The answer to [`PeerHello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerAnswer {
    /// The link is open.
    Welcome,
    /// It is not, and why.
    Refused(Fault),
}

/// What stands before the bytes of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataHead {
    /// The epoch it was computed in; another one's data never land.
    pub epoch: Epoch,
    /// The exchange point.
    pub site: Site,
    /// The call it was computed in.
    pub call: Call,
}
