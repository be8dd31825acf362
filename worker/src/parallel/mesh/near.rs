//! The peers that are reached by NCCL: how a rank joins and leaves them, and what it exchanges with them.

use super::{Mesh, Peer};
use crate::device::nccl::{self, Collective, CommunicatorId, NcclError};
use crate::device::{Array, Device};
use crate::model::tensor::{OnDevice, Tensor};
use crate::model::{Error, Result};
use crate::parallel::nccl::{Near, Side, fault};
use crate::profile::{self, Work};
use bytemuck::{cast_slice, pod_collect_to_vec};
use protocol::plan::{Ask, COMMUNICATOR_ID_BYTES, Collectives, Fabric, Plan, SiteSpec};
use protocol::{Call, Fault, FaultKind, Rank, Site};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How often whoever waits for a device or for NCCL looks whether a peer is lost or the run cancelled: far
/// below a call's time, and far above what looking takes.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// When ranks of a group find each other.
const JOINING: Call = Call(0);
/// When they part. Both are calls of [`Ask::Communicator`]'s site alone.
const PARTING: Call = Call(1);

type Connected = std::result::Result<Box<dyn Collective>, NcclError>;

impl Mesh {
    /// Finds the ranks that exchange with this one by NCCL in `plan`, if there are any; all do so at once.
    ///
    /// # Errors
    /// If there is no NCCL here, though the plan relies on it; if a peer is lost or the run is cancelled.
    pub fn join(&mut self, plan: &Plan, sites: &[SiteSpec], device: Option<&Device>) -> Result<()> {
        let Some(collectives) = Collectives::new(plan, sites, self.rank) else { return Ok(()) };
        let Some(device) = device else {
            let cause =
                format!("{} is to exchange by NCCL, but computes on its processor", self.rank);
            return Err(Fault::new(FaultKind::PlanMismatch, cause).into());
        };
        let (ranks, own) = (collectives.ranks.clone(), self.rank);
        // The first rank makes the number; the others' say that they are there.
        let mut id: CommunicatorId = [0; COMMUNICATOR_ID_BYTES];
        if ranks.first() == Some(&own) {
            id = nccl::new_id(device).map_err(|error| fault(&error))?;
        }
        for (peer, theirs) in self.tell(&ranks, JOINING, &id)? {
            if ranks.first() == Some(&peer) {
                id = theirs;
            }
        }
        let place = collectives.place(own).unwrap_or(0);
        let (found, connected) = channel();
        let (count, on) = (ranks.len(), device.clone());
        // A thread of its own, for NCCL waits for peers that may be lost. One that is given up on ends when
        // NCCL does, and leaves the communicator.
        std::thread::Builder::new()
            .name("nccl".to_owned())
            .spawn(move || found.send(nccl::connect(&on, &id, place, count)))
            .map_err(|error| Fault::new(FaultKind::Compute, format!("no thread: {error}")))?;
        let collective = self.await_connected(&ranks, &connected)?;
        self.reach(Near::new(collectives, own, device.clone(), collective)?);
        Ok(())
    }

    /// Exchanges by NCCL from now on.
    pub(in crate::parallel) fn reach(&mut self, near: Near) {
        self.near = Some(near);
    }

    fn await_connected(
        &mut self,
        ranks: &[Rank],
        connected: &Receiver<Connected>,
    ) -> Result<Box<dyn Collective>> {
        loop {
            match connected.recv_timeout(LOOK_EVERY) {
                Ok(collective) => return Ok(collective.map_err(|error| fault(&error))?),
                Err(RecvTimeoutError::Timeout) => self.look_after(ranks)?,
                Err(RecvTimeoutError::Disconnected) => {
                    let cause = "the thread that connects NCCL ended".to_owned();
                    return Err(Fault::new(FaultKind::Compute, cause).into());
                }
            }
        }
    }

