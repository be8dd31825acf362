//! The root actor: takes orders, opens links, gives runs to the engine and stops them.

use super::session::Outbox;
use crate::cache::{Cache, Part};
use crate::engine::{Engine, Run};
use crate::member::{Duty, Turn};
use crate::parallel;
use actix::prelude::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use bytes::Bytes;
use protocol::job::FileDigest;
use protocol::message::{Resume, ToCoordinator, ToWorker};
use protocol::plan::{Plan, netcheck};
use protocol::transport::{Endpoint, Hangup, Links};
use protocol::{Fault, FaultKind, Rank, RunId};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// A coordinator let this worker in.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct SessionOpened {
    pub(super) out: Outbox,
}

/// The session with the coordinator ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct SessionEnded;

/// The coordinator ordered something.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Ordered(pub(super) ToWorker, pub(super) Bytes);

/// The root actor.
#[derive(Debug)]
pub(super) struct Supervisor {
    engine: Arc<Engine>,
    endpoint: Arc<Endpoint>,
    session: Option<Outbox>,
    duty: Duty,
    stop: Option<Stop>,
    cache: Cache,
}

/// The means to stop the current turn.
#[derive(Debug)]
struct Stop {
    cancel: oneshot::Sender<Fault>,
    hangup: Option<Hangup>,
}

impl Supervisor {
    pub(super) fn new(engine: Arc<Engine>, endpoint: Arc<Endpoint>) -> Self {
        let cache = Cache::default();
        Self { engine, endpoint, session: None, duty: Duty::default(), stop: None, cache }
    }

    fn say(&self, message: ToCoordinator) {
        if let Some(session) = &self.session {
            // A session that just ended is noticed by its own task, which says `SessionEnded`.
            session.send((message, Bytes::new())).ok();
        }
    }

    fn start(&mut self, assignment: Assignment, ctx: &mut Context<Self>) {
        let Assignment { plan, rank, work } = assignment;
        let run = plan.run;
        let started = check(&plan, rank).and_then(|()| self.duty.start(run));
        let turn = match started {
            Ok(turn) => turn,
            Err(fault) => return self.say(failed(run, fault.on(rank))),
        };
        let RunId { job, epoch } = run;
        let ranks = plan.world_size();
        tracing::info!(job = job.0, epoch = epoch.0, rank = rank.0, "renders as one of {ranks}");
        let (cancel, cancelled) = oneshot::channel();
        self.stop = Some(Stop { cancel, hangup: None });
        let (endpoint, engine) = (Arc::clone(&self.endpoint), Arc::clone(&self.engine));
        let opening = async move {
            let links = match work {
                Work::Render(_) => endpoint.open(&plan, rank, engine.sites()).await,
                Work::Measure => endpoint.open(&plan, rank, &netcheck::sites()).await,
            };
            (plan, work, links)
        };
        let opened = opening.into_actor(self).map(move |(plan, work, links), supervisor, ctx| {
            if !supervisor.duty.is_current(turn) {
                return;
            }
            match links {
                Ok((links, hangup)) => {
                    let assignment = Assignment { plan, rank, work };
                    let began = Began { turn, links, hangup, cancelled };
                    supervisor.work(assignment, began, ctx);
                }
                Err(error) => {
                    let fault = Fault::from(&error).on(rank);
                    let unopened = error.unopened().to_vec();
                    let failed = ToCoordinator::Failed { run, fault, unopened };
                    supervisor.finish(turn, Some(failed));
                }
            }
        });
        ctx.spawn(opened);
    }

    fn work(&mut self, assignment: Assignment, began: Began, ctx: &mut Context<Self>) {
        let Assignment { plan, rank, work } = assignment;
        let Began { turn, links, hangup, cancelled: cancel } = began;
        let (Some(session), Some(stop)) = (self.session.clone(), &mut self.stop) else { return };
        stop.hangup = Some(hangup);
        let (out, said) = mpsc::unbounded_channel();
        let run = plan.run;
        match work {
            Work::Render(resume) => {
                let files = self.cache.open(plan.spec.files());
                self.engine.render(Run { plan, rank, resume, files, links, cancel, out });
            }
            Work::Measure => measure(run, rank, (links, cancel), out),
        }
        let ended = forward(said, session).into_actor(self);
        ctx.spawn(ended.map(move |end, supervisor, _| {
            let end = end.unwrap_or_else(|| {
                let fault = Fault::new(FaultKind::Compute, "the compute thread is gone");
                (failed(run, fault.on(rank)), Bytes::new())
            });
            supervisor.finish_with(turn, end);
        }));
    }

    /// `turn` is over; its last message goes out after it is, so that the next order finds this
    /// worker free.
    fn finish_with(&mut self, turn: Turn, (message, payload): (ToCoordinator, Bytes)) {
        if self.duty.is_current(turn) {
            self.finish(turn, None);
            if let Some(session) = &self.session {
                session.send((message, payload)).ok();
            }
        }
    }

    fn finish(&mut self, turn: Turn, message: Option<ToCoordinator>) {
        self.duty.end(turn);
        self.stop = None;
        if let Some(message) = message {
            self.say(message);
        }
    }

