//! One rank's place among the others of a run: its links, what landed, what it waited.

mod near;
#[cfg(test)]
mod tests;

use super::drift::Drift;
use super::group::Group;
use super::nccl::Near;
use super::outbox::{Address, Needed, Outbox, Outgoing};
use super::slots::Slots;
use super::wire;
use crate::model::Result;
use crate::model::exchange::{DeviceMoments, Moments};
use crate::model::tensor::Tensor;
use crate::profile::{self, Work};
use bytes::Bytes;
use protocol::job::{GnVariance, Mode, Wire};
use protocol::message::Traffic;
use protocol::plan::{Ask, Band, Fabric, Kind, Member, Plan, SiteSpec, Stage};
use protocol::transport::{Link, Links};
use protocol::{Call, Fault, FaultKind, Rank, Site, Slot};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Values of at most this many bytes that no peer needs before the next call ride with the next larger
/// one: group statistics, a few hundred bytes from each of dozens of norms.
const RIDER_BYTES_MAX: usize = 4 << 10;

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
    /// Over what each peer is linked.
    fabrics: Vec<Option<Fabric>>,
    near: Option<Near>,
    slots: Slots,
    own_moments: BTreeMap<Site, Moments>,
    own_on_device: BTreeMap<Site, DeviceMoments>,
    drift: Option<Drift>,
    posted: Vec<u64>,
    outbox: Outbox,
    riders: Vec<Vec<(Slot, Call, Bytes)>>,
    now: Call,
    keeps_all: bool,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time the compute thread waited for peers.
    pub waited: Duration,
    /// What was posted to peers, and read of theirs.
    pub traffic: Traffic,
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
            slots: Slots::new(peers.len(), sites.len()),
            posted: vec![0; sites.len()],
            outbox: Outbox::new(sites.len()),
            riders: vec![Vec::new(); plan.world_size()],
            now: Call(0),
            keeps_all: plan.spec.mode == Mode::NoSync,
            peers,
            fabrics: plan.ranks().map(|peer| plan.link_fabric(rank, peer)).collect(),
            near: None,
            own_moments: BTreeMap::new(),
            own_on_device: BTreeMap::new(),
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
            self.settle()?;
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

    /// The same of statistics that are on a device.
    pub(super) fn remember_on_device(
        &mut self,
        site: Site,
        own: &DeviceMoments,
    ) -> Option<DeviceMoments> {
        self.own_on_device.insert(site, own.clone())
    }

    /// Whether layers of `stage` have nobody to ask.
    #[must_use]
    pub fn is_alone(&self, stage: Stage) -> bool {
        let group = if stage.is_decode() { &self.decoders } else { &self.branch };
        group.ranks().len() == 1
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

    /// Begins `call`.
    pub(super) fn enter(&mut self, call: Call) {
        self.now = call;
    }

    /// Sends what still waits for a larger value to ride with, or to be copied from a device: a call is
    /// over.
    ///
    /// # Errors
    /// If a peer is lost, or the device fails.
    pub fn leave(&mut self) -> Result<()> {
        self.flush()?;
        self.near.as_mut().map_or(Ok(()), |near| near.check_peaks(false))
    }

    fn flush(&mut self) -> Result<()> {
        self.send_arrived(true)?;
        (0..self.riders.len()).try_for_each(|peer| self.send_riders(peer))
    }

    /// Sends `values`, which are waited for, to `peer`.
    pub(super) fn post(
        &mut self,
        peer: Rank,
        site: Site,
        call: Call,
        values: &[f32],
    ) -> Result<()> {
        let to = Address { peers: vec![peer], site, call };
        self.post_to(to, Outgoing::Host(values.into()), Needed::Now)
    }

    /// Sends `values` to every rank that answers the layer at `site` over a link.
    pub(super) fn post_all(
        &mut self,
        site: Site,
        call: Call,
        values: Outgoing<'_>,
        needed: Needed,
    ) -> Result<()> {
        let peers = self.linked(site);
        if peers.is_empty() {
            return Ok(());
        }
        self.post_to(Address { peers, site, call }, values, needed)
    }

    /// Sends `values` to the ranks that `to` names. A device's are waited for only if they are needed
    /// now; else they are sent when they have come, at the latest when the call is over.
    pub(super) fn post_to(
        &mut self,
        to: Address,
        values: Outgoing<'_>,
        needed: Needed,
    ) -> Result<()> {
        // Where nothing is waited for, this is the only place within a call that hears of it.
        self.check_cancelled()?;
        let wire = self.wire(to.site);
        match values {
            Outgoing::Host(values) => {
                // Encoded once, and shared by all links.
                let bytes = self.outbox.encode(wire, to.site, &values)?;
                self.send(&to, &bytes, needed)
            }
            Outgoing::Device(device, values) => {
                self.outbox.stage(to, wire, (&device, &values))?;
                self.send_arrived(needed == Needed::Now)
            }
        }
    }

    fn send(&mut self, to: &Address, bytes: &Bytes, needed: Needed) -> Result<()> {
        let each = |peer| self.post_bytes(peer, to.site, to.call, bytes.clone(), needed);
        to.peers.iter().copied().try_for_each(each)
    }

    /// Sends what a device computed and has arrived; all of it, if it is `waited` for.
    fn send_arrived(&mut self, waited: bool) -> Result<()> {
        if waited && !self.outbox.is_empty() {
            self.settle()?;
        }
        while let Some((to, bytes)) = self.outbox.arrived(waited)? {
            self.send(&to, &bytes, Needed::Now)?;
        }
        Ok(())
    }

    fn post_bytes(
        &mut self,
        peer: Rank,
        site: Site,
        call: Call,
        bytes: Bytes,
        needed: Needed,
    ) -> Result<()> {
        if let Some(fabric) = self.fabrics[peer.index()] {
            self.count(fabric, site, bytes.len() as u64);
        }
        self.posted[usize::from(site.0)] += bytes.len() as u64;
        profile::post(peer, bytes.len() as u64);
        let rides = needed == Needed::Later && bytes.len() <= RIDER_BYTES_MAX;
        let slot = Slot { from: self.rank, site };
        self.riders[peer.index()].push((slot, call, bytes));
        if rides { Ok(()) } else { self.send_riders(peer.index()) }
    }

    fn count(&mut self, fabric: Fabric, site: Site, bytes: u64) {
        let kind = self.sites.get(usize::from(site.0)).map_or(Kind::Other, |(ask, _)| ask.kind());
        self.spent.traffic.post(fabric, kind, bytes);
    }

    fn send_riders(&mut self, peer: usize) -> Result<()> {
        let riders = std::mem::take(&mut self.riders[peer]);
        for (slot, call, bytes) in riders {
            match &mut self.peers[peer] {
                Peer::Linked(link) => link.post(slot, call, bytes).map_err(|e| Fault::from(&e))?,
                Peer::Gone(fault) => return Err(fault.clone().into()),
                Peer::Own => {}
            }
        }
        Ok(())
    }

    /// The type in which values for `site` cross.
    pub(super) fn wire(&self, site: Site) -> Wire {
        self.wires.get(usize::from(site.0)).copied().unwrap_or(Wire::F32)
    }

    /// What `peer` computed for `site` in `call`, waited for.
    pub(super) fn receive(&mut self, peer: Rank, site: Site, call: Call) -> Result<Bytes> {
        let mut since: Option<(Instant, profile::Stretch)> = None;
        // A value of this call is read again by the next one, if that is displaced.
        let stays = call >= self.now || self.keeps_all;
        loop {
            if let Some(bytes) = self.slots.consume(peer, site, call, stays) {
                self.spent.traffic.read[usize::from(call < self.now)] += 1;
                self.spent.waited += since.map_or(Duration::ZERO, |(since, _)| since.elapsed());
                return Ok(bytes);
            }
            if let Peer::Gone(fault) = &self.peers[peer.index()] {
                return Err(fault.clone().into());
            }
            if since.is_none() {
                since = Some((Instant::now(), profile::span(Work::Wait(peer))));
                self.flush()?;
            }
            pollster::block_on(poll_fn(|cx| self.poll_landed(cx)))?;
        }
    }

    /// The rows that `peer` sent for `site` in `call`, [batch, rows, columns, channels], in
    /// the host's memory, as `own` is.
    pub(super) fn receive_rows(
        &mut self,
        peer: Rank,
        site: Site,
        call: Call,
        (own, shape): (&Tensor, [usize; 4]),
    ) -> Result<Tensor> {
        let bytes = self.receive(peer, site, call)?;
        own.make(Work::Copy, shape, |out| {
            wire::copy(&bytes, out);
            Ok(())
        })
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
                        self.slots.land(rank, landed.slot.site, landed.call, landed.bytes)?;
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
