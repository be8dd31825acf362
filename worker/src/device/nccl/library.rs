//! The functions of NVIDIA's library, looked up when they are first needed: a worker starts without it.
//!
//! cudarc's own table of them cannot be used: candle has cudarc linked, and so a worker that named it would
//! not start where there is no NCCL; loaded, it panics where a function is missing.

#![expect(unsafe_code, reason = "a C library is loaded, and its functions are called")]

use super::NcclError;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

/// The file, in the version whose calls these are.
const LIBRARY: &str = "libnccl.so.2";

/// The first version with what [`Config`] says.
const VERSION_MIN: u32 = 21_800;

/// What stands in a configuration where NCCL is to choose.
pub(super) const UNDEFINED: c_int = c_int::MIN;

/// A communicator, as NCCL knows it.
pub(super) type Comm = *mut c_void;

type Outcome = c_int;
const SUCCESS: Outcome = 0;
const IN_PROGRESS: Outcome = 7;

/// Bytes, whatever they mean.
const UINT8: c_int = 1;

/// What a communicator's ranks find each other by.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId {
    pub(super) bytes: [u8; 128],
}

/// A communicator's configuration as of NCCL 2.17; what later versions added is left to them.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
}

impl Config {
    /// One in which calls return when they are done, and operations take at most so many of a GPU's
    /// multiprocessors.
    pub(super) fn new(max_ctas: c_int) -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 1,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas,
            net_name: ptr::null(),
        }
    }
}

/// The functions that are used.
pub(super) struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> Outcome,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Outcome,
    comm_init_rank_config:
        unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Outcome,
    comm_destroy: unsafe extern "C" fn(Comm) -> Outcome,
    comm_abort: unsafe extern "C" fn(Comm) -> Outcome,
    comm_get_async_error: unsafe extern "C" fn(Comm, *mut Outcome) -> Outcome,
    get_error_string: unsafe extern "C" fn(Outcome) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    group_start: unsafe extern "C" fn() -> Outcome,
    group_end: unsafe extern "C" fn() -> Outcome,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, *mut c_void) -> Outcome,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Outcome,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        Comm,
        *mut c_void,
    ) -> Outcome,
    /// Loaded as long as its functions are.
    _library: Library,
}

/// A stretch of a GPU's memory.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Stretch {
    fn pointer(self) -> *mut c_void {
        // An address of the GPU's: nothing here follows it.
        ptr::with_exposed_provenance_mut(usize::try_from(self.address).unwrap_or(0))
    }
}

/// The library, if there is one.
pub(super) fn nccl() -> Result<&'static Nccl, NcclError> {
    static NCCL: OnceLock<Result<Nccl, NcclError>> = OnceLock::new();
    NCCL.get_or_init(|| Nccl::load(LIBRARY)).as_ref().map_err(Clone::clone)
}

fn lacking(library: &'static str, cause: impl ToString) -> NcclError {
    NcclError::Library { library, cause: cause.to_string() }
}

/// The function of this name.
fn function<T: Copy>(
    library: &Library,
    file: &'static str,
    name: &'static str,
) -> Result<T, NcclError> {
    // SAFETY: the types above are those of NCCL's header for these names.
    let symbol = unsafe { library.get::<T>(name) };
    symbol.map(|symbol| *symbol).map_err(|_| lacking(file, format_args!("it has no {name}")))
}

impl Nccl {
    fn load(file: &'static str) -> Result<Self, NcclError> {
        // SAFETY: NCCL's initialisers run in any process.
        let library = unsafe { Library::new(file) };
        let library = library.map_err(|error| lacking(file, said(&error)))?;
        let nccl = Self {
            get_version: function(&library, file, "ncclGetVersion")?,
            get_unique_id: function(&library, file, "ncclGetUniqueId")?,
            comm_init_rank_config: function(&library, file, "ncclCommInitRankConfig")?,
            comm_destroy: function(&library, file, "ncclCommDestroy")?,
            comm_abort: function(&library, file, "ncclCommAbort")?,
            comm_get_async_error: function(&library, file, "ncclCommGetAsyncError")?,
            get_error_string: function(&library, file, "ncclGetErrorString")?,
            get_last_error: function(&library, file, "ncclGetLastError")?,
            group_start: function(&library, file, "ncclGroupStart")?,
            group_end: function(&library, file, "ncclGroupEnd")?,
            send: function(&library, file, "ncclSend")?,
            recv: function(&library, file, "ncclRecv")?,
            all_gather: function(&library, file, "ncclAllGather")?,
            _library: library,
        };
        let version = nccl.version()?;
        if version < VERSION_MIN {
            return Err(lacking(
                file,
                format_args!("its version is {version}, before {VERSION_MIN}"),
            ));
        }
        Ok(nccl)
    }

