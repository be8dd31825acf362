//! How activations reach a peer: one file per fabric, nearest first, behind one narrow trait.
//!
//! The promise, kept by every fabric and checked by one conformance suite:
//! - **L-1 whole**: a slot's value lands whole or not at all.
//! - **L-2 once**: at most once.
//! - **L-3 forward**: never after a newer version of itself.
//! - **L-4 epoch**: never from an older epoch.
//!
//! None promises when. A ledger at either end holds the fabrics to it, and to the slot table.
//!
//! Links end in two ways. A rank that has finished drops its links: what it posted still reaches
//! its peers, who then find the link closed. A run that is aborted hangs up: its links close at
//! once ([`Hangup`]).

pub mod connection;
pub mod endpoint;
pub mod enrol;
mod hangup;
mod incoming;
mod ledger;
pub mod memory;
pub mod quic;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod shm;
pub mod stream;
pub mod tcp;

pub use endpoint::{Doors, Endpoint, EndpointError, RdmaWish};
pub use enrol::enrol;
pub use hangup::Hangup;
pub use ledger::{LinkSpec, VERSIONS_MAX};

use crate::fault::{Fault, FaultKind};
use crate::id::{Call, Rank, Slot};
use bytes::Bytes;
use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long all links of a run may take to open: a start message may reach the last worker some
/// seconds after the first one, and a peer that is not there by then will not come.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a TLS handshake may take: two round trips, and some for a host that is busy loading.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a caller whose run this worker has not been told of is kept: as long as it waits.
pub const PARKED_FOR: Duration = OPEN_DEADLINE;

/// How many such callers are kept: one run's, since a worker renders one at a time.
pub const PARKED_MAX: usize = crate::plan::RANKS_MAX;

/// How many callers may be connected that have not said hello yet.
pub const STRANGERS_MAX: usize = 2 * crate::plan::RANKS_MAX;

/// How long a dropped link goes on sending what was posted, and receiving what nobody reads. It
/// must outlast the time by which ranks of one run may finish apart: two calls of a large image.
pub const LINGER: Duration = Duration::from_secs(120);

/// The links of one rank to all of its peers in one run, in rank order.
pub type Links = Vec<(Rank, Box<dyn Link>)>;

/// Both directions between this rank and one peer.
pub trait Link: fmt::Debug + Send {
    /// Sends `bytes` as the value of `slot` computed in `call`. Returns at once. The bytes are shared
    /// with whoever else is sent them, not copied.
    ///
    /// A post to a peer that has closed its side is void and no error: a peer that has finished
    /// misses nothing, and whoever waits for one that died learns it from [`Self::poll_landed`].
    ///
    /// # Errors
    /// If the link broke, or the post is one that this link does not carry: an unknown slot,
    /// another length, an old call, or a version that the peer cannot be ready for.
    fn post(&mut self, slot: Slot, call: Call, bytes: Bytes) -> Result<(), LinkError>;

    /// The next value that landed from the peer.
    ///
    /// # Errors
    /// If the peer is gone, once everything that landed before was polled, or if it broke the
    /// promise. From then on always the same error.
    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Landed, LinkError>>;
}

/// A value that landed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landed {
    /// Where.
    pub slot: Slot,
    /// The call it was computed in.
    pub call: Call,
    /// The value.
    pub bytes: Bytes,
}

/// Why a link no longer carries values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the link or died.
    #[error("{peer} closed its link{}", because(.cause))]
    Closed {
        /// The peer.
        peer: Rank,
        /// What the fabric said, if anything.
        cause: String,
    },
    /// The peer sent what it may not send.
    #[error("{peer} broke the protocol: {cause}")]
    Protocol {
        /// The peer.
        peer: Rank,
        /// What it did.
        cause: String,
    },
    /// This rank posted what the link does not carry.
    #[error("cannot post to {peer}: {cause}")]
    Unposted {
        /// The peer.
        peer: Rank,
        /// What is wrong with the post.
        cause: String,
    },
    /// Links of a run did not come to be.
    #[error("no link with {}: {cause}", names(.peers))]
    Unopened {
        /// All the peers, as far as it was tried.
        peers: Vec<Rank>,
        /// What became of the first.
        cause: String,
    },
    /// One of the two refused the link to the other.
    #[error("no link with {peer}: {fault}")]
    Refused {
        /// The peer.
        peer: Rank,
        /// Why.
        fault: Fault,
    },
}

impl LinkError {
    /// The peers with which links did not come to be.
    #[must_use]
    pub fn unopened(&self) -> &[Rank] {
        if let Self::Unopened { peers, .. } = self { peers } else { &[] }
    }
}

impl From<&LinkError> for Fault {
    fn from(error: &LinkError) -> Self {
        let (kind, peer) = match error {
            LinkError::Closed { peer, .. } => (FaultKind::PeerLost, Some(peer)),
            LinkError::Protocol { peer, .. } => (FaultKind::Protocol, Some(peer)),
            LinkError::Unposted { peer, .. } => (FaultKind::PlanMismatch, Some(peer)),
            LinkError::Unopened { peers, .. } => (FaultKind::PeerLost, peers.first()),
            LinkError::Refused { peer, fault } => (fault.kind, Some(peer)),
        };
        Self { peer: peer.copied(), ..Self::new(kind, error.to_string()) }
    }
}

fn names(peers: &[Rank]) -> String {
    let names: Vec<String> = peers.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn because(cause: &str) -> String {
    if cause.is_empty() { String::new() } else { format!(": {cause}") }
}
