//! What a seed has for a cluster: its machines, its jobs, and what goes wrong when.

use super::client::Order;
use super::fault::{End, Fault, Kind};
use super::worker::Machine;
use crate::network::{HostId, Lane, Latency};
use crate::random::{Random, mix};
use protocol::job::{Bands, CfgSplit, Decode, JobRequest, Mode, Warmup, Wire};
use protocol::plan::Offer;
use std::time::Duration;

/// The most workers.
const WORKERS_MAX: u64 = 5;
/// The most faults: more than a few at once only hide each other.
const FAULTS_MAX: u64 = 7;
/// So many messages come in a scenario of common length; a fault may strike before any of them.
const MESSAGES: u64 = 900;
/// In so many of a hundred scenarios workers are parted into two groups.
const PARTITIONS: u64 = 12;
/// The most workers that are parted where nothing else goes wrong: as many as the image has bands.
const PARTED_MAX: usize = 8;
/// Links over both fabrics.
const BOTH: &[Lane] = &[Lane::Tcp, Lane::Quic];

/// What happens in one simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The workers' machines.
    pub machines: Vec<Machine>,
    /// When each worker starts.
    pub starts: Vec<Duration>,
    /// The jobs, and what their clients do.
    pub jobs: Vec<Order>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// How long messages take.
    pub latency: Latency,
    /// Whether values whose link is no more may come after all.
    pub strays: bool,
    /// Whether the coordinator keeps its jobs.
    pub kept: bool,
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// At a time.
    At(Duration),
    /// Before a message, by its number, is delivered. Heartbeats are not counted.
    Message(u64),
}

impl Scenario {
    /// What `random` has.
    pub fn draw(random: &mut Random) -> Self {
        // Drawn aside, so that seeds without one keep their story.
        let mut aside = Random::new(mix(random.clone().any()));
        let mut scenario = Self::draw_usual(random);
        let workers = scenario.machines.len();
        if workers > 1 && aside.chance(PARTITIONS) {
            let lanes = aside.pick(&[BOTH, BOTH, &[Lane::Quic]]);
            let time = if aside.chance(50) { None } else { Some(span(&mut aside)) };
            let kind = Kind::Partition { side: side(workers, &mut aside), lanes, time };
            scenario.faults.push(Fault { trigger: trigger(&mut aside), kind });
        }
        scenario
    }

    /// One job that all workers have a part in, and nothing goes wrong but that they are parted into two groups for good
    /// before it begins, or while it is rendered; and who is on one side.
    pub fn parted(random: &mut Random) -> (Self, Vec<HostId>) {
        let mut scenario = Self::draw_usual(random);
        let workers = 2 + random.index(PARTED_MAX - 1);
        let row = ms(random.pick(&[1, 4, 10]));
        scenario.machines = (0..workers).map(|_| machine(row, random)).collect();
        scenario.starts = (0..workers).map(|_| random.between(Duration::ZERO, ms(50))).collect();
        let request = JobRequest { height: None, rebalance: false, ..request(None, random) };
        scenario.jobs = vec![Order { at: ms(200), request, leaves_after: None }];
        let trigger = if random.chance(25) {
            Trigger::At(random.between(ms(100), ms(300)))
        } else {
            Trigger::Message(1 + random.below(MESSAGES))
        };
        let side = side(workers, random);
        let kind = Kind::Partition { side: side.clone(), lanes: BOTH, time: None };
        scenario.faults = vec![Fault { trigger, kind }];
        (scenario, side)
    }

    fn draw_usual(random: &mut Random) -> Self {
        let workers = usize::try_from(1 + random.below(WORKERS_MAX)).unwrap_or(1);
        let row = ms(random.pick(&[1, 4, 10, 30, 120]));
        let machines = (0..workers).map(|_| machine(row, random)).collect();
        let starts = (0..workers).map(|_| starts(random)).collect();
        let kept = random.chance(50);
        let faults = 0..random.below(FAULTS_MAX + 1);
        let faults: Vec<Fault> = faults.map(|_| fault((workers, kept), random)).collect();
        let stays = |host: &usize| !faults.iter().any(|fault| fault.kind.loses(*host));
        let staying = (1..=workers).filter(stays).count();
        let jobs = (0..1 + random.below(3)).map(|_| order(staying, random)).collect();
        let longest = ms(random.pick(&[1, 5, 20, 60]));
        let latency = (Duration::from_micros(50), longest);
        Self { machines, starts, jobs, faults, latency, strays: random.chance(50), kept }
    }

    /// How many workers or routes stay broken for good.
    #[must_use]
    pub fn lasting(&self) -> u32 {
        let lasting = self.faults.iter().filter(|fault| fault.kind.lasts());
        u32::try_from(lasting.count()).unwrap_or(u32::MAX)
    }

    /// How long the longest job takes one worker, however slow.
    #[must_use]
    pub fn longest_job(&self) -> Duration {
        let row = self.machines.iter().map(|machine| machine.row).max().unwrap_or_default();
        let calls = self.jobs.iter().filter_map(|job| job.request.steps).max().unwrap_or(1);
        // All rows of two predictions, a fifth more, and what latencies and the decode add.
        row * 16 * 2 * (calls + 4) * 6 / 5 + Duration::from_secs(2)
    }
}

