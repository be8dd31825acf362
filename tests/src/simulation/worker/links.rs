//! How the links of a run come to be: `protocol/src/transport/endpoint.rs` and its gate, with the real handshake.

use super::{Timer, Worker};
use crate::network::{ConnectionId, HostId, Lane};
use crate::simulation::engine::{Beginning, Run, Value};
use crate::simulation::model::sites;
use crate::simulation::{Packet, World};
use bytes::Bytes;
use protocol::handshake::PeerHandshake;
use protocol::message::{PeerAnswer, PeerHello, Resume, ToCoordinator};
use protocol::plan::{Fabric, Plan};
use protocol::transport::quic::IDLE_TIMEOUT;
use protocol::transport::{LinkError, OPEN_DEADLINE, PARKED_FOR};
use protocol::{Fault, FaultKind, Rank};
use std::collections::BTreeMap;
use std::rc::Rc;
use worker::member::Turn;

/// What a worker is ordered to render.
type Order = (Rc<Plan>, Rank, Option<(Resume, Bytes)>);

/// A run whose links are being opened.
#[derive(Debug)]
pub(super) struct Opening {
    beginning: Beginning,
    session: ConnectionId,
    handshake: PeerHandshake,
    links: BTreeMap<Rank, ConnectionId>,
    /// Peers that were called and have not answered.
    calls: BTreeMap<ConnectionId, Rank>,
    /// What came before all links were there.
    early: Vec<Value>,
    ended: Vec<ConnectionId>,
    /// Peers whose calls led nowhere, and why.
    unreached: Vec<(Rank, String)>,
}

impl Opening {
    pub(super) fn turn(&self) -> Turn {
        self.beginning.turn
    }

    fn all(&self) -> impl Iterator<Item = ConnectionId> {
        self.links.values().chain(self.calls.keys()).copied()
    }
}

impl Worker {
    /// The coordinator starts a run here.
    pub(super) fn ordered(&mut self, (plan, rank, resume): Order, world: &mut World) {
        let (run, Some(session)) = (plan.run, self.session.welcomed()) else { return };
        let mismatch = |cause: String| Fault::new(FaultKind::PlanMismatch, cause);
        let checked = plan.check().map_err(|error| mismatch(error.to_string()));
        let turn = match checked.and_then(|()| self.duty.start(run)) {
            Ok(turn) => turn,
            Err(fault) => {
                world.oracle.violated("O-5 idle", format!("a worker had to refuse: {fault}"));
                let (fault, unopened) = (fault.on(rank), Vec::new());
                return self.say(ToCoordinator::Failed { run, fault, unopened }, world);
            }
        };
        let mut opening = Opening {
            handshake: PeerHandshake::new(&plan, sites(), rank),
            beginning: Beginning { plan: Rc::clone(&plan), rank, turn, resume },
            session,
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            early: Vec::new(),
            ended: Vec::new(),
            unreached: Vec::new(),
        };
        self.call_peers(&plan, &mut opening, world);
        self.openings.push(opening);
        world.wake(self.host, OPEN_DEADLINE, Timer::Unopened(turn));
        let of_run = |(_, hello): &mut (ConnectionId, PeerHello)| hello.run == run;
        let early: Vec<_> = self.parked.extract_if(.., of_run).collect();
        for (caller, hello) in early {
            self.called(caller, hello, world);
        }
        self.complete(turn, world);
    }

    fn call_peers(&self, plan: &Plan, opening: &mut Opening, world: &mut World) {
        for peer in opening.handshake.to_call().collect::<Vec<_>>() {
            let Some(member) = plan.member(peer) else { continue };
            let host = HostId::from(member.address.port());
            let lane = match plan.link_fabric(opening.beginning.rank, peer) {
                Some(Fabric::Quic) => Lane::Quic,
                _ => Lane::Tcp,
            };
            let link = world.network.open(self.host, host, lane, world.now);
            let hello = Packet::PeerHello(opening.handshake.hello(peer));
            world.network.send(link, self.host, (0, hello), world.now);
            opening.calls.insert(link, peer);
            if lane == Lane::Quic {
                world.wake(self.host, IDLE_TIMEOUT, Timer::Unmet(link));
            }
        }
    }

    /// A peer calls.
    pub(super) fn called(&mut self, caller: ConnectionId, hello: PeerHello, world: &mut World) {
        let of_run = |opening: &&mut Opening| opening.beginning.plan.run == hello.run;
        let Some(opening) = self.openings.iter_mut().find(of_run) else {
            self.parked.push((caller, hello));
            return world.wake(self.host, PARKED_FOR, Timer::Parked(caller));
        };
        let turn = opening.turn();
        match opening.handshake.admit(&hello) {
            Ok(peer) => {
                opening.links.insert(peer, caller);
                let welcome = Packet::PeerAnswer(PeerAnswer::Welcome);
                world.network.send(caller, self.host, (0, welcome), world.now);
                self.complete(turn, world);
            }
            Err(fault) => {
                self.refuse(caller, fault.clone(), world);
                if fault.kind == FaultKind::PlanMismatch {
                    let error = LinkError::Refused { peer: hello.from, fault };
                    self.fail_opening(turn, &error, world);
                }
            }
        }
    }

    fn refuse(&self, caller: ConnectionId, fault: Fault, world: &mut World) {
        let refusal = Packet::PeerAnswer(PeerAnswer::Refused(fault));
        world.network.send(caller, self.host, (0, refusal), world.now);
        world.network.close(caller, self.host, world.now);
    }

