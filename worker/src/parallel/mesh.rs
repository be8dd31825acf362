//! One rank's place among the others of a run: its links, what landed, what it waited.

use super::arena::Arena;
use super::drift::Drift;
use super::wire;
use crate::model::Result;
use crate::model::exchange::Moments;
use crate::model::nn::tensor;
use bytes::Bytes;
use candle_core::Tensor;
use protocol::job::{GnVariance, Wire};
use protocol::plan::{Ask, Band, Member, Plan, SiteSpec, Stage};
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
    branch: Group,
    decoders: Group,
    sites: Vec<(Ask, Stage)>,
    wires: Vec<Wire>,
    gn_variance: GnVariance,
    peers: Vec<Peer>,
    arena: Arena,
    own_moments: BTreeMap<Site, Moments>,
    drift: Option<Drift>,
    posted: Vec<u64>,
    cancel: Option<oneshot::Receiver<Fault>>,
    spent: Spent,
}

/// Ranks that answer each other's layers, from the top of the image to its bottom.
#[derive(Clone, Debug)]
pub(super) struct Group {
    ranks: Vec<Rank>,
    rows: Vec<u32>,
    own: usize,
}

impl Group {
    /// `ranks` with the height of their bands; `rank` is one of them.
    fn new(ranks: impl Iterator<Item = (Rank, u32)>, rank: Rank) -> Self {
        let (ranks, rows): (Vec<Rank>, Vec<u32>) = ranks.unzip();
        let own = ranks.iter().position(|peer| *peer == rank).unwrap_or(0);
        Self { ranks, rows, own }
    }

    /// This rank's place.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    /// All of them.
    pub(super) fn ranks(&self) -> &[Rank] {
        &self.ranks
    }

    /// All but this rank.
    pub(super) fn peers(&self) -> Vec<Rank> {
        let own = self.ranks[self.own];
        self.ranks.iter().copied().filter(|rank| *rank != own).collect()
    }

    /// The ranks above and below this one.
    pub(super) fn neighbours(&self) -> (Option<Rank>, Option<Rank>) {
        let above = self.own.checked_sub(1).and_then(|above| self.ranks.get(above));
        (above.copied(), self.ranks.get(self.own + 1).copied())
    }

