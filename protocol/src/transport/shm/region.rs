//! Memory that two processes map.

#![expect(unsafe_code, reason = "maps memory that another process maps, too")]

use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU32;

/// A file's memory, mapped until this is dropped.
///
/// The other process may write to it at any time. Words are therefore only reached as atomics, and
/// nothing in them is believed; bytes are plain numbers, and any is a valid value.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread, is unmapped once, and is reached through atomics and
// through the two functions whose callers keep readers and writers apart.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the first `bytes` bytes of `file`, which has that many. All pages are entered at once:
    /// the compute thread's copies are not to stop at each for the first time.
    pub(super) fn map(file: &OwnedFd, bytes: usize) -> std::io::Result<Self> {
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: the system chooses a place where nothing else is.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, protection, flags, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { start, bytes })
    }

    /// The first `count` words.
    pub(super) fn words(&self, count: usize) -> &[AtomicU32] {
        assert!(count <= self.bytes / size_of::<AtomicU32>(), "{count} words");
        // SAFETY: the mapping is that long, page-aligned, and lives as long as `self`; the words are
        // reached in no other way than this.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), count) }
    }

    /// Copies `bytes` to `at`.
    ///
    /// # Safety
    /// The range must be beyond the words, and nobody may read or write it meanwhile.
    pub(super) unsafe fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.bytes && bytes.len() <= self.bytes - at, "{} at {at}", bytes.len());
        // SAFETY: the range is within the mapping, and by the contract nobody's but the caller's.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at).as_ptr(), bytes.len());
        }
    }

    /// The `bytes` bytes at `at`.
    ///
    /// # Safety
    /// The range must be beyond the words, and nobody may write it for as long as it is borrowed.
    pub(super) unsafe fn read(&self, at: usize, bytes: usize) -> &[u8] {
        assert!(at <= self.bytes && bytes <= self.bytes - at, "{bytes} at {at}");
        // SAFETY: the range is within the mapping, and by the contract nobody writes it.
        unsafe { std::slice::from_raw_parts(self.start.add(at).as_ptr(), bytes) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, to which nothing refers: what does borrows `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.start.cast().as_ptr(), self.bytes) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, bytes = self.bytes, "a region stays mapped");
        }
    }
}
