//! A network on virtual time, as hosts see it: connections that are slow, cut, reset or half-open; processes
//! that are killed, stopped or lose power. Everything is drawn from one seed.
//!
//! What it generates:
//! - **N-1 order**: a control connection carries messages whole and in order, like TCP. Of a link over TCP the
//!   same holds; over QUIC values overtake those of other slots.
//! - **N-2 loss**: a connection that ends may have lost any suffix of what was sent, in either direction.
//! - **N-3 silence**: a cut route delivers nothing, in one direction or both, and says nothing. Once it is
//!   mended what was sent comes, if the connection is still there. A host without power is the same; it
//!   answers for connections it knows nothing of once it is back.
//! - **N-4 late**: values that were on their way when their link ended may still come (`strays`).
//!
//! What it cannot generate:
//! - Damaged, torn or doubled messages within a connection: TCP's checksums and the codec's own tests are for
//!   those.
//! - Back-pressure: a send never blocks, so a reader that is slow to take a large message is not one here.
//! - Stray values of another job: links are connections of one run, and only a fabric that writes into memory
//!   of an older run of the same job could mix two up.
//! - Clocks that drift or jump: the coordinator and the workers compare no times of different machines.
//! - Wrong peers: certificates and plan digests are compared, but nobody lies.

use crate::clock::Agenda;
use crate::random::Random;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A host's number.
pub type HostId = usize;

/// A connection's number: each has its own, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// What a connection is for, which decides what can cut it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Sessions with the coordinator.
    Control,
    /// Links over TCP.
    Tcp,
    /// Links over QUIC.
    Quic,
}

/// What a process learns of one of its connections.
#[derive(Debug)]
pub enum Signal<P> {
    /// Something came.
    Message(P),
    /// The other end is gone, or closed it; nothing more comes.
    Closed,
}

/// Something that comes to a host.
#[derive(Debug)]
pub struct Delivery<P> {
    /// Where.
    pub host: HostId,
    /// On which connection.
    pub connection: ConnectionId,
    /// From whom.
    pub from: HostId,
    /// What.
    pub signal: Signal<P>,
}

/// The shortest and the longest time that messages take.
pub type Latency = (Duration, Duration);

/// Hosts, routes between them and connections.
#[derive(Debug)]
pub struct Network<P> {
    random: Random,
    latency: Latency,
    hosts: Vec<Host>,
    routes: BTreeMap<(HostId, HostId), Route>,
    connections: BTreeMap<ConnectionId, Connection<P>>,
    opened: u64,
    arrivals: Agenda<(ConnectionId, usize)>,
    /// What was on its way when its connection ended, and to which process it was.
    strays: Vec<(HostId, u32, P)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    /// Its process, if it runs.
    process: Option<u32>,
    started: u32,
    /// Without power it does not even refuse.
    dark: bool,
    stopped_until: Duration,
}

/// One direction between two hosts.
#[derive(Clone, Copy, Debug, Default)]
struct Route {
    /// How many faults cut each lane.
    cuts: [u32; 3],
    extra: Duration,
}

#[derive(Debug)]
struct Connection<P> {
    lane: Lane,
    ends: [End; 2],
    /// What is on its way to each end.
    ways: [Way<P>; 2],
}

#[derive(Clone, Copy, Debug)]
struct End {
    host: HostId,
    process: u32,
    open: bool,
}

#[derive(Debug)]
struct Way<P> {
    queue: VecDeque<(Duration, Option<P>)>,
    /// When the last of each slot comes: what follows it comes later.
    last: BTreeMap<u16, Duration>,
    stalled: bool,
}

impl<P> Default for Way<P> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), last: BTreeMap::new(), stalled: false }
    }
}

impl<P> Way<P> {
    /// Puts something in that comes at `due` or later, after what it may not overtake.
    fn push(&mut self, due: Duration, slot: Option<u16>, packet: Option<P>) -> Duration {
        let earliest = match slot {
            Some(slot) => self.last.get(&slot).copied(),
            None => self.last.values().max().copied(),
        };
        let due = due.max(earliest.unwrap_or_default());
        self.last.insert(slot.unwrap_or(0), due);
        let at = self.queue.partition_point(|(each, _)| *each <= due);
        self.queue.insert(at, (due, packet));
        due
    }
}

