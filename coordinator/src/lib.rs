//! Decides who renders which rows of an image: queue, planner, membership, command line.
//!
//! It never computes a tensor. Decisions are plain structs in [`director`], [`job`], [`planner`] and
//! [`cluster`]; [`actor`] carries bytes in and effects out.

pub mod actor;
pub mod api;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod director;
pub mod files;
pub mod identity;
pub mod job;
pub mod launch;
pub mod lora;
pub mod output;
pub mod picture;
pub mod planner;
pub mod probe;
pub mod profile;
pub mod telemetry;
pub mod ui;
