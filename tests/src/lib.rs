//! The workspace's own test library: golden cases, in-process runs, clusters of real processes, and of
//! simulated ones.
#![allow(clippy::panic, reason = "a harness fails the test it serves")]

pub mod clock;
pub mod cluster;
pub mod fixture;
pub mod fuzzing;
pub mod http;
pub mod network;
pub mod oracle;
pub mod picture;
pub mod postgres;
pub mod random;
pub mod render;
pub mod simulation;
pub mod tolerance;
