//! What the crate promises, tried from outside.

mod codec;
mod conformance;
mod fabric;
mod identity;
mod plan;
mod strategy;
mod stream;
mod tcp;
