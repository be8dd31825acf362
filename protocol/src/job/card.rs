//! What a worker tells of the model that it has loaded.

use super::{Dtype, ModelWork, PreviewMap, Scheduler};
use crate::plan::Geometry;
use serde::{Deserialize, Serialize};

/// What a worker has loaded: all that the coordinator needs to know of a model.
///
/// Workers whose `name`, `digest` or `dtype` differ do not render together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The folder's name, or `emoji-xl` for the built-in model.
    pub name: String,
    /// Hex blake3 of configurations and of every tensor that is used.
    pub digest: String,
    /// `sdxl` or `sd`.
    pub family: String,
    /// The type the weights are held in (never `auto`; a mixed checkpoint says its largest part).
    pub dtype: Dtype,
    /// Channels of the latent.
    pub latent_channels: u32,
    /// Pixels per latent row and column.
    pub vae_factor: u32,
    /// Bands start at multiples of this many latent rows; sizes are multiples of it, too.
    pub row_unit: u32,
    /// The size the model was trained at, in pixels: the default.
    pub native: (u32, u32),
    /// The checkpoint's own scheduler.
    pub scheduler: Scheduler,
    /// The default guidance scale.
    pub guidance: f32,
    /// Bytes the weights take in memory.
    pub weight_bytes: u64,
    /// Tensor parallelism divides its layers among this many ranks at most.
    pub shards_max: u32,
    /// Bytes that decoding a band as a whole takes for each of its pixels.
    pub decode_bytes: u32,
    /// What a call computes, exchanges and holds.
    pub work: ModelWork,
    /// How a latent is shown before it is decoded; None if its decoder gives nothing to learn that from. It is
    /// measured, so it may differ in the last bits between workers that hold the same model.
    pub preview: Option<PreviewMap>,
    /// Bytes that encoding a picture takes for each of its pixels, on every rank; 0: it has no encoder.
    pub encode_bytes: u32,
}

impl ModelCard {
    /// The latent of the smallest image that the model renders: one row unit in each direction.
    #[must_use]
    pub fn smallest(&self) -> Geometry {
        let Self { row_unit, vae_factor, latent_channels: channels, .. } = *self;
        Geometry { rows: row_unit, columns: row_unit, channels, row_unit, vae_factor }
    }
}
