//! Being a member of a cluster, decided without a socket or a clock.

mod backoff;
mod duty;

pub use backoff::Backoff;
pub use duty::{Duty, Turn};
