//! The workspace's integration tests, in one binary.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

mod checkpoint;
mod cluster;
mod device;
mod exchange_volume;
mod fuzzing;
mod golden_distri;
mod golden_given;
mod golden_single;
mod gpu;
mod parity;
mod preview;
mod resume;
mod simulation;
mod store;
mod tidy;
