//! Who renders which rows of one run, and what every pair of ranks will exchange.
//!
//! Invariants, cited by tests:
//! - **S-3 tiling**: bands cover every latent row once, in rank order; the slot tables of every
//!   pair of ranks agree; their digests match.
//! - **S-4 unit**: a band whose top or height is not a multiple of the model's row unit is refused.
//!
//! With guidance, a call computes two predictions: the negative prompt's and the prompt's. Either
//! every rank computes both for its band, as a batch of two, or the ranks form two branches: the
//! first ranks compute the negative's prediction, the others the prompt's. The bands of either
//! branch cover the image, and only predictions cross between branches.

mod band;
mod fabric;
mod nccl;
pub mod netcheck;
mod shard;
mod slot;
mod strip;

pub use band::{Band, BandError, check_tiling, split_evenly};
pub use fabric::{Fabric, Lack, Offer, SharedMemory, nearest, shared};
pub use nccl::{COMMUNICATOR_ID_BYTES, Collectives, NcclDevice, Operation, Step};
pub use shard::Shard;
pub use slot::{Ask, Digest, Kind, SiteSpec, SlotSpec, SlotTable, Stage, rows_sent};
pub use strip::{Axis, Strip};

use crate::id::{Rank, RunId, WorkerId};
use crate::identity::Fingerprint;
use crate::job::{JobSpec, Mode, Parallelism, Warmup};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The most ranks one image is rendered by: beyond it bands of the largest image we admit would
/// be thinner than one row unit.
pub const RANKS_MAX: usize = 64;

/// The longest side of an image in pixels: its RGB bytes must fit one frame.
pub const SIDE_MAX: u32 = 8192;

/// The most channels of a latent: models have 4 to 32.
pub const CHANNELS_MAX: u32 = 256;

/// One run of one job: every rank is given the same plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Which run.
    pub run: RunId,
    /// What is rendered.
    pub spec: JobSpec,
    /// The latent's shape.
    pub geometry: Geometry,
    /// The ranks, in order; rank r renders `members[r].band`.
    pub members: Vec<Member>,
    /// The fabrics that may be used; none named means all.
    pub fabrics: Vec<Fabric>,
    /// What was found not to carry between two ranks, the lower one first.
    pub broken: Vec<([Rank; 2], Fabric)>,
}

/// The shape of the latent that a plan splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Latent rows.
    pub rows: u32,
    /// Latent columns.
    pub columns: u32,
    /// Latent channels.
    pub channels: u32,
    /// Bands start at multiples of this many latent rows.
    pub row_unit: u32,
    /// Pixels per latent row and column.
    pub vae_factor: u32,
}

impl Geometry {
    /// Checks that it is one of an image that can be rendered: what follows from its numbers is no number
    /// that overflows, and no division by zero.
    ///
    /// # Errors
    /// The first number that is not.
    pub fn check(&self) -> Result<(), PlanError> {
        let Self { rows, columns, channels, row_unit, vae_factor } = *self;
        let side_max = SIDE_MAX.checked_div(vae_factor).unwrap_or(0);
        let numbers = [
            ("pixels per row", vae_factor, SIDE_MAX),
            ("rows", rows, side_max),
            ("columns", columns, side_max),
            ("channels", channels, CHANNELS_MAX),
            ("rows per unit", row_unit, side_max),
        ];
        match numbers.into_iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            Some((what, value, most)) => Err(PlanError::Geometry { what, value, most }),
            None => Ok(()),
        }
    }
}

/// One rank of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The worker that is this rank.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// The fabrics that it offers them.
    pub offers: Vec<Offer>,
    /// What it computes of guidance's two predictions.
    pub branch: Branch,
    /// The latent rows it steps and, with bands, predicts. Ranks of a baseline step the whole image
    /// and predict a [`Strip`] of it, or compute with a [`Shard`] of each layer.
    pub band: Band,
    /// The latent rows it decodes: as all ranks share the decode, fewer than its band where there
    /// are two branches.
    pub decodes: Band,
    /// Which key it has: whom its peers let in, and know it by. None in a cluster without identities.
    pub identity: Option<Fingerprint>,
}

