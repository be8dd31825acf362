//! The device that a worker's RDMA links use.

use super::choice::{self, Choice};
use super::error::RdmaError;
use super::verbs::{Context, Event, Hop, Limits, PortView};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

/// Events that a link may fall behind by before it misses the oldest. A device has events when its
/// port or a queue pair fails; those of all links of a run at once are less.
const EVENTS_MAX: usize = 256;

/// What to use of the machine's RDMA devices. What is left open is chosen: see each field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaOptions {
    /// The device's name, as in `/sys/class/infiniband`. Else the first that has an ACTIVE port.
    pub device: Option<String>,
    /// The port's number, from 1. Else the first ACTIVE one.
    pub port: Option<u8>,
    /// The index in the port's GID table. Else none over InfiniBand, whose local identifiers
    /// suffice within a subnet; over RoCE the first of version 2 that is an IPv4 address, before
    /// those that are IPv6 addresses, before link-local ones.
    pub gid_index: Option<u8>,
    /// The address that this worker's peers know it by. Ports and GIDs that have it come first.
    pub address: Option<IpAddr>,
}

/// An RDMA device that links can be made on. Links that were made outlive it.
#[derive(Debug)]
pub struct Device {
    pub(super) context: Arc<Context>,
    pub(super) events: Arc<Events>,
    pub(super) port: u8,
    pub(super) view: PortView,
    pub(super) limits: Limits,
    gid: Option<OwnGid>,
    ethernet: bool,
}

#[derive(Clone, Copy, Debug)]
struct OwnGid {
    index: u8,
    raw: [u8; 16],
}

impl Device {
    /// Opens the device that `options` name, or else the nearest to being usable.
    ///
    /// # Errors
    /// If there is none, or it cannot be used: the error says what to do.
    pub fn open(options: &RdmaOptions) -> Result<Self, RdmaError> {
        let folder = Path::new(choice::DEVICES);
        let ports = choice::ports(folder)
            .map_err(|error| RdmaError::verb("reading /sys/class/infiniband", &error))?;
        let Choice { device, port, gid_index, ethernet } = choice::choose(&ports, options)?;
        choice::try_file(&device)?;
        let context = Context::open(&device)?;
        let (view, limits) = (context.port(port)?, context.limits()?);
        let gid = gid_index
            .map(|index| Ok(OwnGid { index, raw: context.gid(port, index)? }))
            .transpose()?;
        let events = Arc::new(Events::new(Arc::clone(&context)));
        Ok(Self { context, events, port, view, limits, gid, ethernet })
    }

    /// Whether it is on Ethernet (RoCE), not InfiniBand.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        self.ethernet
    }

    /// The address that peers' devices reach this one by.
    pub(super) fn gid(&self) -> Option<[u8; 16]> {
        self.gid.map(|gid| gid.raw)
    }

    /// Its address in an InfiniBand subnet. 0 over RoCE, where some drivers have other numbers.
    pub(super) fn lid(&self) -> u16 {
        if self.ethernet { 0 } else { self.view.lid }
    }

    /// The way to a peer's port. None: it is on a network of the other kind, or is not addressed
    /// in the same way.
    pub(super) fn hop(&self, gid: Option<[u8; 16]>, lid: u16) -> Option<Hop> {
        match (self.gid, gid) {
            (Some(own), Some(to)) if self.ethernet == (lid == 0) => {
                Some(Hop::Gid { to, from: own.index, lid })
            }
            (None, None) if lid != 0 => Some(Hop::Lid(lid)),
            _ => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} of {}", self.port, self.context.device())?;
        match self.gid {
            Some(OwnGid { index, raw }) => write!(f, ", GID {index} {}", Ipv6Addr::from(raw)),
            None => write!(f, ", LID {}", self.view.lid),
        }
    }
}

/// What happens to a device, told to all of its links: whichever sees that there is something
/// takes it from the device for all.
#[derive(Debug)]
pub(super) struct Events {
    context: Arc<Context>,
    heard: broadcast::Sender<Event>,
}

impl Events {
    fn new(context: Arc<Context>) -> Self {
        Self { context, heard: broadcast::Sender::new(EVENTS_MAX) }
    }

    /// What happens from now on.
    pub(super) fn follow(self: &Arc<Self>) -> io::Result<EventReader> {
        let file = self.context.events_file()?;
        let heard = self.heard.subscribe();
        Ok(EventReader { file, heard, next: None, events: Arc::clone(self) })
    }
}

/// One link's view of a device's events.
#[derive(Debug)]
pub(super) struct EventReader {
    file: AsyncFd<OwnedFd>,
    heard: broadcast::Receiver<Event>,
    /// One that was heard while waiting.
    next: Option<Event>,
    events: Arc<Events>,
}

impl EventReader {
    /// Ready when [`Self::take`] may have something. Cancel-safe.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        if self.next.is_some() {
            return Ok(());
        }
        tokio::select! {
            heard = self.heard.recv() => self.next = heard.ok(), // or it fell behind: see `take`
            readable = self.file.readable() => readable?.clear_ready(),
        }
        Ok(())
    }

    /// The next event of anyone's that this link has not seen.
    pub(super) fn take(&mut self) -> Option<Event> {
        while let Some(event) = self.events.context.next_event() {
            self.events.heard.send(event).ok(); // this reader listens, at least
        }
        if let Some(event) = self.next.take() {
            return Some(event);
        }
        loop {
            match self.heard.try_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return None,
            }
        }
    }
}
