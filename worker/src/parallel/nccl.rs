//! What a rank exchanges by NCCL: its buffers, and the operations of [`Collectives`] in them.
//!
//! A site has two buffers, by parity of the call (P-2), each of which holds what the group has of a call. An
//! operation is begun when the layer is asked, and followed when what it brings is read: in a displaced
//! call, by the next one. The own part of a buffer is then replaced by this call's, so that attention reads
//! the whole image's keys and values where they came in. On the device all of this is ordered; no thread
//! waits.
//!
//! Why two suffice, and when a buffer may be written: an operation starts after all that the device was given
//! before, and so after all that reads what the buffer held two calls ago; the own part is written after the
//! operation that last used the buffer was followed.

use super::wire;
use crate::device::nccl::{Collective, NcclError, Ticket};
use crate::device::staging::Fetch;
use crate::device::{Array, Device};
use crate::model::Result;
use crate::model::exchange::dtype;
use candle_core::{D, DType};
use protocol::job::Wire;
use protocol::plan::{Collectives, Operation};
use protocol::{Call, Fault, FaultKind, Rank, Site};
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// A side of a band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Above,
    Below,
}

/// The ranks that this one exchanges with by NCCL.
#[derive(Debug)]
pub(super) struct Near {
    collectives: Collectives,
    place: usize,
    device: Device,
    /// Before the buffers, which it writes until it is dropped.
    collective: Box<dyn Collective>,
    buffers: BTreeMap<(Site, bool), Buffer>,
    peaks: Peaks,
}

/// The values of one call for one site.
#[derive(Debug)]
struct Buffer {
    call: Call,
    /// Of all of the group, [images, rows, width]; or four edges, [4, batch, rows, columns, channels].
    values: Array,
    /// The operation that nobody followed yet.
    under_way: Option<Ticket>,
}

/// The largest and smallest values of what crossed as f16, which has no room for all: looked at a call later,
/// when they are there.
#[derive(Debug, Default)]
struct Peaks {
    computed: Vec<(Site, Array)>,
    coming: Option<(Vec<Site>, Fetch)>,
}

pub(super) fn fault(error: &NcclError) -> Fault {
    Fault::new(FaultKind::Compute, error.to_string())
}

fn mismatch(cause: String) -> Fault {
    Fault::new(FaultKind::PlanMismatch, cause)
}

impl Near {
    pub(super) fn new(
        collectives: Collectives,
        rank: Rank,
        device: Device,
        collective: Box<dyn Collective>,
    ) -> Result<Self> {
        let place = collectives.place(rank);
        let place = place.ok_or_else(|| mismatch(format!("{rank} is not in its own group")))?;
        let (buffers, peaks) = Default::default();
        Ok(Self { collectives, place, device, collective, buffers, peaks })
    }

    pub(super) fn ranks(&self) -> &[Rank] {
        &self.collectives.ranks
    }

    pub(super) fn collective(&mut self) -> &mut dyn Collective {
        &mut *self.collective
    }

    /// Whether `peer`'s value for `site` crosses by NCCL.
    pub(super) fn reaches(&self, site: Site, peer: Rank) -> bool {
        let Some(place) = self.collectives.place(peer).filter(|place| *place != self.place) else {
            return false;
        };
        match self.collectives.operation(site) {
            None => false,
            Some(Operation::Gather { .. }) => true,
            Some(Operation::Edges { uppers, .. }) => {
                place.abs_diff(self.place) == 1 && uppers.contains(&place.min(self.place))
            }
        }
    }

    /// Bytes that this rank sends all others together for `site`.
    pub(super) fn sent_bytes(&self, site: Site) -> usize {
        let peers = self.collectives.ranks.len() - 1;
        match self.collectives.operation(site) {
            None => 0,
            Some(Operation::Gather { images, parts }) => images * parts[self.place] * peers,
            Some(Operation::Edges { bytes, .. }) => {
                let sides = [Side::Above, Side::Below];
                sides.iter().filter(|side| self.has_edge(site, **side)).count() * bytes
            }
        }
    }

