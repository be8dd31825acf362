//! A simulated compute thread: one rank of one run, as `worker/src/engine/run.rs` renders it, without a thread.
//!
//! [`Run::advance`] goes from stage to stage; what each computes is in `stages`.
//!
//! Each stage waits for values of peers, computes for a while, and posts values. The first call of a run is
//! synchronous wherever it begins; after the warm-up values of the call before are read.

mod stages;

use super::Mutation;
use super::sampler::{Sampler, Text, size, texts};
use crate::network::ConnectionId;
use bytes::Bytes;
use protocol::message::{Phase, Pulse, Resume, ToCoordinator};
use protocol::plan::{Ask, Member, Plan, rows_sent};
use protocol::{Call, Fault, FaultKind, Rank, RunId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use worker::member::Turn;

/// Rows of the latent around a band; always fresh.
const INPUT: u16 = 0;
/// Rows of what the first half of a call computed.
const HALO: u16 = 1;
/// The sums of each channel.
const MOMENTS: u16 = 2;
/// The other branch's prediction.
const PREDICTION: u16 = 3;
/// Rows to decode.
const LATENT: u16 = 4;
/// Rows around those to decode.
const DECODE: u16 = 5;

/// A value on its way between two ranks.
#[derive(Clone, Debug)]
pub struct Value {
    /// The run it was computed in.
    pub run: RunId,
    /// By which rank.
    pub from: Rank,
    /// For what.
    pub site: u16,
    /// In which call.
    pub call: u32,
    /// The numbers.
    pub numbers: Rc<[f32]>,
}

/// What a run does next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// It waits for a value.
    Wait,
    /// It computes so many rows' worth of a call.
    Compute(f64),
    /// It is over.
    End,
}

/// What a run says and sends.
#[derive(Debug)]
pub enum Out {
    /// A value to a peer.
    Post(Rank, Value),
    /// A report to the coordinator. The last of a run ends it.
    Say(ToCoordinator, Bytes),
}

/// One rank of one run.
#[derive(Debug)]
pub struct Run {
    /// Who renders what.
    pub plan: Rc<Plan>,
    /// Which rank this is.
    pub rank: Rank,
    /// The worker's name for it.
    pub turn: Turn,
    /// The session that its reports go to.
    pub session: ConnectionId,
    /// The links to all other ranks.
    pub links: BTreeMap<Rank, ConnectionId>,
    /// Someone asked for its end.
    pub cancelled: bool,
    /// What it says and sends, until it is taken.
    pub out: Vec<Out>,
    /// A value of another run that it took for one of its own.
    pub foreign: Option<RunId>,
    mutation: Mutation,
    member: Member,
    sampler: Sampler,
    latent: Vec<f32>,
    history: Option<Vec<f32>>,
    hidden: Vec<Vec<f32>>,
    predictions: Vec<Vec<f32>>,
    decoded: Vec<f32>,
    stage: Stage,
    computing: bool,
    call: u32,
    begun: bool,
    displaced: bool,
    slots: BTreeMap<(Rank, u16), [Option<Value>; 2]>,
    gone: BTreeSet<Rank>,
    beats: u64,
    waits_for: Option<(Rank, Duration)>,
    call_began: Duration,
    waited: Duration,
}

/// Where a run is: what it computes once what that needs is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Encode,
    Hidden,
    Predict,
    Meet,
    Rows,
    Decode,
    Over,
}

/// What a run is begun with.
#[derive(Debug)]
pub struct Beginning {
    /// Who renders what.
    pub plan: Rc<Plan>,
    /// Which rank this is.
    pub rank: Rank,
    /// The worker's name for it.
    pub turn: Turn,
    /// Where it goes on, if others began it.
    pub resume: Option<(Resume, Bytes)>,
}

