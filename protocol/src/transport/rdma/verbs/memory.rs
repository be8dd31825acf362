//! Memory that a device reads and writes.

#![expect(unsafe_code, reason = "maps memory, and registers it with devices")]

use super::super::error::RdmaError;
use super::context::{Context, warn};
use ibverbs_sys as sys;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};
use std::ffi::c_int;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Zeroed memory of its own pages, which a device may write to while it is mapped.
#[derive(Debug)]
pub(in super::super) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is a range of addresses; what reads and writes it says why it may.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `bytes`.
    pub(in super::super) fn new(bytes: usize) -> Result<Arc<Self>, RdmaError> {
        let bytes = bytes.max(1); // an empty range cannot be mapped
        // SAFETY: a new mapping at an address that the system chooses touches nothing else.
        let mapped = unsafe {
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            mmap_anonymous(std::ptr::null_mut(), bytes, access, flags)
        };
        let start = mapped.map_err(|error| RdmaError::verb("mmap", &error.into()))?;
        let start = NonNull::new(start.cast()).expect("nothing is mapped at address 0");
        Ok(Arc::new(Self { start, bytes }))
    }

    /// What lies in `range`, to be read while no device writes there.
    ///
    /// The peer writes to a buffer only between its credit and its next announcement, and nobody
    /// reads it then. A peer that does so at another time spoils the bytes of its own values:
    /// they have no invalid ones, and lengths and places never come from them.
    pub(in super::super) fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?}");
        // SAFETY: the range is mapped as long as `self` and initialised; on writers, see above.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Copies `bytes` to `at`, where nobody reads yet.
    pub(in super::super) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.bytes && bytes.len() <= self.bytes - at, "{at} and {}", bytes.len());
        // SAFETY: the range is mapped, and `bytes` cannot overlap it: slices of this memory are
        // given out for landing regions only, which are never written to from here.
        unsafe {
            let to = self.start.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and slices of it have ended with `self`.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%error, "munmap failed");
        }
    }
}

/// Whose keys open which memory: a queue pair reaches only regions of its own domain.
#[derive(Debug)]
pub(in super::super) struct ProtectionDomain {
    pub(super) raw: *mut sys::ibv_pd,
    pub(super) context: Arc<Context>,
}

// SAFETY: verbs may be called from any thread, and from several at once.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(in super::super) fn new(context: &Arc<Context>) -> Result<Arc<Self>, RdmaError> {
        // SAFETY: the context is open.
        let raw = unsafe { (context.library.ibv_alloc_pd)(context.raw) };
        if raw.is_null() {
            return Err(RdmaError::verb("ibv_alloc_pd", &io::Error::last_os_error()));
        }
        Ok(Arc::new(Self { raw, context: Arc::clone(context) }))
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: regions and queue pairs hold their domain, so there are none left.
        let code = unsafe { (self.context.library.ibv_dealloc_pd)(self.raw) };
        warn("ibv_dealloc_pd", code);
    }
}

/// What a device may do with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Access {
    /// Read it, to send what is in it.
    Send,
    /// Write to it what a peer sends.
    Land,
}

/// Memory that a device may reach until this is dropped.
#[derive(Debug)]
pub(in super::super) struct MemoryRegion {
    raw: *mut sys::ibv_mr,
    memory: Arc<Memory>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: verbs may be called from any thread, and from several at once.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    /// Registers all of `memory`, which locks it.
    pub(in super::super) fn new(
        domain: &Arc<ProtectionDomain>,
        memory: Arc<Memory>,
        access: Access,
    ) -> Result<Self, RdmaError> {
        let flags = match access {
            Access::Send => 0,
            Access::Land => {
                (sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE
                    | sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE)
                    .0
            }
        };
        let flags = c_int::try_from(flags).expect("flags are small");
        // SAFETY: the memory is mapped, and stays so until after the region is deregistered.
        let raw = unsafe {
            let start = memory.start.as_ptr().cast();
            (domain.context.library.ibv_reg_mr)(domain.raw, start, memory.bytes, flags)
        };
        if raw.is_null() {
            let error = io::Error::last_os_error();
            return Err(match (error.kind(), getrlimit(Resource::Memlock).current) {
                (io::ErrorKind::OutOfMemory, Some(limit_bytes)) => {
                    RdmaError::Memlock { bytes: memory.bytes, limit_bytes }
                }
                _ => RdmaError::verb("ibv_reg_mr", &error),
            });
        }
        Ok(Self { raw, memory, domain: Arc::clone(domain) })
    }

    pub(in super::super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where the region starts.
    pub(in super::super) fn address(&self) -> u64 {
        u64::try_from(self.memory.start.as_ptr().addr()).expect("addresses have at most 64 bits")
    }

    /// The key by which a peer's device reaches it.
    pub(in super::super) fn remote_key(&self) -> u32 {
        // SAFETY: the region is registered until `self` is dropped.
        unsafe { (*self.raw).rkey }
    }

    /// The key by which the own device reaches it.
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).lkey }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: it is deregistered once, here.
        let code = unsafe { (self.domain.context.library.ibv_dereg_mr)(self.raw) };
        warn("ibv_dereg_mr", code);
    }
}