    /// A peer that was called answers.
    pub(super) fn answered(&mut self, link: ConnectionId, answer: PeerAnswer, world: &mut World) {
        let called = |opening: &&mut Opening| opening.calls.contains_key(&link);
        let Some(opening) = self.openings.iter_mut().find(called) else { return };
        let (turn, Some(peer)) = (opening.turn(), opening.calls.remove(&link)) else { return };
        match opening.handshake.answered(peer, answer) {
            Ok(()) => {
                opening.links.insert(peer, link);
                self.settle_calls(turn, world);
                self.complete(turn, world);
            }
            Err(LinkError::Refused { fault, .. }) if fault.kind == FaultKind::PeerLost => {
                self.unreached(turn, (peer, fault.cause), world);
            }
            Err(error) => self.fail_opening(turn, &error, world),
        }
    }

    /// A call over QUIC ends sooner than one over TCP if nothing comes back, not even from the peer's system.
    pub(super) fn give_call_up(&mut self, link: ConnectionId, world: &mut World) {
        let called = |opening: &&Opening| opening.calls.contains_key(&link);
        let Some(opening) = self.openings.iter().find(called) else { return };
        let Some(member) = opening.beginning.plan.member(opening.calls[&link]) else { return };
        let (own, peer) = (self.host, HostId::from(member.address.port()));
        if [(own, peer), (peer, own)]
            .iter()
            .any(|way| world.network.is_cut(way.0, way.1, Lane::Quic))
        {
            world.network.close(link, own, world.now);
            self.link_ended(link, world);
        }
    }

    /// A call led nowhere: it is told of once that is known of all that are called.
    fn unreached(&mut self, turn: Turn, peer: (Rank, String), world: &mut World) {
        let found = self.openings.iter_mut().find(|opening| opening.turn() == turn);
        let Some(opening) = found else { return };
        opening.unreached.push(peer);
        self.settle_calls(turn, world);
    }

    fn settle_calls(&mut self, turn: Turn, world: &mut World) {
        let settled = |opening: &&Opening| opening.turn() == turn && opening.calls.is_empty();
        let Some(opening) = self.openings.iter().find(settled) else { return };
        let Some((_, cause)) = opening.unreached.first().cloned() else { return };
        let peers = opening.unreached.iter().map(|(peer, _)| *peer).collect();
        self.fail_opening(turn, &LinkError::Unopened { peers, cause }, world);
    }

    /// A value came over a link.
    pub(super) fn landed(&mut self, link: ConnectionId, value: Value, world: &mut World) {
        let of_link = |opening: &&mut Opening| opening.links.values().any(|each| *each == link);
        if let Some(opening) = self.openings.iter_mut().find(of_link) {
            return opening.early.push(value);
        }
        let mut runs = self.current.iter_mut().chain(&mut self.waiting);
        if let Some(run) = runs.find(|run| run.links.values().any(|each| *each == link)) {
            run.land(value);
            self.go_on(world);
        }
    }

    /// A link, or what was to become one, ended.
    pub(super) fn link_ended(&mut self, link: ConnectionId, world: &mut World) {
        let called = |opening: &&mut Opening| opening.calls.contains_key(&link);
        if let Some(opening) = self.openings.iter_mut().find(called)
            && let Some(peer) = opening.calls.remove(&link)
        {
            let turn = opening.turn();
            return self.unreached(turn, (peer, "it hung up".to_owned()), world);
        }
        self.openings.iter_mut().for_each(|opening| opening.ended.push(link));
        self.current.iter_mut().chain(&mut self.waiting).for_each(|run| run.lose(link));
        self.go_on(world);
    }

    /// A caller whose run was never started here has waited long enough.
    pub(super) fn refuse_parked(&mut self, caller: ConnectionId, world: &mut World) {
        let Some(at) = self.parked.iter().position(|(parked, _)| *parked == caller) else { return };
        self.parked.remove(at);
        self.refuse(caller, Fault::new(FaultKind::PeerLost, "it was not started here"), world);
    }

    pub(super) fn give_opening_up(&mut self, turn: Turn, world: &mut World) {
        let found = self.openings.iter().find(|opening| opening.turn() == turn);
        let Some(opening) = found else { return };
        let peers = opening.handshake.missing().iter().copied().collect();
        let error = LinkError::Unopened { peers, cause: "no answer".to_owned() };
        self.fail_opening(turn, &error, world);
    }

    fn fail_opening(&mut self, turn: Turn, error: &LinkError, world: &mut World) {
        let Some(opening) = self.take_opening(turn) else { return };
        for link in opening.all() {
            world.network.close(link, self.host, world.now);
        }
        if self.duty.is_current(turn) {
            let (run, rank) = (opening.beginning.plan.run, opening.beginning.rank);
            self.duty.end(turn);
            let (fault, unopened) = (Fault::from(error).on(rank), error.unopened().to_vec());
            self.say(ToCoordinator::Failed { run, fault, unopened }, world);
        }
    }

    /// Gives a run to the engine once all its links are there.
    fn complete(&mut self, turn: Turn, world: &mut World) {
        let whole =
            |opening: &Opening| opening.turn() == turn && opening.handshake.missing().is_empty();
        if !self.openings.iter().any(whole) {
            return;
        }
        let Some(opening) = self.take_opening(turn) else { return };
        if !self.duty.is_current(turn) {
            for link in opening.all() {
                world.network.close(link, self.host, world.now);
            }
            return;
        }
        let Opening { beginning, session, links, early, ended, .. } = opening;
        let mut run = Run::new(beginning, session, links, self.mutation);
        early.into_iter().for_each(|value| run.land(value));
        ended.into_iter().for_each(|link| run.lose(link));
        self.waiting.push_back(run);
        self.go_on(world);
    }

    fn take_opening(&mut self, turn: Turn) -> Option<Opening> {
        let at = self.openings.iter().position(|opening| opening.turn() == turn)?;
        Some(self.openings.remove(at))
    }
}