impl Run {
    /// A run whose links are open.
    ///
    /// # Panics
    /// If the plan does not have the rank: that was checked.
    #[must_use]
    pub fn new(
        beginning: Beginning,
        session: ConnectionId,
        links: BTreeMap<Rank, ConnectionId>,
        mutation: Mutation,
    ) -> Self {
        let Beginning { plan, rank, turn, resume } = beginning;
        let member = plan.member(rank).expect("the plan was checked").clone();
        let sampler = Sampler::of(&plan);
        let mut run = Self {
            latent: sampler.noise(member.band),
            history: None,
            hidden: Vec::new(),
            predictions: Vec::new(),
            decoded: Vec::new(),
            stage: Stage::Encode,
            computing: false,
            call: 0,
            begun: false,
            displaced: false,
            slots: BTreeMap::new(),
            gone: BTreeSet::new(),
            beats: 0,
            waits_for: None,
            call_began: Duration::ZERO,
            waited: Duration::ZERO,
            cancelled: false,
            out: Vec::new(),
            foreign: None,
            plan,
            rank,
            turn,
            session,
            links,
            mutation,
            member,
            sampler,
        };
        if let Some((resume, planes)) = resume {
            run.resume(resume, &planes);
        }
        run
    }

    fn resume(&mut self, resume: Resume, planes: &Bytes) {
        let numbers: Vec<f32> = planes
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let mut tensors = numbers.chunks(self.latent.len());
        self.latent = tensors.next().map(<[f32]>::to_vec).unwrap_or_default();
        self.history = tensors.next().map(<[f32]>::to_vec);
        self.call = resume.calls;
        match self.mutation {
            Mutation::LosesHistory => self.history = None,
            Mutation::SkipsACall => self.call = (resume.calls + 1).min(self.calls()),
            Mutation::RepeatsACall => self.call = resume.calls.saturating_sub(1),
            _ => {}
        }
    }

    /// The run's name.
    #[must_use]
    pub fn id(&self) -> RunId {
        self.plan.run
    }

    /// How far it is. `busy_for` is how long its operation under way has been going on.
    #[must_use]
    pub fn pulse(&self, busy_for: Duration) -> Pulse {
        // A long computation has many operations, each of which is a beat.
        let operations = u64::try_from(busy_for.as_millis()).unwrap_or(u64::MAX);
        let waits_for = self.waits_for.map(|(peer, _)| peer);
        Pulse { run: self.id(), beats: self.beats + operations, waits_for }
    }

    /// Whether it computes.
    #[must_use]
    pub fn is_computing(&self) -> bool {
        self.computing
    }

    /// A peer's link ended.
    pub fn lose(&mut self, link: ConnectionId) {
        self.gone
            .extend(self.links.iter().filter(|(_, each)| **each == link).map(|(peer, _)| *peer));
    }

    /// A value came: what is of an older run does not land (L-4).
    pub fn land(&mut self, value: Value) {
        let stale = value.run.epoch < self.id().epoch;
        if stale && self.mutation != Mutation::TakesOldValues {
            return;
        }
        let slot = self.slots.entry((value.from, value.site)).or_default();
        let place = size(value.call % 2);
        slot[place] = Some(value);
    }

    /// The thread begins.
    pub fn begin(&mut self) {
        self.say(ToCoordinator::Entered { run: self.id(), phase: Phase::TextEncoding });
    }

    /// Does what can be done.
    pub fn advance(&mut self, now: Duration) -> Next {
        while self.stage != Stage::Over {
            if self.computing {
                return Next::Wait;
            }
            if self.cancelled {
                self.end(ToCoordinator::Aborted { run: self.id() });
                break;
            }
            let needs = self.needs();
            if let Some((peer, ..)) = needs.iter().find(|need| !self.has(**need)) {
                if self.gone.contains(peer) {
                    self.fail(*peer);
                    break;
                }
                let since = self.waits_for.map_or(now, |(_, since)| since);
                self.waits_for = Some((*peer, since));
                return Next::Wait;
            }
            if let Some((_, since)) = self.waits_for.take() {
                self.waited += now.saturating_sub(since);
            }
            self.beats += 1;
            match self.weight() {
                Some(weight) => {
                    self.computing = true;
                    return Next::Compute(weight);
                }
                None => self.compute(now),
            }
        }
        Next::End
    }

