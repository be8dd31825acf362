//! Connections: one task each, from the greeting to the end.

use super::files::{PARCELS_MAX, Put, Uploads};
use super::supervisor::{
    AdmitWorker, Answers, ClientCame, ClientLeft, ClientSaid, Supervisor, UNREAD_BYTES_MAX,
    WorkerHeard, WorkerLeft, WorkerSaid,
};
use crate::cluster::failure::LEASE;
use crate::director::{ClientId, Standing};
use crate::files::Files;
use crate::identity::{Access, Keeper};
use actix::Addr;
use bytes::Bytes;
use protocol::codec::Limits;
use protocol::handshake::read_hello;
use protocol::identity::{self, PeerIdentity, Strangers};
use protocol::message::{
    Enrolment, FromClient, Greeting, Join, Role, ToClient, ToCoordinator, ToWorker,
};
use protocol::transport::connection::{Reading, Writing};
use protocol::transport::stream::{FrameReader, FrameWriter, StreamError};
use protocol::{Fault, FaultKind, Version, WorkerId};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{interval, sleep, timeout};

/// How long a caller may take to say who it is: a worker or a command says it at once.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept: out of file descriptors, say, which others may free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many callers may be connected that have not said who they are: a quarter of the largest
/// cluster's workers at once, after which the others call again.
const STRANGERS_MAX: usize = 256;

/// How long a client may read nothing of what is sent to it, stopped in a terminal say, before it is hung up on: what waits
/// for it takes memory.
const CLIENT_PATIENCE: Duration = Duration::from_secs(600);

type Reader = FrameReader<Reading>;
type Writer = FrameWriter<Writing>;
/// An order, or a part of a file, and its payload.
type ForWorker = (ToWorker, Bytes);

/// What every connection meets.
#[derive(Debug)]
pub(super) struct Door {
    supervisor: Addr<Supervisor>,
    access: Access,
    files: Files,
    strangers: Mutex<Strangers>,
    opened: Instant,
}

impl Door {
    pub(super) fn new(supervisor: Addr<Supervisor>, access: Access, files: Files) -> Self {
        Self { supervisor, access, files, strangers: Mutex::default(), opened: Instant::now() }
    }

    /// Logs that a caller was refused, once for each address and reason.
    fn refused(&self, peer: SocketAddr, reason: &str) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = strangers.refuse(peer.ip(), reason, self.opened.elapsed()) {
            tracing::warn!("{line}");
        }
    }
}