    fn outcome(&self, call: &'static str, comm: Comm, outcome: Outcome) -> Result<(), NcclError> {
        if outcome == SUCCESS || outcome == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both take any value and give a text that lives as long as the library, or null.
        let texts = unsafe { [(self.get_error_string)(outcome), (self.get_last_error)(comm)] };
        let texts = texts.into_iter().filter(|text| !text.is_null());
        // SAFETY: they end with a zero.
        let texts = texts.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy());
        let texts: Vec<_> = texts.filter(|text| !text.is_empty()).collect();
        Err(NcclError::Failed { call, cause: texts.join(": ") })
    }

    /// 22803 is 2.28.3.
    pub(super) fn version(&self) -> Result<u32, NcclError> {
        let mut version = 0;
        // SAFETY: it writes one number.
        let outcome = unsafe { (self.get_version)(&raw mut version) };
        self.outcome("ncclGetVersion", ptr::null_mut(), outcome)?;
        Ok(u32::try_from(version).unwrap_or(0))
    }

    pub(super) fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = UniqueId { bytes: [0; 128] };
        // SAFETY: it writes one identity.
        let outcome = unsafe { (self.get_unique_id)(&raw mut id) };
        self.outcome("ncclGetUniqueId", ptr::null_mut(), outcome)?;
        Ok(id)
    }

    /// The communicator `id`, on the thread's current GPU.
    pub(super) fn init(
        &self,
        id: UniqueId,
        (place, ranks): (c_int, c_int),
        mut config: Config,
    ) -> Result<Comm, NcclError> {
        let mut comm = ptr::null_mut();
        // SAFETY: it writes one communicator and reads as much of the configuration as that says it has.
        let outcome = unsafe {
            (self.comm_init_rank_config)(&raw mut comm, ranks, id, place, &raw mut config)
        };
        self.outcome("ncclCommInitRankConfig", ptr::null_mut(), outcome)?;
        Ok(comm)
    }

    /// # Safety
    /// `comm` is one of this library's and is not used any more.
    pub(super) unsafe fn destroy(&self, comm: Comm) -> Result<(), NcclError> {
        // SAFETY: as the caller says.
        let outcome = unsafe { (self.comm_destroy)(comm) };
        self.outcome("ncclCommDestroy", ptr::null_mut(), outcome)
    }

    /// # Safety
    /// `comm` is one of this library's and is not used any more.
    pub(super) unsafe fn abort(&self, comm: Comm) -> Result<(), NcclError> {
        // SAFETY: as the caller says.
        let outcome = unsafe { (self.comm_abort)(comm) };
        self.outcome("ncclCommAbort", ptr::null_mut(), outcome)
    }

    /// # Safety
    /// `comm` is one of this library's, not destroyed.
    pub(super) unsafe fn check(&self, comm: Comm) -> Result<(), NcclError> {
        let mut error = SUCCESS;
        // SAFETY: it writes one outcome.
        let outcome = unsafe { (self.comm_get_async_error)(comm, &raw mut error) };
        self.outcome("ncclCommGetAsyncError", comm, outcome)?;
        self.outcome("an operation of NCCL's", comm, error)
    }

    /// What `calls` does, as one operation.
    pub(super) fn group(
        &self,
        calls: impl FnOnce() -> Result<(), NcclError>,
    ) -> Result<(), NcclError> {
        // SAFETY: a group belongs to this thread, which ends it below whatever happens in between.
        let started = unsafe { (self.group_start)() };
        self.outcome("ncclGroupStart", ptr::null_mut(), started)?;
        let called = calls();
        // SAFETY: it was started.
        let ended = unsafe { (self.group_end)() };
        called?;
        self.outcome("ncclGroupEnd", ptr::null_mut(), ended)
    }

    /// # Safety
    /// `comm` and `stream` are of one GPU and live; `from` is its memory, and neither freed nor written
    /// before the stream has come past this.
    pub(super) unsafe fn send(
        &self,
        from: Stretch,
        peer: c_int,
        (comm, stream): (Comm, *mut c_void),
    ) -> Result<(), NcclError> {
        // SAFETY: as the caller says.
        let outcome = unsafe { (self.send)(from.pointer(), from.bytes, UINT8, peer, comm, stream) };
        self.outcome("ncclSend", comm, outcome)
    }

    /// # Safety
    /// As of [`Self::send`]; and `to` is not read before either.
    pub(super) unsafe fn receive(
        &self,
        to: Stretch,
        peer: c_int,
        (comm, stream): (Comm, *mut c_void),
    ) -> Result<(), NcclError> {
        // SAFETY: as the caller says.
        let outcome = unsafe { (self.recv)(to.pointer(), to.bytes, UINT8, peer, comm, stream) };
        self.outcome("ncclRecv", comm, outcome)
    }

    /// # Safety
    /// As of [`Self::receive`], of `all`; `own` is this rank's part of it.
    pub(super) unsafe fn all_gather(
        &self,
        own: Stretch,
        all: Stretch,
        (comm, stream): (Comm, *mut c_void),
    ) -> Result<(), NcclError> {
        // SAFETY: as the caller says.
        let outcome = unsafe {
            (self.all_gather)(own.pointer(), all.pointer(), own.bytes, UINT8, comm, stream)
        };
        self.outcome("ncclAllGather", comm, outcome)
    }
}

/// What the loader said: libloading's own text leaves it to its source.
fn said(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_or_a_function_that_is_missing_is_named() {
        let Err(error) = Nccl::load("libnccl-of-nobody.so") else {
            panic!("there is no such file")
        };
        assert!(error.to_string().contains("libnccl-of-nobody.so"), "{error}");
        // Every process has this one, which is no NCCL.
        let Err(error) = Nccl::load("libc.so.6") else { panic!("it is no NCCL") };
        assert!(error.to_string().contains("it has no ncclGetVersion"), "{error}");
    }

    #[test]
    fn a_configuration_has_the_layout_of_ncclconfig_v21700() {
        assert_eq!(size_of::<Config>(), 48 - 8);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, max_ctas), 28);
    }
}
