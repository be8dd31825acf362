//! The worker among others: the only place with actix and the coordinator's socket.
//!
//! `session` keeps a connection to the coordinator and opens a new one when it breaks;
//! `supervisor` takes its orders, opens links to peers and gives runs to the engine.

mod session;
mod supervisor;

pub use session::{Coordinator, SessionError, join};

use std::future::Future;

/// Runs `future` on an actor system of this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    actix::System::new().block_on(future)
}