impl<P> Network<P> {
    /// So many hosts, none of them running.
    #[must_use]
    pub fn new(hosts: usize, latency: Latency, seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            latency,
            hosts: vec![Host::default(); hosts],
            routes: BTreeMap::new(),
            connections: BTreeMap::new(),
            opened: 0,
            arrivals: Agenda::default(),
            strays: Vec::new(),
        }
    }

    /// The process of a host, if it runs.
    #[must_use]
    pub fn process(&self, host: HostId) -> Option<u32> {
        self.hosts[host].process
    }

    /// Until when a host is stopped.
    #[must_use]
    pub fn stopped_until(&self, host: HostId) -> Duration {
        self.hosts[host].stopped_until
    }

    /// A host runs a new process.
    pub fn start(&mut self, host: HostId) -> u32 {
        let host = &mut self.hosts[host];
        host.started += 1;
        *host = Host { process: Some(host.started), started: host.started, ..Host::default() };
        host.started
    }

    /// A host's process does nothing until then; what comes waits for it.
    pub fn stop(&mut self, host: HostId, until: Duration) {
        let stopped = &mut self.hosts[host].stopped_until;
        *stopped = until.max(*stopped);
    }

    /// A host's process is gone. Its connections are closed, unless it also lost power.
    pub fn kill(&mut self, host: HostId, power: bool, now: Duration) {
        let of_host = |(_, connection): &(&ConnectionId, &Connection<P>)| {
            connection.ends.iter().any(|end| end.host == host && end.open)
        };
        let ids: Vec<ConnectionId> =
            self.connections.iter().filter(of_host).map(|(id, _)| *id).collect();
        for id in ids.into_iter().filter(|_| !power) {
            self.hang_up(id, host, now);
        }
        self.hosts[host].process = None;
        self.hosts[host].dark = power;
        self.hosts[host].stopped_until = Duration::ZERO;
    }

    /// Cuts or mends what goes from one host to another.
    pub fn cut(&mut self, (from, to): (HostId, HostId), lanes: &[Lane], cut: bool, now: Duration) {
        let route = self.routes.entry((from, to)).or_default();
        for lane in lanes {
            let cuts = &mut route.cuts[*lane as usize];
            *cuts = if cut { *cuts + 1 } else { cuts.saturating_sub(1) };
        }
        if !cut {
            self.release(now);
        }
    }

    /// Whether a route carries nothing.
    #[must_use]
    pub fn is_cut(&self, from: HostId, to: HostId, lane: Lane) -> bool {
        self.routes.get(&(from, to)).is_some_and(|route| route.cuts[lane as usize] > 0)
    }

    /// Makes what goes from one host to another slower, or as fast as it was.
    pub fn delay(&mut self, from: HostId, to: HostId, extra: Duration) {
        self.routes.entry((from, to)).or_default().extra = extra;
    }

    /// Ends all connections between two hosts.
    pub fn reset(&mut self, one: HostId, other: HostId, now: Duration) {
        let between = |connection: &Connection<P>| {
            let hosts = connection.ends.map(|end| end.host);
            hosts == [one, other] || hosts == [other, one]
        };
        let ids: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, each)| between(each)).map(|(id, _)| *id).collect();
        for id in ids {
            for side in [0, 1] {
                self.lose_suffix(id, side, now);
                self.push(id, side, (None, None), now);
            }
        }
    }

    /// Opens a connection. If nobody is there, that is learned later.
    pub fn open(&mut self, from: HostId, to: HostId, lane: Lane, now: Duration) -> ConnectionId {
        self.opened += 1;
        let id = ConnectionId(self.opened);
        let end = |host: HostId| End {
            host,
            process: self.hosts[host].process.unwrap_or_default(),
            open: self.hosts[host].process.is_some(),
        };
        let ends = [end(from), end(to)];
        let refused = !ends[1].open && !self.hosts[to].dark;
        self.connections.insert(id, Connection { lane, ends, ways: Default::default() });
        if refused {
            self.push(id, 0, (None, None), now);
        }
        id
    }

    /// Sends something, of which what is of one slot stays in order.
    pub fn send(
        &mut self,
        id: ConnectionId,
        from: HostId,
        (slot, packet): (u16, P),
        now: Duration,
    ) {
        let Some(side) = self.open_side(id, from) else { return };
        let lane = self.connections[&id].lane;
        let slot = if lane == Lane::Quic { slot } else { 0 };
        self.push(id, 1 - side, (Some(slot), Some(packet)), now);
    }

    /// Closes a connection once what was sent has gone.
    pub fn close(&mut self, id: ConnectionId, host: HostId, now: Duration) {
        if self.open_side(id, host).is_some() {
            let side = self.forget(id, host);
            self.push(id, 1 - side, (None, None), now);
        }
    }

    /// Closes a connection at once: some of what was sent last is lost.
    pub fn hang_up(&mut self, id: ConnectionId, host: HostId, now: Duration) {
        if self.open_side(id, host).is_some() {
            let side = self.forget(id, host);
            self.lose_suffix(id, 1 - side, now);
            self.push(id, 1 - side, (None, None), now);
        }
    }

    /// What was on its way when its connection ended.
    pub fn take_strays(&mut self) -> Vec<(HostId, u32, P)> {
        std::mem::take(&mut self.strays)
    }

    /// When something next arrives.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        self.arrivals.next_at()
    }

    /// What arrives next, if it finds somebody.
    pub fn take(&mut self) -> Option<Delivery<P>> {
        let (now, (id, side)) = self.arrivals.take()?;
        let connection = self.connections.get_mut(&id)?;
        let (to, from) = (connection.ends[side], connection.ends[1 - side].host);
        let route = self.routes.get(&(from, to.host)).copied().unwrap_or_default();
        let way = &mut connection.ways[side];
        if route.cuts[connection.lane as usize] > 0 {
            way.stalled = true;
            return None;
        }
        let host = self.hosts[to.host];
        if host.stopped_until > now {
            let woken = host.stopped_until + self.random.between(Duration::ZERO, self.latency.0);
            self.arrivals.at(woken, (id, side));
            return None;
        }
        if way.queue.front().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, packet) = way.queue.pop_front()?;
        if !to.open || host.process != Some(to.process) {
            let packet = packet?;
            self.strays.push((to.host, to.process, packet));
            // A machine that has power refuses what comes for a process that is no more.
            if !host.dark && to.open {
                connection.ends[side].open = false;
                self.push(id, 1 - side, (None, None), now);
            }
            return None;
        }
        let signal = match packet {
            Some(packet) => Signal::Message(packet),
            None => {
                connection.ends[side].open = false;
                if connection.ends.iter().all(|end| !end.open) {
                    self.connections.remove(&id);
                }
                Signal::Closed
            }
        };
        Some(Delivery { host: to.host, connection: id, from, signal })
    }

    /// The side of a connection that a host's running process has open.
    fn open_side(&self, id: ConnectionId, host: HostId) -> Option<usize> {
        let process = self.hosts[host].process;
        let own = |end: &End| end.host == host && end.open && process == Some(end.process);
        self.connections.get(&id)?.ends.iter().position(own)
    }

    /// A host's end of a connection is no more; what is on its way to it goes nowhere.
    fn forget(&mut self, id: ConnectionId, host: HostId) -> usize {
        let Some(connection) = self.connections.get_mut(&id) else { return 0 };
        let side = usize::from(connection.ends[0].host != host);
        connection.ends[side].open = false;
        side
    }

    fn push(
        &mut self,
        id: ConnectionId,
        side: usize,
        (slot, packet): (Option<u16>, Option<P>),
        now: Duration,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let hosts = (connection.ends[1 - side].host, connection.ends[side].host);
        let extra = self.routes.get(&hosts).map_or(Duration::ZERO, |route| route.extra);
        let due = now + extra + self.random.between(self.latency.0, self.latency.1);
        let due = connection.ways[side].push(due, slot, packet);
        self.arrivals.at(due, (id, side));
    }

    /// Loses the last of what is on its way to a side, none or all of it included.
    fn lose_suffix(&mut self, id: ConnectionId, side: usize, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let to = connection.ends[side];
        let queue = &mut connection.ways[side].queue;
        let kept = self.random.index(queue.len() + 1);
        let lost = queue.split_off(kept);
        self.strays.extend(
            lost.into_iter().filter_map(|(_, packet)| Some((to.host, to.process, packet?))),
        );
        // What is kept comes before the end does, and that soon.
        connection.ways[side].last.clear();
        let last = connection.ways[side].queue.back().map_or(now, |(due, _)| *due);
        connection.ways[side].last.insert(0, last);
    }

    /// Goes on with what a cut held back.
    fn release(&mut self, now: Duration) {
        let Self { connections, routes, arrivals, .. } = self;
        for (id, connection) in connections.iter_mut() {
            for side in [0, 1] {
                let route = (connection.ends[1 - side].host, connection.ends[side].host);
                let cut = routes
                    .get(&route)
                    .is_some_and(|route| route.cuts[connection.lane as usize] > 0);
                let way = &mut connection.ways[side];
                if way.stalled && !cut {
                    way.stalled = false;
                    for (due, _) in &way.queue {
                        arrivals.at(now.max(*due), (*id, side));
                    }
                }
            }
        }
    }
}