    /// What was computed is there.
    pub fn computed(&mut self, now: Duration, busy_for: Duration) {
        self.computing = false;
        self.beats += u64::try_from(busy_for.as_millis()).unwrap_or(u64::MAX);
        if !self.cancelled {
            self.compute(now);
        }
    }

    /// How many rows' worth of a call the stage takes; None: nothing.
    fn weight(&self) -> Option<f64> {
        let batch = f64::from(self.plan.batch(self.rank));
        let half = batch * f64::from(self.member.band.rows) / 2.0;
        match self.stage {
            Stage::Encode => Some(1.0),
            Stage::Hidden | Stage::Predict => Some(half),
            Stage::Decode => Some(f64::from(self.member.decodes.rows)),
            Stage::Meet | Stage::Rows | Stage::Over => None,
        }
    }

    /// The values that the stage reads.
    fn needs(&self) -> Vec<(Rank, u16, u32)> {
        let this = |site, call| move |peer: Rank| (peer, site, call);
        let from = if self.displaced { self.call - 1 } else { self.call };
        match self.stage {
            Stage::Encode | Stage::Over => Vec::new(),
            Stage::Hidden => self.neighbours().map(this(INPUT, self.call)).collect(),
            Stage::Predict => {
                let halos = self.neighbours().map(this(HALO, from));
                halos.chain(self.branch_peers().map(this(MOMENTS, from))).collect()
            }
            Stage::Meet => self.senders(Ask::Prediction).map(this(PREDICTION, self.call)).collect(),
            Stage::Rows => self.senders(Ask::Latent).map(this(LATENT, self.call)).collect(),
            Stage::Decode => self.decoders().map(this(DECODE, self.call)).collect(),
        }
    }

    fn has(&self, (peer, site, call): (Rank, u16, u32)) -> bool {
        let slot = self.slots.get(&(peer, site)).and_then(|slot| slot[size(call % 2)].as_ref());
        slot.is_some_and(|value| value.call == call)
    }

    fn read(&mut self, (peer, site, call): (Rank, u16, u32)) -> Rc<[f32]> {
        let slot = self.slots.get(&(peer, site)).and_then(|slot| slot[size(call % 2)].as_ref());
        let value = slot.expect("what a stage needs is there before it computes");
        if value.run != self.plan.run {
            self.foreign = Some(value.run);
        }
        Rc::clone(&value.numbers)
    }

    fn calls(&self) -> u32 {
        self.plan.spec.steps
    }

    fn texts(&self) -> &'static [Text] {
        texts(self.member.branch, self.plan.is_guided())
    }

    fn peers(&self) -> impl Iterator<Item = Rank> + use<> {
        let own = self.rank;
        self.plan.ranks().filter(move |peer| *peer != own)
    }

    fn branch_peers(&self) -> impl Iterator<Item = Rank> {
        self.plan.branch_of(self.rank).filter(|peer| *peer != self.rank)
    }

    fn neighbours(&self) -> impl Iterator<Item = Rank> {
        self.branch_peers().filter(|peer| peer.0.abs_diff(self.rank.0) == 1)
    }

    /// The ranks that decode the rows beside this one's.
    fn decoders(&self) -> impl Iterator<Item = Rank> {
        self.peers().filter(|peer| peer.0.abs_diff(self.rank.0) == 1)
    }

    fn senders(&self, ask: Ask) -> impl Iterator<Item = Rank> {
        let sends = move |peer: &Rank| rows_sent(&self.plan, ask, *peer, self.rank).is_some();
        self.peers().filter(sends)
    }

    fn say(&mut self, message: ToCoordinator) {
        self.out.push(Out::Say(message, Bytes::new()));
    }

    fn end(&mut self, message: ToCoordinator) {
        self.stage = Stage::Over;
        self.say(message);
    }

    fn fail(&mut self, peer: Rank) {
        let cause = format!("{peer} closed its link");
        let fault = Fault::new(FaultKind::PeerLost, cause).with(peer).on(self.rank);
        let fault = fault.during(Call(self.call));
        self.end(ToCoordinator::Failed { run: self.id(), fault, unopened: Vec::new() });
    }
}
