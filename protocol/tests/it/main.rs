//! What the crate promises, tried from outside.

mod authority;
mod codec;
mod conformance;
mod endpoint;
mod fabric;
mod identity;
mod nccl;
mod plan;
mod proxy;
mod quic;
#[cfg(feature = "rdma")]
mod rdma;
mod shm;
mod strategy;
mod stream;
mod tcp;
