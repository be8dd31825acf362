//! Jobs: waiting in the queue, and being rendered; where they can go on. Pure: no runtime, no clock; but for
//! the store, which has files.

pub mod checkpoint;
pub mod queue;
pub mod state;
pub mod store;
pub mod trace;
