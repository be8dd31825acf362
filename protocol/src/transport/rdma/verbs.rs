//! Verbs: the part of libibverbs that links need, each object owned by a value that destroys it.
//!
//! Objects hold what they were made from, so that they go in the order that the library asks for:
//! a queue pair before its completion queue and its protection domain, these before the device.
//! Here and below is all of RDMA's unsafe code.

mod completion;
mod context;
mod library;
mod memory;
mod pair;

pub(super) use completion::{Completion, CompletionQueue, Status};
pub(super) use context::{Context, Event, Limits, PortView, Scope};
pub(super) use memory::{Access, Memory, MemoryRegion, ProtectionDomain};
pub(super) use pair::{Depths, Hop, Peer, Piece, QueuePair, Remote};

use std::io;

/// What a verb's return value says: 0, or an error number.
fn check(code: std::ffi::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
