//! Which device, port and address a link uses, from what the kernel lists.

use super::RdmaOptions;
use super::error::RdmaError;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

/// Where the kernel lists RDMA devices.
pub(super) const DEVICES: &str = "/sys/class/infiniband";

/// Where it lists their files.
const FILES: &str = "/sys/class/infiniband_verbs";

/// A port, as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    device: String,
    number: u8,
    /// In the kernel's words, such as ACTIVE and DOWN.
    state: String,
    ethernet: bool,
    gids: Vec<Gid>,
}

/// One of a port's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gid {
    index: u8,
    address: Ipv6Addr,
    /// It is one of RoCE version 2, which is carried in UDP and can be routed.
    udp: bool,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) device: String,
    pub(super) port: u8,
    /// The GID's index; None: an InfiniBand port that is reached within its subnet.
    pub(super) gid_index: Option<u8>,
    pub(super) ethernet: bool,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} of {} ({})", self.number, self.device, self.state)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.udp { "RoCEv2" } else { "RoCEv1 or InfiniBand" };
        write!(f, "{} {} ({version})", self.index, self.address)
    }
}

fn list<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// The ports of all devices in `folder`, which is laid out as [`DEVICES`].
pub(super) fn ports(folder: &Path) -> io::Result<Vec<Port>> {
    let mut ports = Vec::new();
    for device in names(folder)? {
        let folder = folder.join(&device).join("ports");
        for number in names(&folder)? {
            let folder = folder.join(&number);
            let Ok(number) = number.parse() else { continue };
            let state = read(&folder.join("state")).unwrap_or_default(); // as in "4: ACTIVE"
            let state = state.rsplit(' ').next().unwrap_or_default().to_owned();
            let ethernet = read(&folder.join("link_layer")).is_ok_and(|it| it == "Ethernet");
            let (device, gids) = (device.clone(), gids(&folder)?);
            ports.push(Port { device, number, state, ethernet, gids });
        }
    }
    Ok(ports)
}

/// Tries to open a device's file. The library tries too, but waits 5 s for it to appear, and does
/// not say what was wrong.
pub(super) fn try_file(device: &str) -> Result<(), RdmaError> {
    let lost = |error: io::Error| RdmaError::NoFile {
        device: device.to_owned(),
        cause: error.to_string(),
    };
    let folder = Path::new(FILES);
    let listed = names(folder).map_err(lost)?;
    let of_device = |name: &&String| {
        read(&folder.join(name).join("ibdev")).is_ok_and(|listed| listed == device)
    };
    let name = listed.iter().find(of_device);
    let name = name.ok_or_else(|| lost(io::ErrorKind::NotFound.into()))?;
    let path = Path::new("/dev/infiniband").join(name);
    match fs::OpenOptions::new().read(true).write(true).open(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let path = path.display().to_string();
            Err(RdmaError::Forbidden { path, cause: error.to_string() })
        }
        Err(error) => Err(lost(error)),
    }
}

/// The entries of a folder in order; none if it is not there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(|name| (name.len(), name.clone())); // 2 before 10
    Ok(names)
}

fn read(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

fn gids(port: &Path) -> io::Result<Vec<Gid>> {
    let mut gids = Vec::new();
    for name in names(&port.join("gids"))? {
        let (Ok(index), Ok(address)) = (name.parse(), read(&port.join("gids").join(&name))) else {
            continue; // a request names GIDs up to 255; an entry may be gone again
        };
        let Ok(address) = address.parse::<Ipv6Addr>() else { continue };
        if !address.is_unspecified() {
            let kind = read(&port.join("gid_attrs/types").join(&name));
            gids.push(Gid { index, address, udp: kind.is_ok_and(|kind| kind == "RoCE v2") });
        }
    }
    Ok(gids)
}

/// Chooses what `options` leave open: the first ACTIVE port, or the one that has the given address.
pub(super) fn choose(ports: &[Port], options: &RdmaOptions) -> Result<Choice, RdmaError> {
    let of_device: Vec<&Port> = ports
        .iter()
        .filter(|port| options.device.as_ref().is_none_or(|name| port.device == *name))
        .collect();
    if of_device.is_empty() {
        let mut found: Vec<&str> = ports.iter().map(|port| port.device.as_str()).collect();
        found.dedup();
        return Err(RdmaError::NoDevice { asked: options.device.clone(), found: list(found) });
    }
    let asked: Vec<&Port> = of_device
        .iter()
        .copied()
        .filter(|port| options.port.is_none_or(|number| port.number == number))
        .collect();
    if let (true, Some(asked)) = (asked.is_empty(), options.port) {
        return Err(RdmaError::NoPort { asked, found: list(of_device) });
    }
    let mut active: Vec<&Port> =
        asked.iter().copied().filter(|port| port.state == "ACTIVE").collect();
    if active.is_empty() {
        return Err(RdmaError::PortDown { found: list(asked) });
    }
    active.sort_by_key(|port| !port.has(options.address)); // stable: else in their order
    let mut choices = active.iter().map(|port| port.choose_gid(options));
    let first = choices.next().expect("there is an active port");
    first.or_else(|error| choices.find_map(Result::ok).ok_or(error))
}

impl Port {
    fn has(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|address| self.gids.iter().any(|gid| gid.is(address)))
    }

    fn choose_gid(&self, options: &RdmaOptions) -> Result<Choice, RdmaError> {
        let gid = match options.gid_index {
            Some(index) => self.gids.iter().find(|gid| gid.index == index),
            None if !self.ethernet => return Ok(self.choice(None)),
            None => self.gids.iter().filter(|gid| gid.udp).min_by_key(|gid| {
                let asked = options.address.is_some_and(|address| gid.is(address));
                let mapped = gid.address.to_ipv4_mapped().is_some();
                (!asked, !mapped, gid.address.is_unicast_link_local(), gid.index)
            }),
        };
        gid.map(|gid| self.choice(Some(gid.index))).ok_or_else(|| RdmaError::NoGid {
            device: self.device.clone(),
            port: self.number,
            asked: options.gid_index,
            found: list(&self.gids),
        })
    }

    fn choice(&self, gid_index: Option<u8>) -> Choice {
        let (device, port, ethernet) = (self.device.clone(), self.number, self.ethernet);
        Choice { device, port, gid_index, ethernet }
    }
}

