//! Who is in the cluster. Pure: time is given.

pub mod failure;
pub mod netcheck;
pub mod pulse;
pub mod registry;
pub mod trust;
