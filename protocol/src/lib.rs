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

pub use fault::{Fault, FaultKind};
pub use id::{Call, Epoch, JobId, Rank, RunId, Site, Slot, WorkerId};

/// The version of everything that crosses a wire. Processes with different numbers refuse each
/// other; it changes whenever a message, a plan or the meaning of a slot changes.
pub const WIRE_VERSION: u16 = 9;

/// The release of this build, named in refusals next to [`WIRE_VERSION`].
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