    fn has_edge(&self, site: Site, side: Side) -> bool {
        let Some(Operation::Edges { uppers, .. }) = self.collectives.operation(site) else {
            return false;
        };
        match side {
            Side::Above => self.place.checked_sub(1).is_some_and(|above| uppers.contains(&above)),
            Side::Below => uppers.contains(&self.place),
        }
    }

    /// Where in the rows of all of the group those of the rank at `place` are, if this rank has `own`.
    fn rows_of(&self, site: Site, own: usize, place: usize) -> Result<(usize, usize)> {
        let Some(Operation::Gather { parts, .. }) = self.collectives.operation(site) else {
            return Err(mismatch(format!("nothing is gathered by NCCL at {site}")).into());
        };
        let rows = |part: usize| part * own / parts[self.place];
        Ok((rows(parts[..place].iter().sum()), rows(parts[place])))
    }

    /// Begins to exchange `own` [images, rows, width] for `site` in `call`, as `wire`.
    pub(super) fn gather(&mut self, place: (Site, Call), own: &Array, wire: Wire) -> Result<()> {
        let (site, _) = place;
        let (images, rows, width) = own.dims3()?;
        let (first, _) = self.rows_of(site, rows, self.place)?;
        let (last, of_last) = self.rows_of(site, rows, self.collectives.ranks.len() - 1)?;
        let own = own.to_dtype(dtype(wire))?.contiguous()?;
        self.watch(site, &own)?;
        let buffer = self.buffer(place, &[images, last + of_last, width], own.dtype())?;
        buffer.slice_set(&own, 1, first)?;
        self.begin(place)
    }

    /// Begins to exchange the first and last `rows` rows of `x` [batch, rows, columns, channels] with the
    /// neighbours for `site` in `call`.
    pub(super) fn edges(&mut self, place: (Site, Call), x: &Array, rows: usize) -> Result<()> {
        let (batch, height, columns, channels) = x.dims4()?;
        let buffer = self.buffer(place, &[4, batch, rows, columns, channels], DType::F32)?;
        for (at, side, from) in [(0, Side::Above, 0), (1, Side::Below, height - rows)] {
            if self.has_edge(place.0, side) {
                let edge = x.narrow(1, from, rows)?.to_dtype(DType::F32)?.contiguous()?;
                buffer.slice_set(&edge.unsqueeze(0)?, 0, at)?;
            }
        }
        self.begin(place)
    }

    /// The rows of `peer` in `call`, of which this rank has `own`.
    pub(super) fn rows(&mut self, place: (Site, Call), peer: Rank, own: usize) -> Result<Array> {
        let at = self.collectives.place(peer);
        let at = at.ok_or_else(|| mismatch(format!("{peer} is not reached by NCCL")))?;
        let (first, count) = self.rows_of(place.0, own, at)?;
        Ok(self.landed(place)?.narrow(1, first, count)?)
    }

    /// The statistics [1, groups, 2] of `peer` in `call`: every rank has as many.
    pub(super) fn statistics(&mut self, place: (Site, Call), peer: Rank) -> Result<Array> {
        let all = self.landed(place)?.dim(1)?;
        self.rows(place, peer, all / self.collectives.ranks.len())
    }

    /// All rows of the group, those of its peers as of `call`, with `own` in its place. None: `own` is of
    /// another type than what crossed.
    pub(super) fn joined(&mut self, place: (Site, Call), own: &Array) -> Result<Option<Array>> {
        let (first, _) = self.rows_of(place.0, own.dim(1)?, self.place)?;
        let all = self.landed(place)?;
        if all.dtype() != own.dtype() {
            return Ok(None);
        }
        all.slice_set(&own.contiguous()?, 1, first)?;
        Ok(Some(all))
    }

    /// The edge [batch, rows, columns, channels] that came from a neighbour in `call`.
    pub(super) fn edge(&mut self, place: (Site, Call), side: Side) -> Result<Array> {
        let at = match side {
            Side::Above => 2,
            Side::Below => 3,
        };
        Ok(self.landed(place)?.get(at)?)
    }

    /// `values`, waited for.
    pub(super) fn download(&self, values: &Array) -> Result<Vec<f32>> {
        Ok(self.device.download(values)?)
    }

