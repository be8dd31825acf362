//! The connection to the coordinator, again and again.

use super::supervisor::{Ordered, SessionEnded, SessionOpened, Supervisor};
use crate::engine::Engine;
use crate::member::Backoff;
use crate::memory::resident_bytes;
use actix::prelude::{Actor, Addr};
use bytes::Bytes;
use protocol::codec::Limits;
use protocol::handshake::{Admission, hello, read_greeting};
use protocol::identity;
use protocol::message::{Join, Role, ToCoordinator, ToWorker};
use protocol::tls::Security;
use protocol::transport::Endpoint;
use protocol::transport::connection::{Reading, Writing};
use protocol::transport::stream::{FrameReader, FrameWriter, StreamError};
use protocol::{Fault, FaultKind, Version};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

/// How long the coordinator may take to answer: it greets before it does anything else.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// How often to see whether the compute thread is free, before the coordinator is called again.
const FREE_LOOK: Duration = Duration::from_millis(50);
/// How many times a lease is renewed in its time: three renewals may be late.
const RENEWALS: u32 = 4;

type Reader = FrameReader<Reading>;
type Writer = FrameWriter<Writing>;

/// What the session with one coordinator takes from the run in progress.
pub(super) type Outbox = mpsc::UnboundedSender<(ToCoordinator, Bytes)>;

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Nobody answers there.
    #[error("no coordinator answers at {address}: {cause}")]
    Absent {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// It does not let this worker in.
    #[error("the coordinator at {address} refused this worker: {fault}")]
    Refused {
        /// Where it is.
        address: String,
        /// Why.
        fault: Fault,
    },
    /// The connection broke.
    #[error("lost the coordinator at {address}: {cause}")]
    Lost {
        /// Where it was.
        address: String,
        /// What the system said.
        cause: String,
    },
}

impl SessionError {
    /// Whether the same attempt can succeed later, without anyone changing this worker.
    fn may_pass(&self) -> bool {
        match self {
            Self::Absent { .. } | Self::Lost { .. } => true,
            Self::Refused { fault, .. } => {
                matches!(fault.kind, FaultKind::ShuttingDown | FaultKind::QueueFull)
            }
        }
    }
}

/// Where the coordinator is, and how to call it.
#[derive(Clone, Debug)]
pub struct Coordinator {
    /// `HOST:PORT`.
    pub address: String,
    /// How the two prove who they are.
    pub security: Security,
}

/// Renders for a coordinator, calling it again whenever it is not there, until that lets this worker leave.
/// Once `leave` is true it asks for that: what it renders is handed over or done first.
///
/// # Errors
/// If the coordinator refuses this worker for what it is: its identity, its model or its release.
pub async fn join(
    coordinator: &Coordinator,
    about: Join,
    engine: Engine,
    endpoint: Endpoint,
    mut leave: watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let engine = Arc::new(engine);
    let supervisor = Supervisor::new(Arc::clone(&engine), Arc::new(endpoint)).start();
    let mut backoff = Backoff::default();
    let mut reported = String::new();
    loop {
        let own = Own { engine: &engine, supervisor: &supervisor };
        let ended = attend(coordinator, &about, own, &mut backoff, &mut leave).await;
        supervisor.do_send(SessionEnded);
        let ended = match ended {
            Ok(()) => return Ok(()),
            Err(ended) if !ended.may_pass() => return Err(ended),
            Err(ended) => ended,
        };
        if *leave.borrow() {
            return Ok(()); // nobody is there to hand anything over to
        }
        let cause = ended.to_string();
        // An absent coordinator is worth one line, not one for every attempt.
        if cause != reported {
            tracing::warn!("{cause}; calling it again until it is there");
            reported = cause;
        }
        let rest = async {
            sleep(backoff.pause()).await;
            free(&engine).await;
        };
        tokio::select! {
            () = rest => {}
            () = wanted(&mut leave) => return Ok(()),
        }
    }
}

/// Waits until nothing is computed here for a session that has ended: whoever lets this worker in counts on
/// it at once, and one whose computation hangs for good must stay out.
async fn free(engine: &Engine) {
    let Some(pulse) = engine.pulse() else { return };
    tracing::warn!(
        "{} is still being computed; the coordinator is called when it is not",
        pulse.run
    );
    while engine.pulse().is_some() {
        sleep(FREE_LOOK).await;
    }
}

/// Waits until this worker is to leave.
async fn wanted(leave: &mut watch::Receiver<bool>) {
    if leave.wait_for(|leave| *leave).await.is_err() {
        std::future::pending::<()>().await; // nobody is left who could want it
    }
}

/// What of this process a session needs.
#[derive(Clone, Copy)]
struct Own<'a> {
    engine: &'a Engine,
    supervisor: &'a Addr<Supervisor>,
}

/// One session, from the call until this worker may leave, or why it ended before.
async fn attend(
    coordinator: &Coordinator,
    about: &Join,
    own: Own<'_>,
    backoff: &mut Backoff,
    leave: &mut watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let address = &coordinator.address;
    let greeted = tokio::select! {
        greeted = timeout(GREETING_PATIENCE, greet(coordinator, about)) => greeted,
        () = wanted(leave) => return Ok(()),
    };
    let greeted = greeted.unwrap_or_else(|_| {
        let cause = format!("no answer within {} s", GREETING_PATIENCE.as_secs());
        Err(SessionError::Absent { address: address.clone(), cause })
    });
    let (mut reader, writer, admission) = greeted?;
    reader.set_limits(Limits::CONTROL);
    backoff.reset();
    tracing::info!("joined the coordinator at {address} as {}", admission.worker);
    let (out, said) = mpsc::unbounded_channel();
    own.supervisor.do_send(SessionOpened { out });
    let session = Session { reader, writer, said };
    let cause = match session.converse(&admission, own, leave).await {
        Ok(End::Left) => return Ok(()),
        Ok(End::Closed) => "it closed the connection".to_owned(),
        Ok(End::Silent(lease)) => format!("it was silent for {} ms", lease.as_millis()),
        Err(error) => error.to_string(),
    };
    Err(SessionError::Lost { address: address.clone(), cause })
}

