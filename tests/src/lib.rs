//! The workspace's own test library: golden cases, in-process runs, clusters of real processes.
#![allow(clippy::panic, reason = "a harness fails the test it serves")]

pub mod cluster;
pub mod fixture;
pub mod fuzzing;
pub mod picture;
pub mod render;
pub mod tolerance;
