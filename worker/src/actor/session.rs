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
use protocol::{Fault, FaultKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

/// How long the coordinator may take to answer: it greets before it does anything else.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// How many times a lease is renewed in its time: two renewals may be late.
const RENEWALS: u32 = 3;

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

/// Renders for a coordinator, calling it again whenever it is not there. Ends only when it refuses this
/// worker for what it is: its identity, its model or its release.
pub async fn join(
    coordinator: &Coordinator,
    about: Join,
    engine: Engine,
    endpoint: Endpoint,
) -> SessionError {
    let supervisor = Supervisor::new(Arc::new(engine), Arc::new(endpoint)).start();
    let mut backoff = Backoff::default();
    let mut reported = String::new();
    loop {
        let ended = attend(coordinator, &about, &supervisor, &mut backoff).await;
        supervisor.do_send(SessionEnded);
        if !ended.may_pass() {
            return ended;
        }
        let cause = ended.to_string();
        // An absent coordinator is worth one line, not one for every attempt.
        if cause != reported {
            tracing::warn!("{cause}; calling it again until it is there");
            reported = cause;
        }
        sleep(backoff.pause()).await;
    }
}

/// One session, from the call to its end, and why it ended.
async fn attend(
    coordinator: &Coordinator,
    about: &Join,
    supervisor: &Addr<Supervisor>,
    backoff: &mut Backoff,
) -> SessionError {
    let address = &coordinator.address;
    let greeted = timeout(GREETING_PATIENCE, greet(coordinator, about)).await;
    let greeted = greeted.unwrap_or_else(|_| {
        let cause = format!("no answer within {} s", GREETING_PATIENCE.as_secs());
        Err(SessionError::Absent { address: address.clone(), cause })
    });
    let (reader, writer, admission) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => return error,
    };
    backoff.reset();
    tracing::info!("joined the coordinator at {address} as {}", admission.worker);
    let (out, said) = mpsc::unbounded_channel();
    supervisor.do_send(SessionOpened { out });
    let ended = converse(reader, writer, said, &admission, supervisor).await;
    let cause = ended.map_or_else(|e| e.to_string(), |()| "it closed the connection".to_owned());
    SessionError::Lost { address: address.clone(), cause }
}

async fn greet(
    Coordinator { address, security }: &Coordinator,
    about: &Join,
) -> Result<(Reader, Writer, Admission), SessionError> {
    let absent = |cause| SessionError::Absent { address: address.clone(), cause };
    let connection = security.connect(address, identity::Role::Coordinator).await;
    let connection = connection.map_err(|error| absent(error.to_string()))?;
    let asked = async {
        let mut reader = FrameReader::new(connection.reading, Limits::NO_PAYLOAD);
        let mut writer = FrameWriter::new(connection.writing, Limits::CONTROL);
        let join = Join { resident_bytes: resident_bytes(), ..about.clone() };
        writer.send(&hello(Role::Worker(Box::new(join))), &[]).await?;
        let answer = reader.next_frame().await?;
        Ok::<_, StreamError>((reader, writer, answer))
    };
    let (reader, writer, answer) = asked.await.map_err(|error| absent(error.to_string()))?;
    let answer = answer.ok_or_else(|| absent("it closed the connection".to_owned()))?;
    let admission = read_greeting(&answer.body)
        .map_err(|fault| SessionError::Refused { address: address.clone(), fault })?;
    Ok((reader, writer, admission))
}

/// Carries orders in and reports out, until the coordinator closes the connection.
async fn converse(
    mut reader: Reader,
    mut writer: Writer,
    mut said: mpsc::UnboundedReceiver<(ToCoordinator, Bytes)>,
    admission: &Admission,
    supervisor: &Addr<Supervisor>,
) -> Result<(), StreamError> {
    let lease = Duration::from_millis(admission.lease_ms.max(1).into());
    let mut renewal = interval(lease / RENEWALS);
    loop {
        tokio::select! {
            order = reader.next::<ToWorker>() => match order? {
                Some((order, _)) => supervisor.do_send(Ordered(order)),
                None => return Ok(()),
            },
            Some((message, payload)) = said.recv() => writer.send(&message, &payload).await?,
            _ = renewal.tick() => {
                let alive = ToCoordinator::Alive { resident_bytes: resident_bytes() };
                writer.send(&alive, &[]).await?;
            }
        }
    }
}
