//! Devices.

#![expect(unsafe_code, reason = "calls the library's functions on devices")]

use super::super::error::RdmaError;
use super::check;
use super::library::{Library, library, name};
use ibverbs_sys as sys;
use std::ffi::c_int;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A device that this process has opened.
pub(in super::super) struct Context {
    pub(super) raw: *mut sys::ibv_context,
    pub(super) library: &'static Library,
    device: String,
}

// SAFETY: verbs may be called from any thread, and from several at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)
    }
}

/// An RDMA MTU: 256 bytes shifted left by one less than this.
pub(in super::super) type Mtu = u32;

/// What a port says about itself.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PortView {
    pub(in super::super) mtu: Mtu,
    /// The port's address in an InfiniBand subnet; 0 with RoCE.
    pub(in super::super) lid: u16,
    pub(in super::super) message_bytes_max: u32,
}

/// What a device has room for.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Limits {
    pub(in super::super) work_requests_max: u32,
    pub(in super::super) completions_max: u32,
    pub(in super::super) region_bytes_max: u64,
}

/// Something that happened to a device outside of any request.
#[derive(Clone, Debug)]
pub(in super::super) struct Event {
    /// The library's words for it.
    pub(in super::super) name: String,
    /// Whom it concerns.
    pub(in super::super) scope: Scope,
    /// It is that a peer tried to reach memory that it may not.
    pub(in super::super) trespass: bool,
}

/// Whom an event concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Scope {
    /// All that is on the device.
    Device,
    /// All that use this port.
    Port(u8),
    /// The queue or queue pair with this identity.
    Queue(usize),
}

impl Context {
    /// Opens a device by the name that the kernel gave it.
    pub(in super::super) fn open(device: &str) -> Result<Arc<Self>, RdmaError> {
        let library = library()?;
        let mut count = 0;
        // SAFETY: `count` outlives the call; the list is freed below.
        let list = unsafe { (library.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(RdmaError::verb("ibv_get_device_list", &io::Error::last_os_error()));
        }
        let opened = (0..usize::try_from(count).unwrap_or(0)).find_map(|at| {
            // SAFETY: the list has `count` devices, and a device's name lives as long as it.
            let (found, called) = unsafe {
                let found = *list.add(at);
                (found, name((library.ibv_get_device_name)(found)))
            };
            // SAFETY: `found` is a device of the list, which is not freed yet.
            (called == device).then(|| unsafe { (library.ibv_open_device)(found) })
        });
        let error = io::Error::last_os_error();
        // SAFETY: the list is freed once; a device that is open stays valid.
        unsafe { (library.ibv_free_device_list)(list) };
        let device = device.to_owned();
        match opened {
            None => Err(RdmaError::NoProvider { device }),
            Some(raw) if raw.is_null() => Err(RdmaError::verb("ibv_open_device", &error)),
            Some(raw) => {
                let context = Arc::new(Self { raw, library, device });
                unblock(context.events_fd())
                    .map_err(|error| RdmaError::verb("fcntl(O_NONBLOCK)", &error))?;
                Ok(context)
            }
        }
    }

    /// The device's name.
    pub(in super::super) fn device(&self) -> &str {
        &self.device
    }

    /// What a port says about itself.
    pub(in super::super) fn port(&self, port: u8) -> Result<PortView, RdmaError> {
        let mut view = MaybeUninit::<sys::ibv_port_attr>::zeroed();
        // SAFETY: the function fills in the first part of the structure, as `_compat_` says; the
        // rest stays zero, which is valid for its integers.
        let view = unsafe {
            check((self.library.ibv_query_port)(self.raw, port, view.as_mut_ptr().cast()))
                .map_err(|error| RdmaError::verb("ibv_query_port", &error))?;
            view.assume_init()
        };
        Ok(PortView { mtu: view.active_mtu, lid: view.lid, message_bytes_max: view.max_msg_sz })
    }

    /// What the device has room for.
    pub(in super::super) fn limits(&self) -> Result<Limits, RdmaError> {
        let mut limits = MaybeUninit::<sys::ibv_device_attr>::zeroed();
        // SAFETY: the structure is plain numbers, and the function fills it in.
        let limits = unsafe {
            check((self.library.ibv_query_device)(self.raw, limits.as_mut_ptr()))
                .map_err(|error| RdmaError::verb("ibv_query_device", &error))?;
            limits.assume_init()
        };
        Ok(Limits {
            work_requests_max: u32::try_from(limits.max_qp_wr).unwrap_or(0),
            completions_max: u32::try_from(limits.max_cqe).unwrap_or(0),
            region_bytes_max: limits.max_mr_size,
        })
    }

    /// An entry of a port's GID table.
    pub(in super::super) fn gid(&self, port: u8, index: u8) -> Result<[u8; 16], RdmaError> {
        let mut gid = sys::ibv_gid { raw: [0; 16] };
        // SAFETY: `gid` outlives the call; any bytes are a valid GID.
        unsafe {
            check((self.library.ibv_query_gid)(self.raw, port, c_int::from(index), &raw mut gid))
                .map_err(|_| RdmaError::verb("ibv_query_gid", &io::Error::last_os_error()))?;
            Ok(gid.raw)
        }
    }

    fn events_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context keeps its file open until it is closed, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw((*self.raw).async_fd) }
    }

    /// A file that is readable when there is an event.
    pub(in super::super) fn events_file(&self) -> io::Result<AsyncFd<OwnedFd>> {
        watch(self.events_fd())
    }

    /// The next event, if there is one.
    pub(in super::super) fn next_event(&self) -> Option<Event> {
        let mut event = MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: the function fills the event in or fails. Its element is the one that goes with
        // its type, and is only compared. It is acknowledged once.
        unsafe {
            if (self.library.ibv_get_async_event)(self.raw, event.as_mut_ptr()) != 0 {
                return None;
            }
            let mut event = event.assume_init();
            let scope = match event.event_type {
                sys::IBV_EVENT_QP_FATAL
                | sys::IBV_EVENT_QP_REQ_ERR
                | sys::IBV_EVENT_QP_ACCESS_ERR => Some(Scope::Queue(event.element.qp.addr())),
                sys::IBV_EVENT_CQ_ERR => Some(Scope::Queue(event.element.cq.addr())),
                sys::IBV_EVENT_PORT_ERR => {
                    Some(Scope::Port(u8::try_from(event.element.port_num).unwrap_or(0)))
                }
                sys::IBV_EVENT_DEVICE_FATAL => Some(Scope::Device),
                _ => None,
            };
            let name = name((self.library.ibv_event_type_str)(event.event_type));
            let trespass = event.event_type == sys::IBV_EVENT_QP_ACCESS_ERR;
            (self.library.ibv_ack_async_event)(&raw mut event);
            match scope {
                Some(scope) => Some(Event { name, scope, trespass }),
                None => self.next_event(),
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made from it holds it, so it is the last.
        let code = unsafe { (self.library.ibv_close_device)(self.raw) };
        warn("ibv_close_device", code);
    }
}

/// Makes reading from a file of the library's give up instead of waiting.
pub(super) fn unblock(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// A file of the library's, to be waited on until it is readable.
pub(super) fn watch(file: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let file = file.try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` is open, and always the same, as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}

/// An object that cannot be destroyed is leaked: nothing else can be done about it.
pub(super) fn warn(verb: &'static str, code: c_int) {
    if let Err(error) = check(code) {
        tracing::warn!(%error, "{verb} failed");
    }
}