    /// Parts from the ranks that this one exchanges with by NCCL, once all are done with it: denoising is
    /// over.
    ///
    /// # Errors
    /// If a peer is lost, the run is cancelled, or the device fails.
    pub fn part(&mut self) -> Result<()> {
        let Some(near) = &mut self.near else { return Ok(()) };
        near.follow_all()?;
        let ranks = near.ranks().to_vec();
        self.settle()?;
        if let Some(near) = &mut self.near {
            near.check_peaks(true)?;
        }
        self.tell(&ranks, PARTING, &[0; COMMUNICATOR_ID_BYTES])?;
        self.near.take().map_or(Ok(()), Near::leave)
    }

    /// Tells all others of `ranks` this number, and gives theirs.
    fn tell(
        &mut self,
        ranks: &[Rank],
        call: Call,
        id: &CommunicatorId,
    ) -> Result<Vec<(Rank, CommunicatorId)>> {
        let site = self.site_of(Ask::Communicator)?;
        let peers: Vec<Rank> = ranks.iter().copied().filter(|peer| *peer != self.rank).collect();
        for peer in &peers {
            self.post(*peer, site, call, &pod_collect_to_vec::<u8, f32>(id))?;
        }
        let mut all = Vec::new();
        for peer in peers {
            let bytes = self.receive(peer, site, call)?;
            let mut id = [0; COMMUNICATOR_ID_BYTES];
            let length = bytes.len().min(id.len());
            id[..length].copy_from_slice(cast_slice(&bytes[..length]));
            all.push((peer, id));
        }
        Ok(all)
    }

    /// Waits until the device has computed what it was given, which a peer that is lost could make last for
    /// ever: whoever waits for a device that exchanges by NCCL waits here first.
    ///
    /// # Errors
    /// If a peer is lost, the run is cancelled, or the device fails; nothing is under way any more then.
    pub fn settle(&mut self) -> Result<()> {
        let Some(near) = &self.near else { return Ok(()) };
        let ranks = near.ranks().to_vec();
        let settled = self.await_done(&ranks);
        if let (Err(_), Some(near)) = (&settled, &mut self.near) {
            near.collective().abort();
        }
        settled
    }

