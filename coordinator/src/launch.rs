//! Starting workers.

pub mod local;
