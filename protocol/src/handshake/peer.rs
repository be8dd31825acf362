//! The handshake between two ranks of one run: the higher rank calls the lower one.

use crate::codec::{decode_body, decode_start};
use crate::fault::{Fault, FaultKind};
use crate::id::{Rank, RunId};
use crate::message::{PeerAnswer, PeerHello};
use crate::plan::{Digest, Plan, SiteSpec};
use crate::transport::LinkError;
use crate::{LINK_VERSION, RELEASE};
use std::collections::BTreeSet;

/// What is made of a caller's first message on a link.
///
/// # Errors
/// The fault to refuse the caller with: a version other than ours, or no [`PeerHello`] at all.
pub fn read_peer_hello(body: &[u8]) -> Result<PeerHello, Fault> {
    let not_understood = |error| {
        Fault::new(FaultKind::Protocol, format!("no greeting of a Tessera worker: {error}"))
    };
    let (wire, _) = decode_start::<u16>(body).map_err(not_understood)?;
    if wire != LINK_VERSION {
        return Err(Fault::new(
            FaultKind::VersionMismatch,
            format!(
                "the calling worker's links are of version {wire}, this one's of {LINK_VERSION} (release \
                 {RELEASE}): install the same release on both"
            ),
        ));
    }
    decode_body(body).map_err(not_understood)
}

/// One rank's handshakes with all of its peers in one run.
#[derive(Clone, Debug)]
pub struct PeerHandshake {
    run: RunId,
    own: Rank,
    digest: Digest,
    missing: BTreeSet<Rank>,
}

impl PeerHandshake {
    /// For `own` in `plan`, with a model that has these `sites`.
    #[must_use]
    pub fn new(plan: &Plan, sites: &[SiteSpec], own: Rank) -> Self {
        let missing = plan.ranks().filter(|peer| *peer != own).collect();
        Self { run: plan.run, own, digest: Digest::new(plan, sites), missing }
    }

    /// The run it is for.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The lower ranks, which this rank calls.
    pub fn to_call(&self) -> impl Iterator<Item = Rank> {
        self.missing.iter().copied().filter(|peer| *peer < self.own)
    }

    /// The ranks that there is no link with yet.
    #[must_use]
    pub fn missing(&self) -> &BTreeSet<Rank> {
        &self.missing
    }

    /// What this rank says to the peer it calls.
    #[must_use]
    pub fn hello(&self, to: Rank) -> PeerHello {
        let Self { run, own: from, digest, .. } = *self;
        PeerHello { wire: LINK_VERSION, run, from, to, digest }
    }

    /// What became of a call: on a welcome the peer is linked.
    ///
    /// # Errors
    /// The peer's refusal.
    pub fn answered(&mut self, peer: Rank, answer: PeerAnswer) -> Result<(), LinkError> {
        match answer {
            PeerAnswer::Welcome => {
                self.missing.remove(&peer);
                Ok(())
            }
            PeerAnswer::Refused(fault) => Err(LinkError::Refused { peer, fault }),
        }
    }

    /// Decides about a caller; on Ok it is linked and gets [`PeerAnswer::Welcome`].
    ///
    /// # Errors
    /// The fault to refuse it with. [`FaultKind::PlanMismatch`] means that this run cannot
    /// succeed; any other that the caller is nobody this rank waits for.
    pub fn admit(&mut self, hello: &PeerHello) -> Result<Rank, Fault> {
        let Self { run, own, digest, .. } = *self;
        let refuse = |kind, cause| Err(Fault::new(kind, cause).on(own));
        if hello.run != run || hello.to != own {
            let (to, asked) = (hello.to, hello.run);
            let cause = format!("{to} of {asked} was called, but this is {own} of {run}");
            return refuse(FaultKind::Protocol, cause);
        }
        if hello.digest != digest {
            let (from, theirs) = (hello.from, hello.digest);
            let cause = format!(
                "{from} and {own} of {run} disagree about plan or model: digests {theirs} and \
                 {digest}"
            );
            return refuse(FaultKind::PlanMismatch, cause);
        }
        if hello.from <= own || !self.missing.contains(&hello.from) {
            let cause = format!("{own} of {run} waits for no call from {}", hello.from);
            return refuse(FaultKind::Protocol, cause);
        }
        self.missing.remove(&hello.from);
        Ok(hello.from)
    }
}