/// Joins, in the newest version that both ends speak.
async fn greet(
    coordinator: &Coordinator,
    about: &Join,
) -> Result<(Reader, Writer, Admission), SessionError> {
    let greeted = greet_in(coordinator, about, Version::newest()).await;
    match (&greeted, Version::newest().before()) {
        (Err(SessionError::Refused { fault, .. }), Some(before))
            if fault.kind == FaultKind::VersionMismatch =>
        {
            let joined = greet_in(coordinator, about, before).await;
            joined
                .inspect(|_| tracing::info!("the coordinator is older: wire {before} is spoken"))
                .or(greeted)
        }
        _ => greeted,
    }
}

async fn greet_in(
    Coordinator { address, security }: &Coordinator,
    about: &Join,
    version: Version,
) -> Result<(Reader, Writer, Admission), SessionError> {
    let absent = |cause| SessionError::Absent { address: address.clone(), cause };
    let connection = security.connect(address, identity::Role::Coordinator).await;
    let connection = connection.map_err(|error| absent(error.to_string()))?;
    let asked = async {
        let mut reader = FrameReader::new(connection.reading, Limits::NO_PAYLOAD);
        let mut writer = FrameWriter::new(connection.writing, Limits::CONTROL);
        let join = Join { resident_bytes: resident_bytes(), ..about.clone() };
        reader.set_version(version);
        writer.set_version(version);
        writer.send(&hello(version, Role::Worker(Box::new(join))), &[]).await?;
        let answer = reader.next_frame().await?;
        Ok::<_, StreamError>((reader, writer, answer))
    };
    let (reader, writer, answer) = asked.await.map_err(|error| absent(error.to_string()))?;
    let answer = answer.ok_or_else(|| absent("it closed the connection".to_owned()))?;
    let admission = read_greeting(&answer.body)
        .map_err(|fault| SessionError::Refused { address: address.clone(), fault })?;
    Ok((reader, writer, admission))
}

/// A session that the coordinator has welcomed.
struct Session {
    reader: Reader,
    writer: Writer,
    said: mpsc::UnboundedReceiver<(ToCoordinator, Bytes)>,
}

/// How a session ended that did not break.
enum End {
    /// This worker may leave.
    Left,
    /// The coordinator closed the connection.
    Closed,
    /// The coordinator was not heard of for the time of a lease. What this worker renders may have been given to
    /// others: it is given up.
    Silent(Duration),
}

impl Session {
    /// Carries orders in and reports out.
    async fn converse(
        mut self,
        admission: &Admission,
        Own { engine, supervisor }: Own<'_>,
        leave: &mut watch::Receiver<bool>,
    ) -> Result<End, StreamError> {
        let lease = Duration::from_millis(admission.lease_ms.max(1).into());
        let mut renewal = interval(lease / RENEWALS);
        // After a pause one renewal is as good as those that were missed.
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.writer.set_patience(lease);
        let mut heard = Instant::now();
        let (mut renewed, mut read, mut asked) = (heard, 0, false);
        loop {
            tokio::select! {
                // In this order: after a moment in which this process had no processor, what came meanwhile
                // counts before the time that has passed.
                biased;
                order = self.reader.next::<ToWorker>() => {
                    heard = Instant::now();
                    match order? {
                        Some((ToWorker::Alive, _)) => {}
                        Some((ToWorker::Leave, _)) => return Ok(End::Left),
                        // No more is read of a file than could be written.
                        Some((part @ ToWorker::File { .. }, payload)) => {
                            supervisor.send(Ordered(part, payload)).await.ok(); // or this process ends
                        }
                        Some((order, payload)) => supervisor.do_send(Ordered(order, payload)),
                        None => return Ok(End::Closed),
                    }
                }
                _ = renewal.tick() => {
                    let now = Instant::now();
                    let late = now - std::mem::replace(&mut renewed, now) > lease / 2;
                    if late || std::mem::replace(&mut read, self.reader.bytes()) != self.reader.bytes() {
                        // It was this process that was silent, or a large order is under way. If the coordinator
                        // has taken this worker for lost, its hanging up is read next.
                        heard = now;
                    }
                    let resident_bytes = resident_bytes();
                    let alive = ToCoordinator::Alive { resident_bytes, pulse: engine.pulse() };
                    self.writer.send(&alive, &[]).await?;
                }
                Some((message, payload)) = self.said.recv() => {
                    let since = Instant::now();
                    self.writer.send(&message, &payload).await?;
                    if since.elapsed() > lease / RENEWALS {
                        // It went out because the coordinator took it, and nothing was read meanwhile.
                        heard = Instant::now();
                    }
                }
                () = wanted(leave), if !asked => {
                    asked = true;
                    tracing::info!("leaving, once what is rendered here is handed over or done");
                    self.writer.send(&ToCoordinator::Leaving, &[]).await?;
                }
                () = sleep_until(heard + lease) => return Ok(End::Silent(lease)),
            }
        }
    }
}
