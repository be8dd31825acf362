//! What goes wrong, and what becomes of it.

use super::disk::Disk;
use super::scenario::Trigger;
use super::{COORDINATOR, Event, Simulation};
use crate::network::{HostId, Lane};
use std::time::Duration;

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When.
    pub trigger: Trigger,
    /// What.
    pub kind: Kind,
}

/// What goes wrong. No time is for good.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A worker's process is killed; a supervisor starts another one.
    Kill {
        /// The worker.
        host: HostId,
        /// When it is started again.
        back: Option<Duration>,
    },
    /// A worker's machine loses power: nobody is told.
    PowerOff {
        /// The worker.
        host: HostId,
        /// When it is started again.
        back: Option<Duration>,
    },
    /// A worker's process is stopped, and goes on.
    Stop {
        /// The worker.
        host: HostId,
        /// For so long.
        time: Duration,
    },
    /// A worker's compute thread does nothing.
    Hang {
        /// The worker.
        host: HostId,
        /// For so long.
        time: Option<Duration>,
    },
    /// A worker computes slowly.
    Slow {
        /// The worker.
        host: HostId,
        /// So many times as long.
        times: f64,
        /// For so long.
        time: Duration,
    },
    /// A route carries nothing.
    Cut {
        /// From one host to another.
        route: (HostId, HostId),
        /// The other way, too.
        both: bool,
        /// For which connections.
        lanes: &'static [Lane],
        /// For so long.
        time: Option<Duration>,
    },
    /// Nothing goes between some workers and the others; the coordinator reaches all.
    Partition {
        /// Those on one side.
        side: Vec<HostId>,
        /// For which connections.
        lanes: &'static [Lane],
        /// For so long.
        time: Option<Duration>,
    },
    /// All connections between two hosts break.
    Reset {
        /// The hosts.
        hosts: (HostId, HostId),
    },
    /// A route is slow.
    Delay {
        /// Between two hosts.
        route: (HostId, HostId),
        /// By so much.
        by: Duration,
        /// For so long.
        time: Duration,
    },
    /// The coordinator's process is stopped, and goes on.
    Pause {
        /// For so long.
        time: Duration,
    },
    /// The coordinator's process, or its machine, is gone; a supervisor starts another one.
    Crash {
        /// How.
        end: End,
        /// When it is started again.
        back: Duration,
    },
    /// The coordinator's disk is full.
    Full {
        /// For so long.
        time: Duration,
    },
    /// A worker is to leave; it is started again later.
    Leave {
        /// The worker.
        host: HostId,
        /// An operator asks for it, not the worker's own machine.
        asked: bool,
    },
}

/// How a coordinator ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its process is killed.
    Kill,
    /// Its machine loses power.
    Power,
    /// It is asked to.
    ShutDown,
}

impl Kind {
    /// Whether a worker is never well again.
    #[must_use]
    pub fn loses(&self, worker: HostId) -> bool {
        match self {
            Self::Kill { host, .. } | Self::PowerOff { host, .. } | Self::Hang { host, .. } => {
                *host == worker && self.lasts()
            }
            _ => false,
        }
    }

    /// Whether it is never over.
    #[must_use]
    pub fn lasts(&self) -> bool {
        match self {
            Self::Kill { back, .. } | Self::PowerOff { back, .. } => back.is_none(),
            Self::Hang { time, .. } | Self::Cut { time, .. } | Self::Partition { time, .. } => {
                time.is_none()
            }
            _ => false,
        }
    }
}