    /// The buffer for what is exchanged next, which nothing uses any more.
    fn buffer(&mut self, place: (Site, Call), dims: &[usize], dtype: DType) -> Result<Array> {
        let (site, call) = place;
        let bytes = dims.iter().product::<usize>() * dtype.size_in_bytes();
        let planned = self.collectives.operation(site).map_or(0, Operation::buffer_bytes);
        if bytes != planned {
            let cause = format!("{bytes} bytes of {dims:?} at {site}, but {planned} are planned");
            return Err(mismatch(cause).into());
        }
        if let Some(old) = self.buffers.get_mut(&(site, is_odd(call))) {
            if let Some(ticket) = old.under_way.take() {
                self.collective.follow(ticket).map_err(|error| fault(&error))?;
            }
            old.call = call;
            return Ok(old.values.clone());
        }
        let values = Array::zeros(dims, dtype, self.device.candle())?;
        let buffer = Buffer { call, values: values.clone(), under_way: None };
        self.buffers.insert((site, is_odd(call)), buffer);
        Ok(values)
    }

    fn begin(&mut self, (site, call): (Site, Call)) -> Result<()> {
        let operation = self.collectives.operation(site);
        let buffer = self.buffers.get_mut(&(site, is_odd(call)));
        if let (Some(operation), Some(buffer)) = (operation, buffer) {
            let steps = operation.steps(self.place);
            let ticket = self.collective.begin(&steps, &buffer.values);
            buffer.under_way = Some(ticket.map_err(|error| fault(&error))?);
        }
        Ok(())
    }

    /// What came in `call`; what the device is given from now on waits for it.
    fn landed(&mut self, (site, call): (Site, Call)) -> Result<Array> {
        let buffer = self.buffers.get_mut(&(site, is_odd(call)));
        let buffer = buffer.filter(|buffer| buffer.call == call).ok_or_else(|| {
            mismatch(format!("nothing was exchanged by NCCL for {site} in call {}", call.0))
        })?;
        if let Some(ticket) = buffer.under_way.take() {
            self.collective.follow(ticket).map_err(|error| fault(&error))?;
        }
        Ok(buffer.values.clone())
    }

    /// Lets the device come past all operations that were begun.
    pub(super) fn follow_all(&mut self) -> Result<()> {
        let tickets = self.buffers.values_mut().filter_map(|buffer| buffer.under_way.take());
        let follow = |ticket| self.collective.follow(ticket).map_err(|error| fault(&error).into());
        tickets.collect::<Vec<_>>().into_iter().try_for_each(follow)
    }

    fn watch(&mut self, site: Site, own: &Array) -> Result<()> {
        if own.dtype() != DType::F16 {
            return Ok(());
        }
        // Of each row first: candle reduces with one block of threads for each result.
        let high = own.max(D::Minus1)?.flatten_all()?.max(0)?;
        let low = own.min(D::Minus1)?.flatten_all()?.min(0)?;
        self.peaks.computed.push((site, Array::stack(&[high, low], 0)?));
        Ok(())
    }

    /// Looks at the call's values that crossed as f16, as far as they are there; `all` waits.
    ///
    /// # Errors
    /// If one was too large.
    pub(super) fn check_peaks(&mut self, all: bool) -> Result<()> {
        loop {
            if let Some((sites, fetch)) = self.peaks.coming.take() {
                let bytes = fetch.wait()?;
                for (site, peaks) in sites.iter().zip(bytes.chunks_exact(2 * size_of::<u16>())) {
                    wire::check(Wire::F16, *site, peaks)?;
                }
            }
            if self.peaks.computed.is_empty() {
                return Ok(());
            }
            let (sites, peaks): (Vec<Site>, Vec<Array>) = self.peaks.computed.drain(..).unzip();
            let fetch = self.device.fetch(&Array::stack(&peaks, 0)?)?;
            self.peaks.coming = Some((sites, fetch));
            if !all {
                return Ok(());
            }
        }
    }

    /// Ends the communicator, which all of the group are done with.
    pub(super) fn leave(self) -> Result<()> {
        Ok(self.collective.leave().map_err(|error| fault(&error))?)
    }
}

fn is_odd(call: Call) -> bool {
    call.0 % 2 == 1
}
