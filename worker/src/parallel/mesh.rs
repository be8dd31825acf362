//! One rank's place among the others of a run: its links, what landed, what it waited.

use super::arena::Arena;
use crate::model::Result;
use crate::model::exchange::Moments;
use crate::model::nn::tensor;
use bytes::Bytes;
use candle_core::Tensor;
use protocol::job::GnVariance;
use protocol::plan::{Band, Plan, SiteSpec, Stage};
use protocol::transport::{Link, Links};
use protocol::{Call, Fault, FaultKind, Rank, Site, Slot};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The links of one rank, and what came over them.
#[derive(Debug)]
pub struct Mesh {
    rank: Rank,
    bands: Vec<Band>,
    stages: Vec<Stage>,
    gn_variance: GnVariance,
    peers: Vec<Peer>,
    arena: Arena,
    own_moments: BTreeMap<Site, Moments>,
    cancel: Option<oneshot::Receiver<Fault>>,
    spent: Spent,
}

/// A rank of the run, as this one reaches it.
#[derive(Debug)]
enum Peer {
    /// It is this rank itself.
    Own,
    /// Over a link.
    Linked(Box<dyn Link>),
    /// No more: it ended, or its link broke. That is no fault until a value of its is missed, for
    /// ranks do not end at the same moment.
    Gone(Fault),
}

/// What exchanging cost this rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time the compute thread waited for peers.
    pub waited: Duration,
    /// Bytes posted to peers.
    pub posted_bytes: u64,
}

impl Mesh {
    /// The place of `rank` in `plan`, with a link to every other rank. A message on `cancel` ends
    /// every wait with that fault.
    ///
    /// # Errors
    /// If a rank has no link, or `rank` is not the plan's.
    pub fn new(
        plan: &Plan,
        sites: &[SiteSpec],
        rank: Rank,
        links: Links,
        cancel: oneshot::Receiver<Fault>,
    ) -> std::result::Result<Self, Fault> {
        let no_link = |peer| Fault::new(FaultKind::PlanMismatch, format!("no link to {peer}"));
        let mut peers: Vec<Peer> = plan.ranks().map(|peer| Peer::Gone(no_link(peer))).collect();
        for (peer, link) in links {
            if let Some(place) = peers.get_mut(peer.index()) {
                *place = Peer::Linked(link);
            }
        }
        if let Some(place) = peers.get_mut(rank.index()) {
            *place = Peer::Own;
        }
        if let Some(Peer::Gone(fault)) = peers.iter().find(|peer| matches!(peer, Peer::Gone(_))) {
            return Err(fault.clone());
        }
        if plan.band(rank).is_none() {
            return Err(Fault::new(FaultKind::PlanMismatch, format!("the plan has no {rank}")));
        }
        Ok(Self {
            rank,
            bands: plan.members.iter().map(|member| member.band).collect(),
            stages: sites.iter().map(|site| site.stage).collect(),
            gn_variance: plan.spec.gn_variance,
            arena: Arena::new(peers.len(), sites.len()),
            peers,
            own_moments: BTreeMap::new(),
            cancel: Some(cancel),
            spent: Spent::default(),
        })
    }