    /// How many times this rank's rows each peer's band has, in the order of [`Self::peers`].
    pub(super) fn rows_over_own(&self) -> Vec<f64> {
        let others = self.rows.iter().enumerate().filter(|(place, _)| *place != self.own);
        others.map(|(_, rows)| f64::from(*rows) / f64::from(self.rows[self.own])).collect()
    }
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
        if plan.member(rank).is_none() {
            return Err(Fault::new(FaultKind::PlanMismatch, format!("the plan has no {rank}")));
        }
        let rows = |rank: Rank, band: fn(&Member) -> Band| {
            (rank, plan.member(rank).map_or(0, |member| band(member).rows))
        };
        let branch = plan.branch_of(rank).map(|peer| rows(peer, |member| member.band));
        let decoders = plan.ranks().map(|peer| rows(peer, |member| member.decodes));
        Ok(Self {
            rank,
            branch: Group::new(branch, rank),
            decoders: Group::new(decoders, rank),
            sites: sites.iter().map(|site| (site.ask, site.stage)).collect(),
            wires: sites.iter().map(|site| site.wire(plan.spec.wire)).collect(),
            gn_variance: plan.spec.gn_variance,
            arena: Arena::new(peers.len(), sites.len()),
            posted: vec![0; sites.len()],
            peers,
            own_moments: BTreeMap::new(),
            drift: (plan.spec.probe || plan.adapts(rank)).then(|| Drift::new(plan.spec.probe)),
            cancel: Some(cancel),
            spent: Spent::default(),
        })
    }

    /// What was spent since this was last asked.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// How far what this rank sends moved since the call before, by site, if that is measured.
    pub fn take_distances(&mut self) -> BTreeMap<Site, f32> {
        self.drift.as_mut().map(Drift::take).unwrap_or_default()
    }

    /// Bytes posted for `site` so far.
    #[must_use]
    pub fn posted_bytes(&self, site: Site) -> u64 {
        self.posted.get(usize::from(site.0)).copied().unwrap_or(0)
    }

    /// Shows what this rank sends for `site` in this call, rows of `width` values, to who measures
    /// how far it moves.
    pub(super) fn watch(
        &mut self,
        site: Site,
        width: usize,
        values: impl FnOnce(&Group) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let watched = match (&self.drift, self.sites.get(usize::from(site.0))) {
            (Some(drift), Some((ask, Stage::Denoise))) => drift.watches(*ask),
            _ => false,
        };
        if watched {
            let values = values(&self.branch)?;
            self.drift.iter_mut().for_each(|drift| drift.see(site, &values, width));
        }
        Ok(())
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

    pub(super) fn gn_variance(&self) -> GnVariance {
        self.gn_variance
    }

    /// Remembers the statistics that this rank posts for `site`, and gives what it posted before.
    pub(super) fn remember(&mut self, site: Site, own: &Moments) -> Option<Moments> {
        self.own_moments.insert(site, own.clone())
    }

    /// Whether layers of `stage` have nobody to ask.
    #[must_use]
    pub fn is_alone(&self, stage: Stage) -> bool {
        let group = if stage.is_decode() { &self.decoders } else { &self.branch };
        group.ranks.len() == 1
    }

    /// The ranks that answer the layer at `site`.
    pub(super) fn group(&self, site: Site) -> &Group {
        match self.sites.get(usize::from(site.0)) {
            Some((_, stage)) if stage.is_decode() => &self.decoders,
            _ => &self.branch,
        }
    }

    /// Whether a site's values must never be stale.
    pub(super) fn is_input(&self, site: Site) -> bool {
        self.sites.get(usize::from(site.0)).is_some_and(|(_, stage)| *stage == Stage::Input)
    }

    /// The only site that asks `ask`.
    pub(super) fn site_of(&self, ask: Ask) -> Result<Site> {
        let found = self.sites.iter().position(|(known, _)| *known == ask);
        let site = found.and_then(|number| u16::try_from(number).ok()).map(Site);
        site.ok_or_else(|| {
            Fault::new(FaultKind::PlanMismatch, format!("the model has no site for {ask:?}")).into()
        })
    }

    /// Sends `values` to `peer`.
    pub(super) fn post(
        &mut self,
        peer: Rank,
        site: Site,
        call: Call,
        values: &[f32],
    ) -> Result<()> {
        self.post_bytes(peer, site, call, &wire::encode(self.wire(site), site, values)?)
    }

    /// Sends `values` to every rank that answers the layer at `site`.
    pub(super) fn post_all(&mut self, site: Site, call: Call, values: &[f32]) -> Result<()> {
        let bytes = wire::encode(self.wire(site), site, values)?;
        let peers = self.group(site).peers();
        peers.into_iter().try_for_each(|peer| self.post_bytes(peer, site, call, &bytes))
    }

    fn post_bytes(&mut self, peer: Rank, site: Site, call: Call, bytes: &[u8]) -> Result<()> {
        let slot = Slot { from: self.rank, site };
        match &mut self.peers[peer.index()] {
            Peer::Linked(link) => link.post(slot, call, bytes).map_err(|e| Fault::from(&e))?,
            Peer::Gone(fault) => return Err(fault.clone().into()),
            Peer::Own => {}
        }
        self.spent.posted_bytes += bytes.len() as u64;
        self.posted[usize::from(site.0)] += bytes.len() as u64;
        Ok(())
    }

    /// The type in which values for `site` cross.
    pub(super) fn wire(&self, site: Site) -> Wire {
        self.wires.get(usize::from(site.0)).copied().unwrap_or(Wire::F32)
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
