//! Who renders which rows of one run, and what every pair of ranks will exchange.
//!
//! Invariants, cited by tests:
//! - **S-3 tiling**: bands cover every latent row once, in rank order; the slot tables of every
//!   pair of ranks agree; their digests match.
//! - **S-4 unit**: a band whose top or height is not a multiple of the model's row unit is refused.

mod band;
mod slot;

pub use band::{Band, BandError, check_tiling, split_evenly};
pub use slot::{Ask, Digest, SiteSpec, SlotSpec, SlotTable, Stage};

use crate::id::{Rank, RunId, WorkerId};
use crate::job::JobSpec;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The most ranks one image is rendered by: beyond it bands of the largest image we admit would
/// be thinner than one row unit.
pub const RANKS_MAX: usize = 64;

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

/// One rank of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The worker that is this rank.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// The latent rows it renders.
    pub band: Band,
}

impl Plan {
    /// Checks S-3 and S-4 and that there are as many ranks as a plan may have.
    ///
    /// # Errors
    /// What is wrong, with the numbers.
    pub fn check(&self) -> Result<(), BandError> {
        let bands: Vec<Band> = self.members.iter().map(|member| member.band).collect();
        check_tiling(&bands, self.geometry.rows, self.geometry.row_unit)
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.members.len()
    }

    /// The ranks, from the top of the image to its bottom.
    pub fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..u16::try_from(self.members.len()).unwrap_or(u16::MAX)).map(Rank)
    }

    /// The rows that `rank` renders.
    #[must_use]
    pub fn band(&self, rank: Rank) -> Option<Band> {
        self.members.get(rank.index()).map(|member| member.band)
    }

    /// How many images one UNet call runs as a batch: both branches of guidance, or one.
    #[must_use]
    pub fn batch(&self) -> u32 {
        if self.spec.guidance > 1.0 { 2 } else { 1 }
    }
}
