//! How much a model call computes, exchanges and holds, whatever the image's size.

use serde::{Deserialize, Serialize};

/// The work of one prediction of a model, in cells: a cell is the smallest square of the latent that
/// has a whole number of pixels at each resolution, one at the lowest.
///
/// Counts are exact: 2 FLOP for each multiplication with its addition, in convolutions, linear layers
/// and attention. Norms and activations are left out, as they are less than a hundredth of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelWork {
    /// Latent rows and columns of a cell.
    pub cell: u32,
    /// FLOP of each call at any size: the embedding of the timestep.
    pub fixed_flop: u64,
    /// FLOP once per image: keys and values of the prompt, which later calls take again.
    pub text_flop: u64,
    /// FLOP per cell, but for attention's scores and their products with values.
    pub cell_flop: u64,
    /// FLOP per cell of attention's scores and products over the prompt.
    pub cross_flop: u64,
    /// FLOP per pair of cells of attention's scores and products over the image.
    pub pair_flop: u64,
    /// Keys and values of one cell, of all layers.
    pub cell_values: u64,
    /// Values that a band sends to one neighbour, per column of cells.
    pub edge_values: u64,
    /// Normalisation groups of all layers.
    pub groups: u64,
    /// How often a call asks for what lies beyond its band.
    pub sites: u32,
    /// The most values that a call holds at once, per cell.
    pub held_values: u64,
}

impl ModelWork {
    /// How many cells `rows` x `columns` of the latent have.
    #[must_use]
    pub fn cells(&self, rows: u32, columns: u32) -> f64 {
        let side = f64::from(self.cell.max(1));
        f64::from(rows) * f64::from(columns) / (side * side)
    }

    /// FLOP of one prediction of a band of `own` of an image's `all` cells.
    #[must_use]
    pub fn flop(&self, own: f64, all: f64) -> f64 {
        float(self.fixed_flop) + own * float(self.cell_flop) + self.attention_flop(own, all)
    }

    /// The part of it that is attention's scores and products.
    #[must_use]
    pub fn attention_flop(&self, own: f64, all: f64) -> f64 {
        own * (float(self.cross_flop) + all * float(self.pair_flop))
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate, rounded to 53 bits")]
fn float(count: u64) -> f64 {
    count as f64
}
