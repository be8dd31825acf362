//! What the crate promises, tried from outside.

mod codec;
mod conformance;
mod fabric;
mod plan;
mod shm;
mod strategy;
mod stream;
mod tcp;
