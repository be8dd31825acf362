//! Renders bands of a diffusion image: models, patch parallelism and the denoising engine.

pub mod engine;
pub mod kernels;
pub mod model;
pub mod parallel;