fn machine(row: Duration, random: &mut Random) -> Machine {
    let offers = match random.below(3) {
        0 => vec![Offer::Quic { port: 1 }, Offer::Tcp],
        _ => vec![Offer::Tcp],
    };
    Machine { offers, row: row * random.pick(&[1, 1, 1, 2]) }
}

fn starts(random: &mut Random) -> Duration {
    let late = if random.chance(25) { ms(4000) } else { ms(50) };
    random.between(Duration::ZERO, late)
}

/// Of so many workers that are not lost for good.
fn order(staying: usize, random: &mut Random) -> Order {
    // The smallest image has bands for four.
    let count = u16::try_from(1 + random.index(staying.min(4))).unwrap_or(1);
    let wanted = random.chance(40).then_some(count);
    let leaves = random.chance(8);
    Order {
        at: random.between(Duration::ZERO, ms(3000)),
        request: request(wanted, random),
        leaves_after: leaves.then(|| random.between(Duration::ZERO, ms(5000))),
    }
}

fn request(workers: Option<u16>, random: &mut Random) -> JobRequest {
    // Two branches are asked for only of workers that there are.
    let splits: &[CfgSplit] = match workers {
        Some(2..) => &[CfgSplit::Auto, CfgSplit::Off, CfgSplit::On],
        _ => &[CfgSplit::Auto, CfgSplit::Off],
    };
    let cfg_split = random.pick(splits);
    let guided = cfg_split == CfgSplit::On || random.chance(60);
    let steps = u32::try_from(1 + random.below(12)).unwrap_or(1);
    JobRequest {
        height: random.pick(&[None, None, Some(16), Some(20)]),
        steps: Some(steps),
        guidance: Some(if guided { 1.5 } else { 1.0 }),
        seed: Some(random.any() & 0xffff_ffff),
        warmup: Warmup::Calls(random.pick(&[0, 1, 3])),
        mode: Some(random.pick(&[Mode::FullSync, Mode::Corrected, Mode::Corrected])),
        wire: Some(Wire::F32),
        cfg_split,
        bands: random.pick(&[Bands::Auto, Bands::Even]),
        decode: Decode::Whole,
        workers,
        stream_latents: random.chance(20),
        deterministic: random.chance(30),
        rebalance: random.chance(20),
        ..JobRequest::new("simulated")
    }
}

fn trigger(random: &mut Random) -> Trigger {
    if random.chance(60) {
        Trigger::Message(1 + random.below(MESSAGES))
    } else {
        Trigger::At(random.between(Duration::ZERO, ms(8000)))
    }
}

/// Some of so many workers, not all.
fn side(workers: usize, random: &mut Random) -> Vec<HostId> {
    let first = 1 + random.index(workers);
    let count = 1 + random.index(workers - 1);
    (0..count).map(|each| 1 + (first + each) % workers).collect()
}

fn fault((workers, kept): (usize, bool), random: &mut Random) -> Fault {
    let trigger = trigger(random);
    let kind = if kept && random.chance(20) { of_keeper(random) } else { kind(workers, random) };
    Fault { trigger, kind }
}

/// What goes wrong with a coordinator that keeps its jobs.
fn of_keeper(random: &mut Random) -> Kind {
    match random.below(3) {
        0 => Kind::Full { time: span(random) },
        _ => {
            let end = random.pick(&[End::Kill, End::Kill, End::Power, End::ShutDown]);
            Kind::Crash { end, back: span(random).min(ms(20_000)) }
        }
    }
}

/// The first worker is never lost for good, so that there is one to render.
fn kind(workers: usize, random: &mut Random) -> Kind {
    let host = 1 + random.index(workers);
    let ever = host > 1 && random.chance(20);
    let time = span(random);
    let back = (!ever).then_some(time);
    match random.below(14) {
        0 | 1 => Kind::Kill { host, back },
        2 => Kind::PowerOff { host, back },
        3 | 4 => Kind::Stop { host, time },
        5 => Kind::Hang { host, time: back },
        6 => Kind::Slow { host, times: random.pick(&[2.0, 5.0, 20.0]), time },
        7 => cut((host, 0), &[Lane::Control], time, random),
        8 | 9 => {
            let other = 1 + random.index(workers);
            let lanes: &'static [Lane] = random.pick(&[BOTH, &[Lane::Quic]]);
            let time = if random.chance(20) { None } else { Some(time) };
            Kind::Cut { route: (host, other), both: random.chance(70), lanes, time }
        }
        10 => Kind::Reset { hosts: (host, random.index(workers + 1)) },
        11 => {
            let by = random.between(ms(10), ms(900));
            Kind::Delay { route: (host, random.index(workers + 1)), by, time }
        }
        12 => Kind::Pause { time: random.between(ms(50), ms(3000)) },
        _ => Kind::Leave { host, asked: random.chance(50) },
    }
}

fn cut(
    (host, other): (HostId, HostId),
    lanes: &'static [Lane],
    time: Duration,
    random: &mut Random,
) -> Kind {
    let route = if random.chance(50) { (host, other) } else { (other, host) };
    Kind::Cut { route, both: random.chance(70), lanes, time: Some(time) }
}

/// How long a fault lasts: from less than anyone notices to longer than any patience.
fn span(random: &mut Random) -> Duration {
    let (from, to) =
        random.pick(&[(5, 700), (700, 1500), (1500, 6000), (6000, 20_000), (60_000, 90_000)]);
    random.between(ms(from), ms(to))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
