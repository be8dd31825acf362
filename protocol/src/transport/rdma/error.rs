//! Why this machine cannot use RDMA.

/// Why RDMA is not to be had here, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RdmaError {
    /// The verbs library cannot be loaded.
    #[error(
        "cannot load {library}: {cause}; install rdma-core's library and providers \
         (Debian: libibverbs1 and ibverbs-providers)"
    )]
    NoLibrary {
        /// Its file name.
        library: String,
        /// What the dynamic linker says.
        cause: String,
    },
    /// The kernel has no such device.
    #[error("no RDMA device{}: this machine has {found}; {}", named(.asked), if .asked.is_some() {
        "name one of these"
    } else {
        "load its driver (rdma_rxe makes one of any network interface)"
    })]
    NoDevice {
        /// The device that was asked for.
        asked: Option<String>,
        /// Those that there are.
        found: String,
    },
    /// The device has no such port.
    #[error("no port {asked} among the ports of RDMA devices: {found}; name one of these")]
    NoPort {
        /// The port that was asked for.
        asked: u8,
        /// Those that there are.
        found: String,
    },
    /// No port is up.
    #[error("no RDMA port is ACTIVE: {found}; bring its network interface up")]
    PortDown {
        /// The ports and their states.
        found: String,
    },
    /// The port has no address that RoCE version 2 can use, or not the one asked for.
    #[error(
        "port {port} of {device} has no RoCEv2 GID{}, only {found}; give its network interface an \
         IP address, or name a GID's index",
        .asked.map(|index| format!(" {index}")).unwrap_or_default()
    )]
    NoGid {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// The index that was asked for.
        asked: Option<u8>,
        /// The GIDs that there are.
        found: String,
    },
    /// The kernel knows the device, but the verbs library has no driver for it.
    #[error(
        "libibverbs has no provider for {device}; install it (Debian: ibverbs-providers), and list \
         it in /etc/libibverbs.d"
    )]
    NoProvider {
        /// The device.
        device: String,
    },
    /// The device's file may not be opened.
    #[error(
        "no permission to open {path}: {cause}; let this user read and write it (rdma-core's udev \
         rules do)"
    )]
    Forbidden {
        /// The file.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// The device has no file.
    #[error(
        "{device} has no file in /dev/infiniband: {cause}; load ib_uverbs, or let the container \
         have /dev/infiniband"
    )]
    NoFile {
        /// The device.
        device: String,
        /// What the system says.
        cause: String,
    },
    /// Registered memory is locked, and the process may not lock that much.
    #[error(
        "cannot register {bytes} bytes: RLIMIT_MEMLOCK allows this process {limit_bytes} bytes of \
         locked memory; raise it (ulimit -l, LimitMEMLOCK= of systemd) or reduce the image"
    )]
    Memlock {
        /// The size of the region.
        bytes: usize,
        /// The limit of all regions together.
        limit_bytes: u64,
    },
    /// The run needs more than the device has.
    #[error("{device} has {limit} {what}, but this link needs {needed}; use another fabric")]
    TooSmall {
        /// The device.
        device: String,
        /// Of what.
        what: &'static str,
        /// How many are needed.
        needed: u64,
        /// How many there are.
        limit: u64,
    },
    /// A verb failed.
    #[error("{verb} failed: {cause}")]
    Verb {
        /// The library's name of it.
        verb: &'static str,
        /// What the system says.
        cause: String,
    },
}

impl RdmaError {
    pub(super) fn verb(verb: &'static str, cause: &std::io::Error) -> Self {
        Self::Verb { verb, cause: cause.to_string() }
    }
}

fn named(asked: &Option<String>) -> String {
    asked.as_ref().map(|name| format!(" {name}")).unwrap_or_default()
}
