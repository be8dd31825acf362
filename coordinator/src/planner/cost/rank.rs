//! What one rank's call costs.

use super::{Forecast, Overlap, Scheme, float};
use crate::planner::branches::Share;
use crate::planner::pairs::LinkSpeed;
use protocol::job::Wire;
use protocol::plan::Branch;

/// Versions of a slot that a receiver has memory for.
const VERSIONS: f64 = 2.0;
/// Bytes of a value in memory, and of one that may not be rounded on the wire.
const F32: f64 = 4.0;

/// Seconds and bytes of one rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct RankCost {
    /// Seconds once per image: keys and values of the prompt.
    pub(super) once: f64,
    /// Seconds of overhead and computing.
    pub(super) compute: f64,
    /// Seconds that what lands takes to cross.
    pub(super) transfer: f64,
    /// Seconds that a synchronous call waits for it.
    pub(super) awaited: f64,
    /// Seconds that a displaced call waits for it.
    pub(super) exposed: f64,
    /// Seconds that every call waits for what the last gave: edges of the latent, predictions.
    pub(super) between: f64,
    /// Bytes that land in a call.
    pub(super) landing: f64,
    /// Bytes of memory to predict: weights, activations, what lands and what is posted.
    pub(super) computing: f64,
    /// Bytes of memory to decode a part as a whole.
    pub(super) decoding: f64,
}

/// What a rank gets from a peer in a call.
struct Landing {
    bytes: f64,
    link: LinkSpeed,
}

impl RankCost {
    pub(super) fn of(forecast: &Forecast<'_>, shares: &[Share], rank: usize) -> Self {
        let view = View { forecast, shares, own: &shares[rank], rank };
        let (image, machine) = (forecast.image, forecast.machines[view.own.worker]);
        let (batch, own) = (view.batch(), view.cells(view.own));
        let all = image.card.work.cells(image.geometry.rows, image.geometry.columns);
        let flop = batch * image.card.work.flop(own, all);
        let once = batch * float(image.card.work.text_flop) / machine.rate;
        let compute = machine.overhead + flop / machine.rate;
        let lands: Vec<Landing> = view.peers().map(|peer| view.landing(peer)).collect();
        let transfer = seconds(&lands);
        let latency = latency(&lands);
        let awaited = transfer + f64::from(image.card.work.sites) * latency;
        let exposed = match forecast.overlap {
            Overlap::Hidden => (transfer + latency - compute).max(0.0),
            Overlap::Share(share) => share * transfer,
        };
        let between: Vec<Landing> = (0..shares.len()).filter_map(|peer| view.fresh(peer)).collect();
        let landing: f64 = lands.iter().map(|each| each.bytes).sum();
        let (computing, decoding) = view.memory(landing);
        let between = seconds(&between) + self::latency(&between);
        Self { once, compute, transfer, awaited, exposed, between, landing, computing, decoding }
    }
}

/// What lands from all peers passes one door, one after the other.
fn seconds(lands: &[Landing]) -> f64 {
    lands.iter().map(|each| each.link.seconds(each.bytes)).sum()
}

/// The slowest peer's.
fn latency(lands: &[Landing]) -> f64 {
    lands.iter().map(|each| each.link.latency.as_secs_f64()).fold(0.0, f64::max)
}

/// One rank among the others.
struct View<'a> {
    forecast: &'a Forecast<'a>,
    shares: &'a [Share],
    own: &'a Share,
    rank: usize,
}

impl View<'_> {
    /// Predictions that a rank of this branch computes.
    fn batch(&self) -> f64 {
        let both = self.own.branch == Branch::Whole && self.forecast.image.guided;
        if both { 2.0 } else { 1.0 }
    }

    fn cells(&self, share: &Share) -> f64 {
        let image = self.forecast.image;
        image.card.work.cells(share.band.rows, image.geometry.columns)
    }

    /// The other ranks of the branch.
    fn peers(&self) -> impl Iterator<Item = usize> {
        let (own, shares) = (self.rank, self.shares);
        let branch = self.own.branch;
        (0..shares.len()).filter(move |peer| *peer != own && shares[*peer].branch == branch)
    }

    fn link(&self, peer: usize) -> LinkSpeed {
        self.forecast.links.get(self.shares[peer].worker, self.own.worker)
    }

    /// Activations that `peer` sends in a call.
    fn landing(&self, peer: usize) -> Landing {
        let image = self.forecast.image;
        let work = &image.card.work;
        let columns = f64::from(image.geometry.columns) / f64::from(work.cell.max(1));
        let tokens = self.cells(&self.shares[peer]) * float(work.cell_values);
        let (edge, moments) = (columns * float(work.edge_values), 2.0 * float(work.groups));
        let wire = bytes_of(image.wire);
        let neighbour = self.rank.abs_diff(peer) == 1;
        let bytes = match self.forecast.scheme {
            Scheme::Neighbours if neighbour => wire * tokens + F32 * (edge + moments),
            Scheme::Neighbours => wire * tokens + F32 * moments,
            Scheme::AllGather => wire * (tokens + 2.0 * edge + moments),
        };
        Landing { bytes: self.batch() * bytes, link: self.link(peer) }
    }

    /// What `peer` has that the next call cannot start without.
    fn fresh(&self, peer: usize) -> Option<Landing> {
        let geometry = self.forecast.image.geometry;
        let row = F32 * f64::from(geometry.columns) * f64::from(geometry.channels);
        let other = &self.shares[peer];
        let bytes = if other.branch != self.own.branch {
            row * f64::from(other.band.overlap(self.own.band)?.rows)
        } else if self.rank.abs_diff(peer) == 1 {
            row * self.batch()
        } else {
            return None;
        };
        Some(Landing { bytes, link: self.link(peer) })
    }

    /// Bytes to predict, of which `landing` land in a call, and to decode.
    fn memory(&self, landing: f64) -> (f64, f64) {
        let image = self.forecast.image;
        let (card, own) = (image.card, self.batch() * self.cells(self.own));
        let weights = float(card.weight_bytes);
        let held = F32 * own * float(card.work.held_values);
        let posted = own * bytes_of(image.wire) * float(card.work.cell_values);
        let posted = if landing > 0.0 { posted } else { 0.0 };
        let rows = f64::from(image.geometry.rows) / count(self.shares.len());
        let factor = f64::from(card.vae_factor);
        let pixels = rows.ceil() * f64::from(image.geometry.columns) * factor * factor;
        let decode = pixels * f64::from(card.decode_bytes);
        (weights + held + posted + VERSIONS * landing, weights + decode)
    }
}

fn bytes_of(wire: Wire) -> f64 {
    count(wire.bytes())
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn count(of: usize) -> f64 {
    of as f64
}
