//! What two Tessera processes must agree on: identifiers, messages, plans, handshakes and
//! transports. There is no model, no device and no actor in here.
//!
//! Outside [`transport`] nothing in this crate knows a socket, a clock or an async runtime
//! (rule D-3 of `docs/architecture.md`).

pub mod codec;
pub mod fault;
pub mod handshake;
pub mod id;
pub mod identity;
pub mod job;
pub mod keyfile;
pub mod message;
pub mod plan;
pub mod tls;
pub mod transport;
pub mod version;

pub use fault::{Fault, FaultKind};
pub use id::{Call, Epoch, JobId, Rank, RunId, Site, Slot, WorkerId};
pub use version::Version;

/// The version of what crosses the coordinator's connections: it rises whenever a message, a plan or a job's description
/// changes.
pub const WIRE_VERSION: u16 = 10;

/// The oldest that is spoken beside it: that of the release before.
pub const WIRE_VERSION_OLDEST: u16 = 9;

/// The version of what crosses links between workers. Workers with different numbers refuse each other; it changes whenever the
/// meaning of a slot, or what the ranks' digest is made of, does.
pub const LINK_VERSION: u16 = 9;

/// The release of this build, named in refusals next to [`WIRE_VERSION`].
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