    /// What was spent since this was last asked.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// The fault of a cancelled run.
    ///
    /// # Errors
    /// If the run is cancelled.
    pub fn check_cancelled(&mut self) -> Result<()> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.poll_cancelled(&mut cx) {
            Poll::Ready(fault) => Err(fault.into()),
            Poll::Pending => Ok(()),
        }
    }

    pub(super) fn rank(&self) -> Rank {
        self.rank
    }

    pub(super) fn gn_variance(&self) -> GnVariance {
        self.gn_variance
    }

    /// Remembers the statistics that this rank posts for `site`, and gives what it posted before.
    pub(super) fn remember(&mut self, site: Site, own: &Moments) -> Option<Moments> {
        self.own_moments.insert(site, own.clone())
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = Rank> + use<> {
        let own = self.rank;
        (0..u16::try_from(self.peers.len()).unwrap_or(u16::MAX))
            .map(Rank)
            .filter(move |rank| *rank != own)
    }

    /// The ranks above and below this one.
    pub(super) fn neighbours(&self) -> (Option<Rank>, Option<Rank>) {
        let above = self.rank.0.checked_sub(1).map(Rank);
        let below = Some(Rank(self.rank.0 + 1)).filter(|rank| rank.index() < self.peers.len());
        (above, below)
    }

    /// How many times this rank's rows another's band has.
    pub(super) fn rows_over_own(&self, rank: Rank) -> f64 {
        f64::from(self.bands[rank.index()].rows) / f64::from(self.bands[self.rank.index()].rows)
    }

    /// Whether a site's values must never be stale.
    pub(super) fn is_input(&self, site: Site) -> bool {
        self.stages.get(usize::from(site.0)) == Some(&Stage::Input)
    }

    /// Sends `values` to `peer`.
    pub(super) fn post(
        &mut self,
        peer: Rank,
        site: Site,
        call: Call,
        values: &[f32],
    ) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let slot = Slot { from: self.rank, site };
        match &mut self.peers[peer.index()] {
            Peer::Linked(link) => link.post(slot, call, bytes).map_err(|e| Fault::from(&e))?,
            Peer::Gone(fault) => return Err(fault.clone().into()),
            Peer::Own => {}
        }
        self.spent.posted_bytes += bytes.len() as u64;
        Ok(())
    }

    /// What `peer` computed for `site` in `call`, waited for.
    pub(super) fn receive(&mut self, peer: Rank, site: Site, call: Call) -> Result<Bytes> {
        let mut since = None;
        loop {
            if let Some(bytes) = self.arena.get(peer, site, call) {
                self.spent.waited += since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
                return Ok(bytes);
            }
            if let Peer::Gone(fault) = &self.peers[peer.index()] {
                return Err(fault.clone().into());
            }
            since.get_or_insert_with(Instant::now);
            pollster::block_on(poll_fn(|cx| self.poll_landed(cx)))?;
        }
    }

    /// The rows that `peer` sent for `site` in `call`, [batch, rows, columns, channels].
    pub(super) fn receive_rows(
        &mut self,
        peer: Rank,
        site: Site,
        call: Call,
        shape: (usize, usize, usize, usize),
    ) -> Result<Tensor> {
        let bytes = self.receive(peer, site, call)?;
        tensor(bytemuck::pod_collect_to_vec(&bytes[..]), shape)
    }

    /// Takes in whatever has landed; ready once something did.
    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Fault>> {
        if let Poll::Ready(fault) = self.poll_cancelled(cx) {
            return Poll::Ready(Err(fault));
        }
        let mut any = false;
        for (rank, peer) in (0..).map(Rank).zip(&mut self.peers) {
            while let Peer::Linked(link) = peer {
                match link.poll_landed(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(landed)) => {
                        self.arena.land(rank, landed.slot.site, landed.call, landed.bytes)?;
                    }
                    Poll::Ready(Err(error)) => *peer = Peer::Gone(Fault::from(&error)),
                }
                any = true;
            }
        }
        if any { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        let Some(cancel) = self.cancel.as_mut() else { return Poll::Pending };
        let Poll::Ready(said) = Pin::new(cancel).poll(cx) else { return Poll::Pending };
        self.cancel = None;
        Poll::Ready(said.unwrap_or_else(|_| {
            Fault::new(FaultKind::Cancelled, "the worker gave the run up".to_owned())
        }))
    }
}

/// Rows `from..from + count` of every image of `x` [batch, rows, columns, channels].
pub(super) fn rows_of(
    values: &[f32],
    (batch, rows, columns, channels): (usize, usize, usize, usize),
    from: usize,
    count: usize,
) -> Vec<f32> {
    let row = columns * channels;
    (0..batch)
        .flat_map(|image| {
            let start = (image * rows + from) * row;
            &values[start..start + count * row]
        })
        .copied()
        .collect()
}
