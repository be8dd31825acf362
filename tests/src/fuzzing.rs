//! What fuzzers call, and the replay of what they start from: one function for each kind of input that
//! others choose.
//!
//! Each takes any bytes whatever. It returns if they are refused, or are what they should be; it panics if
//! the code under it does, or breaks a promise that the function knows: then those bytes are a bug.
//! `docs/reliability.md` says how to run them.

mod checkpoint;
mod identity;
mod lora;
mod picture;
mod plan;
mod request;
mod sample;
mod seeds;
mod tokenizer;
mod wire;

pub use checkpoint::{config, safetensors, scheduler};
pub use identity::identity;
pub use lora::lora;
pub use picture::picture;
pub use plan::plan;
pub use request::request;
pub use seeds::{Seed, seeds};
pub use tokenizer::tokenizer;
pub use wire::{frame, handshake, message};

use std::path::{Path, PathBuf};

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folders and of its fuzzer.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config),
    ("frame", frame),
    ("handshake", handshake),
    ("identity", identity),
    ("lora", lora),
    ("message", message),
    ("picture", picture),
    ("plan", plan),
    ("request", request),
    ("safetensors", safetensors),
    ("scheduler", scheduler),
    ("tokenizer", tokenizer),
];

/// Where inputs of a target are kept: `kind` is `corpus`, or `regressions`.
#[must_use]
pub fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}
