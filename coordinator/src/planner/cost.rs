//! What an image will cost: seconds, bytes and memory.
//!
//! A rank's call takes its overhead, its work at its rate, and what of the exchange it waits for:
//!
//! ```text
//! seconds = overhead + FLOP / rate + exposed x bytes that land / bandwidth + latencies
//! ```
//!
//! and the call ends with its last rank. A synchronous call waits at each exchange point for the
//! slowest peer, and for all bytes. In a displaced call values have a whole call's time to land, so
//! that ours waits for what takes longer than computing ([`Overlap::Hidden`]); in others a part of the
//! exchange, or all of it, costs time all the same ([`Overlap::Share`]). What a call needs of the one
//! before, the latent's edges and the other branch's prediction, is waited for in every call.

pub mod preset;
mod rank;

use self::rank::RankCost;
use super::Candidate;
use super::branches::{self, Share, ShareError, Sharing, Work};
use super::pairs::{Cluster, LinkSpeed, Links};
use protocol::job::{CfgSplit, JobSpec, Mode, ModelCard, Warmup, Wire};
use protocol::plan::Geometry;
use serde::Serialize;
use std::time::Duration;

/// Which warm-up is assumed where it shows in the run only how long it lasts: the default's.
const WARMUP_ASSUMED: u32 = 4;
/// Relative speeds are whole numbers of this size: finer than any measured rate is known.
const SPEED_SCALE: f64 = 1e6;

/// What a worker was measured at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// FLOP a second.
    pub rate: f64,
    /// Seconds of each call that do not depend on how much of it is computed.
    pub overhead: f64,
}

impl Machine {
    /// The rate of a worker that predicts `speed` latent pixels a second of a band of one row unit at
    /// the model's native width, as workers measure when they join. Its overhead is in that rate.
    #[must_use]
    pub fn calibrated(card: &ModelCard, speed: u64) -> Self {
        let columns = card.native.0 / card.vae_factor.max(1);
        let cells = card.work.cells(card.row_unit, columns);
        let pixels = f64::from(card.row_unit) * f64::from(columns);
        let flop = card.work.flop(cells, cells);
        Self { rate: (flop * float(speed) / pixels.max(1.0)).max(1.0), overhead: 0.0 }
    }

    /// The speed of a worker of this rate: the inverse of [`Self::calibrated`]. None if the model's work is not known.
    #[must_use]
    pub fn speed(card: &ModelCard, rate: f64) -> Option<u64> {
        let one = Self::calibrated(card, 1 << 20).rate / float(1 << 20);
        (card.work.cell_flop > 0).then(|| whole(rate / one))
    }
}

/// How much of a displaced call's exchange is waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Overlap {
    /// What takes longer than the call computes.
    Hidden,
    /// This share of it: 1 is all.
    Share(f64),
}

/// Who sends what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Edges to neighbours, and all that is small as f32: ours.
    Neighbours,
    /// Edges to all ranks of the branch, and everything in the type of keys and values: the DistriFusion
    /// code's.
    AllGather,
}

/// How many calls an image takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// In all.
    pub total: u32,
    /// The first of them, which are synchronous.
    pub synchronous: u32,
}

impl Calls {
    /// `total` calls, displaced after call `warmup` (from 0).
    #[must_use]
    pub fn new(total: u32, warmup: u32) -> Self {
        Self { total, synchronous: warmup.saturating_add(1).min(total) }
    }

    /// Those of a job, with one call a step.
    #[must_use]
    pub fn of(spec: &JobSpec) -> Self {
        match (spec.mode, spec.warmup) {
            (Mode::FullSync, _) => Self { total: spec.steps, synchronous: spec.steps },
            (_, Warmup::Calls(warmup)) => Self::new(spec.steps, warmup),
            (_, Warmup::Auto) => Self::new(spec.steps, WARMUP_ASSUMED),
        }
    }
}

/// An image that is to be rendered.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// By this model.
    pub card: &'a ModelCard,
    /// Its latent.
    pub geometry: Geometry,
    /// Whether there are two predictions to compute.
    pub guided: bool,
    /// The type in which keys and values cross.
    pub wire: Wire,
    /// How many calls it takes.
    pub calls: Calls,
}

impl<'a> Image<'a> {
    /// The one of `spec`.
    #[must_use]
    pub fn of(spec: &JobSpec, card: &'a ModelCard, geometry: Geometry) -> Self {
        let guided = spec.guidance > 1.0;
        Self { card, geometry, guided, wire: spec.wire, calls: Calls::of(spec) }
    }

    /// One of the model's native size and guidance.
    #[must_use]
    pub fn native(card: &'a ModelCard, wire: Wire, calls: Calls) -> Self {
        let factor = card.vae_factor.max(1);
        let geometry = Geometry {
            rows: card.native.1 / factor,
            columns: card.native.0 / factor,
            channels: card.latent_channels,
            row_unit: card.row_unit,
            vae_factor: card.vae_factor,
        };
        Self { card, geometry, guided: card.guidance > 1.0, wire, calls }
    }
}

/// What is known of an image and of those who could render it: all that a prediction is made from.
#[derive(Clone, Debug)]
pub struct Forecast<'a> {
    /// The image.
    pub image: Image<'a>,
    /// The workers.
    pub machines: Vec<Machine>,
    /// Their links, by their places in `machines`.
    pub links: Links,
    /// Who sends what.
    pub scheme: Scheme,
    /// How much of it is waited for.
    pub overlap: Overlap,
}