/// The end of what a fault did.
#[derive(Clone, Debug)]
pub enum Remedy {
    /// A worker is started, or the coordinator.
    Start(HostId),
    /// There is room on the coordinator's disk.
    Room,
    /// A worker computes as fast as before.
    Speed(HostId),
    /// A route carries again.
    Mend((HostId, HostId), &'static [Lane]),
    /// A route is as fast as before.
    Hasten((HostId, HostId)),
    /// Nothing more is to be done: it is over.
    Nothing,
}

impl Simulation {
    /// A fault strikes.
    pub(super) fn strike(&mut self, number: usize) {
        let kind = self.scenario.faults[number].kind.clone();
        let world = &mut self.world;
        let now = world.now;
        world.trace.note(now, || format!("FAULT {kind:?}"));
        self.quiet_at = self.quiet_at.max(now);
        match kind {
            Kind::Kill { host, back } => {
                world.network.kill(host, false, now);
                self.later(back, Remedy::Start(host));
            }
            Kind::PowerOff { host, back } => {
                world.network.kill(host, true, now);
                self.later(back, Remedy::Start(host));
            }
            Kind::Stop { host, time } => {
                world.network.stop(host, now + time);
                self.later(Some(time), Remedy::Nothing);
            }
            Kind::Hang { host, time } => {
                let until = time.map_or(Duration::MAX, |time| now + time);
                self.workers[host - 1].hang(until, &mut self.world);
                self.later(time, Remedy::Nothing);
            }
            Kind::Slow { host, times, time } => {
                self.workers[host - 1].slow = times;
                self.later(Some(time), Remedy::Speed(host));
            }
            Kind::Cut { route, both, lanes, time } => {
                let back = (route.1, route.0);
                for route in [route, back].into_iter().take(if both { 2 } else { 1 }) {
                    self.cut(route, lanes, time);
                }
            }
            Kind::Partition { side, lanes, time } => {
                let others = (1..=self.workers.len()).filter(|host| !side.contains(host));
                let routes = others.flat_map(|other| side.iter().map(move |one| (*one, other)));
                for (one, other) in routes.collect::<Vec<_>>() {
                    self.cut((one, other), lanes, time);
                    self.cut((other, one), lanes, time);
                }
            }
            Kind::Reset { hosts } => world.network.reset(hosts.0, hosts.1, now),
            Kind::Delay { route, by, time } => {
                for route in [route, (route.1, route.0)] {
                    self.world.network.delay(route.0, route.1, by);
                    self.later(Some(time), Remedy::Hasten(route));
                }
            }
            Kind::Pause { time } => {
                world.network.stop(COORDINATOR, now + time);
                self.later(Some(time), Remedy::Nothing);
            }
            Kind::Crash { end, back } => self.crash(end, back),
            Kind::Full { time } => {
                self.coordinator.disk.iter().for_each(|disk| disk.fill(true));
                self.world.oracle.full = true;
                self.later(Some(time), Remedy::Room);
            }
            Kind::Leave { host, asked } => self.let_leave(host, asked),
        }
    }

    fn cut(&mut self, route: (HostId, HostId), lanes: &'static [Lane], time: Option<Duration>) {
        self.world.network.cut(route, lanes, true, self.world.now);
        self.later(time, Remedy::Mend(route, lanes));
    }

    fn crash(&mut self, end: End, back: Duration) {
        let world = &mut self.world;
        if world.network.process(COORDINATOR).is_none() {
            return;
        }
        if end == End::ShutDown {
            self.coordinator.shut_down(world);
        }
        let power = end == End::Power;
        world.network.kill(COORDINATOR, power, world.now);
        if let Some(disk) = self.coordinator.disk.as_ref().filter(|_| power) {
            disk.lose_power();
        }
        let unfinished = self.coordinator.disk.as_ref().map(Disk::unfinished_jobs);
        world.oracle.crashed(&unfinished.unwrap_or_default());
        self.later(Some(back), Remedy::Start(COORDINATOR));
    }

    fn let_leave(&mut self, host: HostId, asked: bool) {
        let world = &mut self.world;
        let there = |host| world.network.process(host).is_some();
        if !there(host) || asked && !there(COORDINATOR) {
            return;
        }
        if asked {
            self.coordinator.drain(&format!("w{host}"), world);
        } else {
            self.workers[host - 1].wish_to_leave(world);
        }
    }

    fn later(&mut self, after: Option<Duration>, remedy: Remedy) {
        if let Some(after) = after {
            let at = self.world.now + after;
            self.quiet_at = self.quiet_at.max(at);
            self.world.agenda.at(at, Event::Remedy(remedy));
        }
    }

    /// What a fault did is over.
    pub(super) fn remedy(&mut self, remedy: Remedy) {
        let world = &mut self.world;
        world.trace.note(world.now, || format!("over: {remedy:?}"));
        match remedy {
            Remedy::Start(host) => self.start(host),
            Remedy::Speed(host) => self.workers[host - 1].slow = 1.0,
            Remedy::Mend(route, lanes) => world.network.cut(route, lanes, false, world.now),
            Remedy::Hasten((from, to)) => world.network.delay(from, to, Duration::ZERO),
            Remedy::Room => {
                self.coordinator.disk.iter().for_each(|disk| disk.fill(false));
                world.oracle.full = false;
            }
            Remedy::Nothing => {}
        }
    }
}