    fn await_done(&mut self, ranks: &[Rank]) -> Result<()> {
        while let Some(near) = &mut self.near {
            if near.collective().is_done().map_err(|error| fault(&error))? {
                break;
            }
            self.look_after(ranks)?;
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Takes in what has landed.
    ///
    /// # Errors
    /// If one of `ranks` is lost, or the run is cancelled.
    fn look_after(&mut self, ranks: &[Rank]) -> Result<()> {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(landed) = self.poll_landed(&mut cx) {
            landed?;
        }
        let lost = ranks.iter().find_map(|rank| match &self.peers[rank.index()] {
            Peer::Gone(fault) => Some(fault.clone()),
            _ => None,
        });
        lost.map_or(Ok(()), |fault| Err(fault.into()))
    }

    /// Whether `peer`'s value for `site` crosses by NCCL.
    pub(in crate::parallel) fn is_near(&self, site: Site, peer: Rank) -> bool {
        self.near.as_ref().is_some_and(|near| near.reaches(site, peer))
    }

    /// The ranks that this one exchanges with for `site` over links.
    pub(in crate::parallel) fn linked(&self, site: Site) -> Vec<Rank> {
        let peers = self.group(site).peers();
        peers.into_iter().filter(|peer| !self.is_near(site, *peer)).collect()
    }

    /// Begins to exchange `own` [.., rows, width] for `site` with those that are reached by NCCL.
    pub(in crate::parallel) fn share(
        &mut self,
        site: Site,
        call: Call,
        own: &Tensor,
    ) -> Result<()> {
        let wire = self.wire(site);
        let Some(near) = self.near_at(site) else { return Ok(()) };
        near.gather((site, call), &rows_of(own)?, wire)?;
        self.count_shared(site);
        Ok(())
    }

    /// Begins to exchange the first and last `rows` rows of `x` for `site` with neighbours that are reached by
    /// NCCL.
    pub(in crate::parallel) fn share_edges(
        &mut self,
        site: Site,
        call: Call,
        x: &Tensor,
        rows: usize,
    ) -> Result<()> {
        let Some(near) = self.near_at(site) else { return Ok(()) };
        near.edges((site, call), on_device(x)?.values, rows)?;
        self.count_shared(site);
        Ok(())
    }

    /// NCCL's part in `site`, if it has one.
    fn near_at(&mut self, site: Site) -> Option<&mut Near> {
        let peers = self.group(site).peers();
        let near = self.near.as_mut()?;
        peers.iter().any(|peer| near.reaches(site, *peer)).then_some(near)
    }

    fn count_shared(&mut self, site: Site) {
        let bytes = self.near.as_ref().map_or(0, |near| near.sent_bytes(site)) as u64;
        self.count(Fabric::Nccl, site, bytes);
        self.posted[usize::from(site.0)] += bytes;
    }

    fn near(&mut self) -> Result<&mut Near> {
        let none = || Fault::new(FaultKind::PlanMismatch, "no peer is reached by NCCL".to_owned());
        Ok(self.near.as_mut().ok_or_else(none)?)
    }

    /// The rows [images, rows, width] of `peer` as of `call`, of which this rank has as many as `own`.
    pub(in crate::parallel) fn near_rows(
        &mut self,
        peer: Rank,
        (site, call): (Site, Call),
        own: &Tensor,
    ) -> Result<Array> {
        let own = rows_of(own)?.dim(1)?;
        let rows = self.near()?.rows((site, call), peer, own)?;
        self.time_wait(peer)?;
        Ok(rows)
    }

    /// While a profile is taken, for which the device is waited for after every layer: waits for what came
    /// from `peer` first, and takes down how long.
    fn time_wait(&mut self, peer: Rank) -> Result<()> {
        if !profile::is_wanted() {
            return Ok(());
        }
        let _timed = profile::span(Work::Wait(peer));
        self.settle()
    }

    /// The statistics of `peer` as of `call`, waited for.
    pub(in crate::parallel) fn near_values(
        &mut self,
        peer: Rank,
        place: (Site, Call),
    ) -> Result<Vec<f32>> {
        let values = self.near()?.statistics(place, peer)?;
        self.settle()?;
        self.near()?.download(&values)
    }

    /// The edge that came from the neighbour `peer` on this side as of `call`.
    pub(in crate::parallel) fn near_edge(
        &mut self,
        (peer, side): (Rank, Side),
        site: Site,
        call: Call,
    ) -> Result<Array> {
        let edge = self.near()?.edge((site, call), side)?;
        self.time_wait(peer)?;
        Ok(edge)
    }

    /// All rows of the image, the peers' as of `call`, where they came in. None: not all peers are reached by
    /// NCCL, or values are rounded on their way.
    pub(in crate::parallel) fn joined(
        &mut self,
        site: Site,
        call: Call,
        own: &Tensor,
    ) -> Result<Option<Array>> {
        if !self.linked(site).is_empty() {
            return Ok(None);
        }
        let Some(near) = self.near_at(site) else { return Ok(None) };
        let all = near.joined((site, call), on_device(own)?.values)?;
        if let Some(peer) = self.group(site).peers().first().copied() {
            self.time_wait(peer)?;
        }
        Ok(all)
    }
}

fn on_device(x: &Tensor) -> Result<OnDevice<'_>> {
    let none = || Error::Shape("values in the host's memory cannot cross by NCCL".to_owned());
    x.on_device().ok_or_else(none)
}

/// `own` as [images, rows, width].
fn rows_of(own: &Tensor) -> Result<Array> {
    let values = on_device(own)?.values;
    match values.rank() {
        2 => Ok(values.unsqueeze(0)?),
        _ => Ok(values.clone()),
    }
}
