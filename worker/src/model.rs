//! Diffusion models: pure maths on tensors, over a band of the image.
//!
//! What a band cannot answer alone goes through [`exchange`]; nothing in here knows ranks, steps
//! as policy, or sockets.

pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod exchange;
pub mod files;
pub mod lora;
pub mod nn;
pub mod noise;
pub mod picture;
pub mod scheduler;
pub mod tensor;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;

use protocol::Fault;

/// Why a model could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the checkpoint is missing, corrupt, or asks for what is not supported.
    #[error("{0}")]
    Checkpoint(String),
    /// What was asked for does not fit this model.
    #[error("{0}")]
    Refused(String),
    /// Tensors do not fit each other: a bug.
    #[error("{0}")]
    Shape(String),
    /// The tensor library refused: a bug, or out of memory.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// What lies beyond the band could not be had.
    #[error(transparent)]
    Exchange(#[from] Fault),
}

/// What fallible model code returns.
pub type Result<T> = std::result::Result<T, Error>;
