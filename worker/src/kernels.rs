//! CPU compute kernels on plain `f32` slices: matrix product, convolution, attention, norms.
//!
//! Activations are channels-last: an image is `[batch, rows, width, channels]`, a token tensor
//! `[batch, tokens, channels]`. Weights are [`Packed`] once, when they are loaded.
//!
//! Every kernel is written once over a vector of lanes (`simd`) and compiled for each [`Isa`].
//! What an output element is depends on nothing but its own row and column: not on how many rows
//! there are, where a row stands among them, or how many threads share the work. So a band of an
//! image comes out, bit for bit, as it would from the whole image.

mod aligned;
mod arena;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod conv;
mod isa;
mod linear;
mod math;
mod norm;
mod packed;
mod pointwise;
mod portable;
mod product;
mod scratch;
mod simd;
mod tasks;
mod tile;
mod winograd;

#[cfg(test)]
mod attention_tests;
#[cfg(test)]
mod norm_tests;
#[cfg(test)]
mod product_tests;
#[cfg(test)]
mod reference;

pub use arena::{Arena, Block, Needed};
pub use attention::{Heads, Keys, attention};
pub use conv::{Band, Conv, Method, conv2d};
pub use isa::{Isa, IsaError};
pub use linear::{Activation, Epilogue, geglu, linear};
pub use norm::{Moment, group_moments, group_norm, layer_norm};
pub use packed::{Arithmetic, Packed, Stored};
pub use pointwise::{add, concat_channels, silu, upsample2x_nearest};
