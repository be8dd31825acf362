//! Jobs: waiting in the queue, being rendered, and kept. Pure but for [`store`], which has a file:
//! no runtime, no clock.

pub mod queue;
pub mod state;
pub mod store;
