//! Renders bands of a diffusion image.
//!
//! [`model`] is the maths, computed by [`kernels`] or a [`device`], and asks [`model::exchange`] for what lies
//! beyond its rows; [`parallel`] answers from peers; [`engine`] is the compute thread that runs both;
//! [`actor`] carries bytes between it, the coordinator and the peers.

pub mod actor;
pub mod cache;
pub mod cli;
pub mod device;
pub mod engine;
pub mod kernels;
pub mod member;
pub mod memory;
pub mod model;
pub mod parallel;
pub mod profile;
pub mod pulse;