    /// Stops the current turn: the engine ends it at its next wait or call, and peers learn at once
    /// that nothing more comes.
    fn stop(&mut self, cause: &str) {
        if let Some(Stop { cancel, hangup }) = self.stop.take() {
            // An engine that has just ended the run has nothing to cancel.
            cancel.send(Fault::new(FaultKind::Cancelled, cause)).ok();
            if let Some(hangup) = hangup {
                hangup.now();
            }
        }
    }

    /// Takes a part of a file, and says so once that is all of it.
    fn take_part(&mut self, file: FileDigest, part: Part<'_>) {
        match self.cache.take(file, part) {
            Ok(false) => {}
            Ok(true) => self.say(ToCoordinator::Holds { files: self.cache.held() }),
            Err(fault) => {
                tracing::warn!("{fault}");
                self.say(ToCoordinator::Unheld { file, fault });
                // Others may have made room for it.
                self.say(ToCoordinator::Holds { files: self.cache.held() });
            }
        }
    }

    fn abort(&mut self, run: RunId, fault: &Fault) {
        let Some(turn) = self.duty.abort(run) else { return };
        let RunId { job, epoch } = run;
        tracing::info!(job = job.0, epoch = epoch.0, "aborted: {fault}");
        let opening = self.stop.as_ref().is_some_and(|stop| stop.hangup.is_none());
        self.stop(&fault.cause);
        if opening {
            // The engine has not heard of this run: nobody else would say that it ended.
            self.finish(turn, Some(ToCoordinator::Aborted { run }));
        }
    }
}

/// One rank of one run.
struct Assignment {
    plan: Plan,
    rank: Rank,
    work: Work,
}

/// What a run is for.
enum Work {
    Render(Option<(Resume, Bytes)>),
    Measure,
}

/// A run whose links are open.
struct Began {
    turn: Turn,
    links: Links,
    hangup: Hangup,
    cancelled: oneshot::Receiver<Fault>,
}

/// Measures on a thread of its own: links are made for threads outside the runtime.
fn measure(
    run: RunId,
    rank: Rank,
    (links, cancel): (Links, oneshot::Receiver<Fault>),
    out: mpsc::UnboundedSender<(ToCoordinator, Bytes)>,
) {
    std::thread::spawn(move || {
        let end = match parallel::netcheck::measure(rank, links, cancel) {
            Ok(links) => ToCoordinator::Measured { run, links },
            Err(fault) if fault.kind == FaultKind::Cancelled => ToCoordinator::Aborted { run },
            Err(fault) => failed(run, fault.on(rank)),
        };
        out.send((end, Bytes::new())).ok(); // or the supervisor is gone, and with it the worker
    });
}

/// A run failed here, and not for want of links.
fn failed(run: RunId, fault: Fault) -> ToCoordinator {
    ToCoordinator::Failed { run, fault, unopened: Vec::new() }
}

fn check(plan: &Plan, rank: Rank) -> Result<(), Fault> {
    let mismatch = |cause: String| Fault::new(FaultKind::PlanMismatch, cause);
    plan.check().map_err(|error| mismatch(error.to_string()))?;
    plan.member(rank).map(drop).ok_or_else(|| mismatch(format!("the plan has no {rank}")))
}

/// Passes on what the engine says of a run, but for its last message, which is given back. None:
/// the compute thread ended without one.
async fn forward(
    mut said: mpsc::UnboundedReceiver<(ToCoordinator, Bytes)>,
    session: Outbox,
) -> Option<(ToCoordinator, Bytes)> {
    while let Some((message, payload)) = said.recv().await {
        let last = matches!(
            message,
            ToCoordinator::Decoded { .. }
                | ToCoordinator::Measured { .. }
                | ToCoordinator::Failed { .. }
                | ToCoordinator::Aborted { .. }
        );
        if last {
            return Some((message, payload));
        }
        // Of a session that has ended nobody hears; the supervisor stops the run.
        session.send((message, payload)).ok();
    }
    None
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

impl Handler<SessionOpened> for Supervisor {
    type Result = ();

    fn handle(&mut self, opened: SessionOpened, _: &mut Self::Context) {
        self.session = Some(opened.out);
        self.cache.stop();
        self.say(ToCoordinator::Holds { files: self.cache.held() });
    }
}

impl Handler<SessionEnded> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: SessionEnded, _: &mut Self::Context) {
        self.session = None;
        if self.duty.abandon().is_some() {
            self.stop("the coordinator is gone");
        }
    }
}

impl Handler<Ordered> for Supervisor {
    type Result = ();

    fn handle(&mut self, Ordered(order, payload): Ordered, ctx: &mut Self::Context) {
        match order {
            // The session has them.
            ToWorker::Alive | ToWorker::Leave => {}
            ToWorker::File { file, offset, total } => {
                self.take_part(file, Part { offset, total, bytes: &payload });
            }
            ToWorker::Start { plan, rank, resume } => {
                let work = Work::Render(resume.map(|resume| (resume, payload)));
                self.start(Assignment { plan: *plan, rank, work }, ctx);
            }
            ToWorker::Measure { plan, rank } => {
                self.start(Assignment { plan: *plan, rank, work: Work::Measure }, ctx);
            }
            ToWorker::Abort { run, fault } => self.abort(run, &fault),
        }
    }
}