impl Gid {
    fn is(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.address == address.to_ipv6_mapped(),
            IpAddr::V6(address) => self.address == address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(device: &str, state: &str, gids: &[(u8, &str, bool)]) -> Port {
        let gid = |(index, address, udp): &(u8, &str, bool)| Gid {
            index: *index,
            address: address.parse().expect("an address"),
            udp: *udp,
        };
        let gids = gids.iter().map(gid).collect();
        Port { device: device.to_owned(), number: 1, state: state.to_owned(), ethernet: true, gids }
    }

    /// Two adapters as mlx5 lists them, the first without a cable.
    fn two() -> Vec<Port> {
        let gids = [
            (0, "fe80::1", false),
            (1, "fe80::1", true),
            (2, "::ffff:10.0.0.1", false),
            (3, "::ffff:10.0.0.1", true),
            (5, "::ffff:10.1.0.1", true),
        ];
        vec![
            port("mlx5_0", "DOWN", &gids),
            port("mlx5_1", "ACTIVE", &gids),
            port("mlx5_2", "ACTIVE", &[(4, "::ffff:10.2.0.1", true)]),
        ]
    }

    fn chosen(ports: &[Port], options: &RdmaOptions) -> (String, Option<u8>) {
        let choice = choose(ports, options).expect("there is one");
        (choice.device, choice.gid_index)
    }

    fn refusal(ports: &[Port], options: &RdmaOptions, cause: &str) {
        let said = choose(ports, options).expect_err(cause).to_string();
        assert!(said.contains(cause), "{said} does not say {cause}");
    }

    #[test]
    fn the_first_active_port_and_its_first_ipv4_gid_of_version_2_are_chosen() {
        assert_eq!(chosen(&two(), &RdmaOptions::default()), ("mlx5_1".to_owned(), Some(3)));
    }

    #[test]
    fn an_address_decides_between_ports_and_gids() {
        let at = |address: [u8; 4]| RdmaOptions {
            address: Some(IpAddr::from(address)),
            ..RdmaOptions::default()
        };
        assert_eq!(chosen(&two(), &at([10, 1, 0, 1])), ("mlx5_1".to_owned(), Some(5)));
        assert_eq!(chosen(&two(), &at([10, 2, 0, 1])), ("mlx5_2".to_owned(), Some(4)));
        assert_eq!(chosen(&two(), &at([192, 0, 2, 9])), ("mlx5_1".to_owned(), Some(3)));
    }

    #[test]
    fn infiniband_needs_no_gid() {
        let mut ports = [port("mlx4_0", "ACTIVE", &[(0, "fe80::1", false)])];
        ports[0].ethernet = false;
        assert_eq!(chosen(&ports, &RdmaOptions::default()), ("mlx4_0".to_owned(), None));
        let asked = RdmaOptions { gid_index: Some(0), ..RdmaOptions::default() };
        assert_eq!(chosen(&ports, &asked), ("mlx4_0".to_owned(), Some(0)));
    }

    #[test]
    fn what_is_not_there_is_named_beside_what_is() {
        let none = RdmaOptions::default();
        refusal(&[], &none, "no RDMA device: this machine has none; load its driver");
        refusal(&two()[..1], &none, "no RDMA port is ACTIVE: port 1 of mlx5_0 (DOWN)");
        refusal(
            &[port("irdma0", "ACTIVE", &[(0, "fe80::1", false)])],
            &none,
            "port 1 of irdma0 has no RoCEv2 GID, only 0 fe80::1 (RoCEv1 or InfiniBand)",
        );
        let asked = RdmaOptions { device: Some("mlx5_9".to_owned()), ..none.clone() };
        refusal(&two(), &asked, "no RDMA device mlx5_9: this machine has mlx5_0, mlx5_1, mlx5_2");
        let asked = RdmaOptions { port: Some(2), ..none.clone() };
        refusal(&two()[..1], &asked, "no port 2 among the ports of RDMA devices: port 1 of mlx5_0");
        let asked = RdmaOptions { gid_index: Some(77), ..none };
        refusal(&two(), &asked, "has no RoCEv2 GID 77, only 0 fe80::1");
    }
}