/// What an image is predicted to cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Seconds of a synchronous call.
    pub synchronous_seconds: f64,
    /// Seconds of a displaced call.
    pub displaced_seconds: f64,
    /// Seconds of all calls: an image without its prompt and its decode.
    pub image_seconds: f64,
    /// Seconds of a call, the mean of all.
    pub call_seconds: f64,
    /// Seconds of exchange that a displaced call hides behind its computing.
    pub hidden_seconds: f64,
    /// Seconds of exchange that a displaced call waits for.
    pub exposed_seconds: f64,
    /// Bytes that land in a call on the rank that most land on.
    pub landing_bytes: f64,
    /// The most memory that a worker needs to predict.
    pub computing_bytes: f64,
    /// The most memory that a worker needs to decode its part as a whole.
    pub decoding_bytes: f64,
}

/// Who renders what, what that costs, and why it is this.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// The parts, in rank order.
    pub shares: Vec<Share>,
    /// What it costs.
    pub prediction: Prediction,
    /// Why, in words for people.
    pub reason: String,
}

/// What each rank's prediction takes in memory beside the model, in bytes.
#[must_use]
pub fn memory(image: Image<'_>, shares: &[Share]) -> Vec<u64> {
    let anything = LinkSpeed { bandwidth: 1, latency: Duration::ZERO };
    let workers = shares.iter().map(|share| share.worker + 1).max().unwrap_or(0);
    let Some(links) = Links::all(workers, |_, _| Some(anything)) else { return Vec::new() };
    let machines = vec![Machine { rate: 1.0, overhead: 0.0 }; workers];
    let (scheme, overlap) = (Scheme::Neighbours, Overlap::Hidden);
    let forecast = Forecast { image, machines, links, scheme, overlap };
    let weights = float(image.card.weight_bytes);
    let rank = |rank| RankCost::of(&forecast, shares, rank).computing - weights;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in bytes")]
    (0..shares.len()).map(|each| rank(each).max(0.0) as u64).collect()
}

impl<'a> Forecast<'a> {
    /// What is known of `image` and of the first `ranks` workers of `cluster`, as they were measured;
    /// None unless all links between them were.
    #[must_use]
    pub fn measured(image: Image<'a>, cluster: Cluster<'_>, ranks: usize) -> Option<Self> {
        let (workers, pairs) = (cluster.candidates.get(..ranks)?, cluster.pairs?);
        let figures = |from: usize, to: usize| pairs.get(workers[from].worker, workers[to].worker);
        let machine = |each: &Candidate| Machine::calibrated(image.card, each.speed);
        Some(Self {
            image,
            machines: workers.iter().map(machine).collect(),
            links: Links::all(ranks, figures)?,
            scheme: Scheme::Neighbours,
            overlap: Overlap::Hidden,
        })
    }

    /// What the image costs if it is shared so.
    #[must_use]
    pub fn predict(&self, shares: &[Share]) -> Prediction {
        let ranks: Vec<RankCost> =
            (0..shares.len()).map(|rank| RankCost::of(self, shares, rank)).collect();
        let most = |of: &dyn Fn(&RankCost) -> f64| ranks.iter().map(of).fold(0.0, f64::max);
        let between = most(&|rank| rank.between);
        // Nobody passes an exchange point before the slowest of all has posted there.
        let synchronous = most(&|rank| rank.compute) + most(&|rank| rank.awaited) + between;
        let displaced = most(&|rank| rank.compute + rank.exposed) + between;
        let exposed = displaced - most(&|rank| rank.compute);
        let Calls { total, synchronous: first } = self.image.calls;
        let image = most(&|rank| rank.once)
            + f64::from(first) * synchronous
            + f64::from(total.saturating_sub(first)) * displaced;
        Prediction {
            synchronous_seconds: synchronous,
            displaced_seconds: displaced,
            image_seconds: image,
            call_seconds: image / f64::from(total.max(1)),
            hidden_seconds: (most(&|rank| rank.transfer) + between - exposed).max(0.0),
            exposed_seconds: exposed,
            landing_bytes: most(&|rank| rank.landing),
            computing_bytes: most(&|rank| rank.computing),
            decoding_bytes: most(&|rank| rank.decoding),
        }
    }

    /// How the planner would share the image among all its workers.
    ///
    /// # Errors
    /// If the image has too few rows for them, or cannot be split as `wish` says.
    pub fn mesh(&self, wish: CfgSplit) -> Result<Mesh, ShareError> {
        let fastest = self.machines.iter().map(|machine| machine.rate).fold(1.0, f64::max);
        let speeds: Vec<u64> =
            self.machines.iter().map(|machine| relative(machine.rate / fastest)).collect();
        let geometry = self.image.geometry;
        let (rows, unit) = (geometry.rows, geometry.row_unit);
        let work = Work { rows, unit, guided: self.image.guided, speeds: &speeds };
        let Sharing { shares, reason } = branches::share(work, wish, Some(self))?;
        Ok(Mesh { prediction: self.predict(&shares), shares, reason })
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1e6")]
fn relative(rate: f64) -> u64 {
    (rate * SPEED_SCALE).round() as u64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels a second")]
fn whole(speed: f64) -> u64 {
    speed.round() as u64
}

#[expect(clippy::cast_precision_loss, reason = "an estimate, rounded to 53 bits")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