impl Member {
    /// Whether its band holds every row that it decodes.
    #[must_use]
    pub fn has_what_it_decodes(&self) -> bool {
        self.band.overlap(self.decodes) == Some(self.decodes)
    }
}

/// What a rank computes of guidance's two predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Branch {
    /// Both as one batch, or without guidance the only one.
    Whole,
    /// The negative prompt's.
    Negative,
    /// The prompt's.
    Prompt,
}

/// Why a plan is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The bands of one branch, or those of the decode, are no split of the image.
    #[error("{what}: {cause}")]
    Bands {
        /// Which bands.
        what: &'static str,
        /// What is wrong.
        cause: BandError,
    },
    /// No rank, or more than [`RANKS_MAX`].
    #[error("a plan has 1 to {RANKS_MAX} ranks, not {0}")]
    Ranks(usize),
    /// No image that can be rendered has such a latent.
    #[error("a latent has 1 to {most} {what}, not {value}")]
    Geometry {
        /// What there are too few or too many of.
        what: &'static str,
        /// How many there are.
        value: u32,
        /// How many there may be.
        most: u32,
    },
    /// Branches are not the negative's ranks, then the prompt's; or there are two without guidance.
    #[error("the ranks' branches do not fit together: {0}")]
    Branches(String),
}

