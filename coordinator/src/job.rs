//! Jobs: waiting in the queue, and being rendered. Pure: no runtime, no clock.

pub mod queue;
pub mod state;
