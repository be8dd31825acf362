//! Links over TCP: works everywhere, and is what every faster fabric is measured against.
//!
//! One [`Listener`] per worker. For each run every rank calls all lower ranks and is called by all
//! higher ones. Sockets are served by tasks of the tokio runtime that the listener was made on;
//! the compute thread, which is outside of it, meets them in queues.

mod gate;
mod link;
mod listener;

pub use link::{Hangup, TcpLink};
pub use listener::Listener;

use std::time::Duration;

/// How long all links of a run may take to open: a start message may reach the last worker some
/// seconds after the first one, and a peer that is not there by then will not come.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a caller whose run this worker has not been told of is kept: as long as it waits.
pub const PARKED_FOR: Duration = OPEN_DEADLINE;

/// How many such callers are kept: one run's, since a worker renders one at a time.
pub const PARKED_MAX: usize = crate::plan::RANKS_MAX;

/// How many callers may be connected that have not said hello yet.
pub const STRANGERS_MAX: usize = 2 * crate::plan::RANKS_MAX;

/// How long a dropped link goes on sending what was posted, and receiving what nobody reads. It
/// must outlast the time by which ranks of one run may finish apart: two calls of a large image.
pub const LINGER: Duration = Duration::from_secs(120);
