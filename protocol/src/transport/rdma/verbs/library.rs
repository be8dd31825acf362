//! libibverbs, looked for at run time: one build serves machines with RDMA and without.

#![expect(unsafe_code, reason = "resolves the library's functions")]

use super::super::error::RdmaError;
use ibverbs_sys::{
    _compat_ibv_port_attr, ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device,
    ibv_device_attr, ibv_event_type, ibv_gid, ibv_mr, ibv_pd, ibv_qp, ibv_qp_attr,
    ibv_qp_init_attr, ibv_wc_status,
};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// The file name under which every release since 2006 is installed.
const LIBRARY: &str = "libibverbs.so.1";

macro_rules! functions {
    ($(fn $name:ident($($argument:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// The functions of the library that are not inline in its headers.
        #[derive(Debug)]
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            fn load(file: &str) -> Result<Self, libloading::Error> {
                // SAFETY: libibverbs' initialisers only read its configuration, and its public
                // functions have had these types since version 1.1.
                unsafe {
                    let library = libloading::Library::new(file)?;
                    let functions = Self {
                        $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)*
                    };
                    // Providers that it loads stay loaded and call back.
                    let _never_unloaded = std::mem::ManuallyDrop::new(library);
                    Ok(functions)
                }
            }
        }
    };
}

functions! {
    fn ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
    fn ibv_free_device_list(*mut *mut ibv_device);
    fn ibv_get_device_name(*mut ibv_device) -> *const c_char;
    fn ibv_open_device(*mut ibv_device) -> *mut ibv_context;
    fn ibv_close_device(*mut ibv_context) -> c_int;
    fn ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    fn ibv_query_port(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int;
    fn ibv_query_gid(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
    fn ibv_get_async_event(*mut ibv_context, *mut ibv_async_event) -> c_int;
    fn ibv_ack_async_event(*mut ibv_async_event);
    fn ibv_event_type_str(ibv_event_type) -> *const c_char;
    fn ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
    fn ibv_dealloc_pd(*mut ibv_pd) -> c_int;
    fn ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    fn ibv_dereg_mr(*mut ibv_mr) -> c_int;
    fn ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
    fn ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
    fn ibv_create_cq(
        *mut ibv_context,
        c_int,
        *mut c_void,
        *mut ibv_comp_channel,
        c_int,
    ) -> *mut ibv_cq;
    fn ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    fn ibv_ack_cq_events(*mut ibv_cq, c_uint);
    fn ibv_destroy_cq(*mut ibv_cq) -> c_int;
    fn ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    fn ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    fn ibv_destroy_qp(*mut ibv_qp) -> c_int;
    fn ibv_wc_status_str(ibv_wc_status::Type) -> *const c_char;
}

/// The library of this process.
pub(super) fn library() -> Result<&'static Library, RdmaError> {
    static LOADED: OnceLock<Result<Library, RdmaError>> = OnceLock::new();
    LOADED.get_or_init(|| load(LIBRARY)).as_ref().map_err(Clone::clone)
}

fn load(file: &str) -> Result<Library, RdmaError> {
    Library::load(file).map_err(|error| RdmaError::NoLibrary {
        library: file.to_owned(),
        cause: std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), ToString::to_string),
    })
}

/// A name that the library gave.
///
/// # Safety
/// `name` is null or points to a string that is never freed.
pub(super) unsafe fn name(name: *const c_char) -> String {
    if name.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: as promised by the caller.
    unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_is_told_what_to_install() {
        let error = load("libibverbs-of-nobody.so.1").expect_err("no such library");
        let said = error.to_string();
        for part in ["libibverbs-of-nobody.so.1", "No such file", "ibverbs-providers"] {
            assert!(said.contains(part), "{said} does not say {part}");
        }
    }
}