impl Plan {
    /// Checks S-3 and S-4, the branches, the latent's shape, and that there are as many ranks as a plan may
    /// have.
    ///
    /// # Errors
    /// What is wrong, with the numbers.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.members.is_empty() || self.members.len() > RANKS_MAX {
            return Err(PlanError::Ranks(self.members.len()));
        }
        self.geometry.check()?;
        let branches: Vec<Branch> = self.members.iter().map(|member| member.branch).collect();
        let split = branches.contains(&Branch::Negative) && branches.contains(&Branch::Prompt);
        let whole = branches.iter().all(|branch| *branch == Branch::Whole);
        let apart = split && !branches.contains(&Branch::Whole) && branches.is_sorted();
        if !(whole || apart && self.is_guided()) {
            let cause = format!("{branches:?} at guidance {}", self.spec.guidance);
            return Err(PlanError::Branches(cause));
        }
        let Geometry { rows, row_unit, .. } = self.geometry;
        let tiles = |what, bands: Vec<Band>, unit| {
            check_tiling(&bands, rows, unit).map_err(|cause| PlanError::Bands { what, cause })
        };
        for branch in [Branch::Whole, Branch::Negative, Branch::Prompt] {
            let bands: Vec<Band> = self
                .members
                .iter()
                .filter(|member| member.branch == branch)
                .map(|member| member.band)
                .collect();
            if self.spec.parallelism.has_bands() {
                if !bands.is_empty() {
                    tiles("the bands of a branch", bands, row_unit)?;
                }
                continue;
            }
            for band in &bands {
                tiles("a rank that steps the whole image", vec![*band], row_unit)?;
            }
            if self.is_naive() {
                self.check_strips(bands.len())?;
            }
        }
        tiles("the decode", self.members.iter().map(|member| member.decodes).collect(), 1)
    }

    /// The image has strips for as many naive ranks as there are in a branch.
    fn check_strips(&self, ranks: usize) -> Result<(), PlanError> {
        let Geometry { rows, columns, row_unit, .. } = self.geometry;
        let wrong = |cause| PlanError::Bands { what: "the strips of a branch", cause };
        for extent in [rows, columns] {
            if ranks > 0 {
                split_evenly(extent, row_unit, ranks).map_err(wrong)?;
            }
        }
        Ok(())
    }

    /// Whether each rank renders its part as if it were an image of its own.
    #[must_use]
    pub fn is_naive(&self) -> bool {
        !self.spec.parallelism.has_bands() && self.spec.parallelism != Parallelism::Tensor
    }

    /// Whether `rank` measures how far what it exchanges moves, for the warm-up depends on it.
    #[must_use]
    pub fn adapts(&self, rank: Rank) -> bool {
        let JobSpec { parallelism, mode, warmup, .. } = self.spec;
        let displaces = parallelism.has_bands() && mode != Mode::FullSync;
        displaces && warmup == Warmup::Auto && self.branch_of(rank).count() > 1
    }

    /// Whether a run that goes on after `calls` model calls, the next of them synchronous, gives the bits of
    /// one that was never broken off: that call would have been synchronous anyway, and with it all
    /// that later ones read is there again.
    #[must_use]
    pub fn resumes_exactly(&self, calls: u32) -> bool {
        let JobSpec { parallelism, mode, warmup, .. } = self.spec;
        let alone = self.ranks().all(|rank| self.branch_of(rank).count() == 1);
        calls == 0
            || alone
            || mode == Mode::FullSync
            || !parallelism.has_bands()
            || matches!(warmup, Warmup::Calls(last) if calls <= last)
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.members.len()
    }

    /// The ranks, in order.
    pub fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..u16::try_from(self.members.len()).unwrap_or(u16::MAX)).map(Rank)
    }

    /// The rank's part, if it is one of the plan's.
    #[must_use]
    pub fn member(&self, rank: Rank) -> Option<&Member> {
        self.members.get(rank.index())
    }

    /// The ranks of the branch of `rank`, itself included, from the top of the image to its bottom.
    pub fn branch_of(&self, rank: Rank) -> impl Iterator<Item = Rank> {
        let branch = self.member(rank).map(|member| member.branch);
        self.ranks().filter(move |peer| self.member(*peer).map(|member| member.branch) == branch)
    }

    /// Whether `rank` is the one that reports its band's latent: every row is reported once.
    #[must_use]
    pub fn reports(&self, rank: Rank) -> bool {
        let first = self.spec.parallelism.has_bands() || rank == Rank(0);
        first && self.member(rank).is_some_and(|member| member.branch != Branch::Prompt)
    }

    /// Whether classifier-free guidance is on.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        self.spec.guidance > 1.0
    }

    /// Over what two ranks exchange most: by NCCL, or over their link. None: they share no fabric that may
    /// be used.
    #[must_use]
    pub fn fabric(&self, one: Rank, other: Rank) -> Option<Fabric> {
        let nccl = self.nccl_group(one).contains(&other) && one != other;
        if nccl { Some(Fabric::Nccl) } else { self.link_fabric(one, other) }
    }

    /// Over what two ranks have a link: every two do, as little crosses by NCCL but what layers exchange.
    /// Where NCCL alone may be used, the link is over whatever is nearest.
    #[must_use]
    pub fn link_fabric(&self, one: Rank, other: Rank) -> Option<Fabric> {
        let links = |fabrics: &[Fabric]| -> Vec<Fabric> {
            fabrics.iter().copied().filter(|fabric| fabric.is_link()).collect()
        };
        let named = links(&self.fabrics);
        let mut allowed = if named.is_empty() { links(Fabric::ALL) } else { named };
        let pair = [one.min(other), one.max(other)];
        allowed.retain(|fabric| !self.broken.contains(&(pair, *fabric)));
        if allowed.is_empty() {
            return None;
        }
        nearest(&self.member(one)?.offers, &self.member(other)?.offers, &allowed)
    }

    /// How many predictions `rank` computes as one batch.
    #[must_use]
    pub fn batch(&self, rank: Rank) -> u32 {
        let whole = self.member(rank).is_some_and(|member| member.branch == Branch::Whole);
        if whole && self.is_guided() { 2 } else { 1 }
    }
}
