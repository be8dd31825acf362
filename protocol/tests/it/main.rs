//! What the crate promises, tried from outside.

mod codec;
mod conformance;
mod fabric;
mod plan;
#[cfg(feature = "rdma")]
mod rdma;
mod strategy;
mod stream;
mod tcp;