/// Serves every caller on its own task.
pub(super) async fn accept(listener: TcpListener, door: Arc<Door>) {
    let unknown = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(permit) = Arc::clone(&unknown).try_acquire_owned() else {
                    door.refused(peer, "too many callers at once have not said who they are");
                    continue;
                };
                let door = Arc::clone(&door);
                actix::spawn(async move {
                    let greeted = greet(stream, &door).await;
                    drop(permit);
                    match greeted {
                        Ok(caller) => serve(caller, peer, &door).await,
                        Err(reason) => door.refused(peer, &reason),
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A caller that has said what it is, and may be that.
struct Caller {
    reader: Reader,
    writer: Writer,
    identity: Option<PeerIdentity>,
    role: Role,
}

/// Hears who calls, or tells why it is refused.
async fn greet(stream: TcpStream, door: &Door) -> Result<Caller, String> {
    let accepted = door.access.security().accept_enrolling(stream).await;
    let connection = accepted.map_err(|error| error.to_string())?;
    let mut reader = FrameReader::new(connection.reading, Limits::GREETING);
    let mut writer = FrameWriter::new(connection.writing, Limits::CONTROL);
    let frame = match timeout(HELLO_PATIENCE, reader.next_frame()).await {
        Err(_) => return Err(format!("it said nothing within {HELLO_PATIENCE:?}")),
        Ok(Ok(None)) => return Err("it hung up without a word".to_owned()),
        Ok(Err(_)) => return Err("it said nothing that a Tessera process says".to_owned()),
        Ok(Ok(Some(frame))) => frame,
    };
    let identity = connection.identity;
    let hello = read_hello(&frame.body).and_then(|(version, hello)| {
        authorise(&door.access, identity.as_ref(), &hello.role).map(|()| (version, hello))
    });
    match hello {
        Ok((version, hello)) => {
            reader.set_version(version);
            writer.set_version(version);
            // Who enrols speaks the oldest, whatever its release.
            if version != Version::newest() && !matches!(hello.role, Role::Enrol(_)) {
                tracing::info!(
                    "a caller is of the release before: wire {version} is spoken with it"
                );
            }
            Ok(Caller { reader, writer, identity, role: hello.role })
        }
        Err(fault) => {
            refuse(&mut writer, &fault).await.ok(); // gone already: as good
            Err(fault.cause)
        }
    }
}

/// Whether a caller with this identity may be what it says.
fn authorise(access: &Access, identity: Option<&PeerIdentity>, role: &Role) -> Result<(), Fault> {
    let unauthorised = |cause: &str| Err(Fault::new(FaultKind::Unauthorised, cause));
    let keeper = match (access, role) {
        (Access::Insecure, Role::Enrol(_)) => {
            return unauthorised("this coordinator was started with --insecure: it has no tokens");
        }
        (Access::Insecure, Role::Worker(_) | Role::Client) => return Ok(()),
        (Access::Members(_), Role::Enrol(_)) => return Ok(()),
        (Access::Members(keeper), Role::Worker(_) | Role::Client) => keeper,
    };
    let Some(identity) = identity else {
        return unauthorised("it shows no certificate, which all but newcomers with a token must");
    };
    let role = match role {
        Role::Worker(_) => identity::Role::Worker,
        Role::Client | Role::Enrol(_) => identity::Role::Client,
    };
    keeper.check(identity, role)
}

async fn refuse(writer: &mut Writer, fault: &Fault) -> Result<(), StreamError> {
    writer.send(&Greeting::Refused(fault.clone()), &[]).await?;
    writer.close().await
}

/// Why a session ended other than by the caller's leaving.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Revoked(Fault),
    #[error("more than {} MiB wait for it to be read", UNREAD_BYTES_MAX >> 20)]
    Unread,
}

/// What breaks one connection never reaches another.
async fn serve(caller: Caller, peer: SocketAddr, door: &Door) {
    let Caller { mut reader, mut writer, identity, role } = caller;
    let ended = match role {
        Role::Worker(join) => {
            reader.set_limits(Limits::CONTROL);
            serve_worker((reader, writer), peer, (*join, identity), door).await
        }
        Role::Client => {
            reader.set_limits(Limits::FILES);
            serve_client((reader, writer), identity, door).await
        }
        Role::Enrol(enrolment) => {
            let Access::Members(keeper) = &door.access else { return };
            enrol(&mut writer, peer, (keeper, &enrolment), door).await.map_err(SessionError::from)
        }
    };
    if let Err(error) = ended {
        tracing::warn!("the session with {peer} ended: {error}");
    }
}

/// Gives a newcomer its certificate, if its token is worth one.
async fn enrol(
    writer: &mut Writer,
    peer: SocketAddr,
    (keeper, enrolment): (&Keeper, &Enrolment),
    door: &Door,
) -> Result<(), StreamError> {
    match keeper.enrol(enrolment) {
        Ok((identity, certificates)) => {
            tracing::info!("{identity} is a member now, by token {}", enrolment.token.id);
            writer.send(&Greeting::Enrolled { certificates }, &[]).await?;
            writer.close().await
        }
        Err(fault) => {
            door.refused(peer, &fault.cause);
            refuse(writer, &fault).await
        }
    }
}

async fn serve_worker(
    (mut reader, mut writer): (Reader, Writer),
    peer: SocketAddr,
    (join, identity): (Join, Option<PeerIdentity>),
    door: &Door,
) -> Result<(), SessionError> {
    let (out, orders) = mpsc::unbounded_channel();
    let (parcels, parts) = mpsc::channel(PARCELS_MAX);
    let fingerprint = identity.as_ref().map(|identity| identity.fingerprint);
    let ask = AdmitWorker { join, peer: peer.ip(), identity: fingerprint, out, parcels };
    let admitted = door.supervisor.send(ask).await;
    let worker = match admitted.unwrap_or_else(|_| Err(shutting_down())) {
        Ok(worker) => worker,
        Err(fault) => {
            tracing::warn!("refused {peer}: {fault}");
            return Ok(refuse(&mut writer, &fault).await?);
        }
    };
    let lease_ms = u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX);
    let ended = async {
        writer.set_patience(LEASE);
        writer.send(&Greeting::Welcome { worker, lease_ms }, &[]).await?;
        let commanding =
            command_worker((&mut reader, &mut writer), worker, (orders, parts), &door.supervisor);
        tokio::select! {
            ended = commanding => Ok(ended?),
            fault = door.access.revoked(identity.as_ref()) => Err(SessionError::Revoked(fault)),
        }
    }
    .await;
    let cause = ended.as_ref().err().map_or_else(String::new, ToString::to_string);
    door.supervisor.do_send(WorkerLeft { worker, cause });
    writer.close().await.ok();
    ended
}

async fn command_worker(
    (reader, writer): (&mut Reader, &mut Writer),
    worker: WorkerId,
    (mut orders, mut parts): (mpsc::UnboundedReceiver<ForWorker>, mpsc::Receiver<ForWorker>),
    supervisor: &Addr<Supervisor>,
) -> Result<(), StreamError> {
    let (mut look, mut read) = (interval(LEASE / 4), 0);
    loop {
        tokio::select! {
            said = reader.next::<ToCoordinator>() => match said? {
                Some((message, payload)) => {
                    supervisor.do_send(WorkerSaid { worker, message, payload });
                }
                None => return Ok(()),
            },
            order = orders.recv() => match order {
                Some((order, payload)) => writer.send(&order, &payload).await?,
                // The supervisor took the worker for lost.
                None => return Ok(()),
            },
            // One part at a time: orders, and what the worker says, come between two.
            Some((part, bytes)) = parts.recv() => writer.send(&part, &bytes).await?,
            _ = look.tick() => {
                // A large band that is under way keeps the worker from saying that it is alive.
                if std::mem::replace(&mut read, reader.bytes()) != reader.bytes() {
                    supervisor.do_send(WorkerHeard { worker });
                }
            }
        }
    }
}

/// The number of a client's session: no two have the same.
pub(super) fn next_client() -> ClientId {
    static CLIENTS: AtomicU64 = AtomicU64::new(0);
    CLIENTS.fetch_add(1, Ordering::Relaxed)
}

async fn serve_client(
    (mut reader, mut writer): (Reader, Writer),
    identity: Option<PeerIdentity>,
    door: &Door,
) -> Result<(), SessionError> {
    let client = next_client();
    let supervisor = &door.supervisor;
    let owner = identity.as_ref().map_or("local", |identity| identity.name.as_str());
    let standing = Standing::of(owner);
    let (out, mut events) = mpsc::unbounded_channel::<(ToClient, Bytes)>();
    let unread = Arc::new(AtomicUsize::new(0));
    let answers = Answers { out, unread: Arc::clone(&unread) };
    writer.set_patience(CLIENT_PATIENCE);
    let welcome = Greeting::Welcome { worker: WorkerId(0), lease_ms: 0 };
    writer.send(&welcome, &[]).await?;
    supervisor.do_send(ClientCame { client, answers, standing });
    let mut uploads = Uploads::new(client, door.files.clone(), supervisor.clone());
    let mut revoked = pin!(door.access.revoked(identity.as_ref()));
    let ended = async {
        loop {
            tokio::select! {
                said = reader.next::<FromClient>() => match said? {
                    Some((FromClient::Put { file, offset, total }, bytes)) => {
                        let put = Put { file, offset, total, bytes };
                        if let Some(answer) = uploads.take(put).await {
                            writer.send(&answer, &[]).await?;
                        }
                    }
                    Some((message, _)) => supervisor.do_send(ClientSaid { client, message }),
                    None => return Ok(()),
                },
                told = events.recv() => match told {
                    Some((message, payload)) => {
                        unread.fetch_sub(payload.len(), Ordering::Relaxed);
                        writer.send(&message, &payload).await?;
                    }
                    None => return Err(SessionError::Unread),
                },
                fault = &mut revoked => return Err(SessionError::Revoked(fault)),
            }
        }
    }
    .await;
    supervisor.do_send(ClientLeft { client });
    ended
}

pub(super) fn shutting_down() -> Fault {
    Fault::new(FaultKind::ShuttingDown, "the coordinator is going away")
}
