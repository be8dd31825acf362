//! Connections: one task each, from the greeting to the end.

use super::supervisor::{
    AdmitWorker, ClientLeft, MeasureLinks, ReadCluster, Submit, Supervisor, WorkerLeft, WorkerSaid,
};
use crate::cluster::failure::LEASE;
use actix::Addr;
use bytes::Bytes;
use protocol::codec::Limits;
use protocol::handshake::read_hello;
use protocol::message::{FromClient, Greeting, Join, Role, ToClient, ToCoordinator, ToWorker};
use protocol::transport::stream::{FrameReader, FrameWriter, StreamError};
use protocol::{Fault, FaultKind, WorkerId};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// How long a caller may take to say who it is: a worker or a command says it at once.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept: out of file descriptors, say, which others may free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Reader = FrameReader<OwnedReadHalf>;
type Writer = FrameWriter<OwnedWriteHalf>;

/// Serves every caller on its own task.
pub(super) async fn accept(listener: TcpListener, supervisor: Addr<Supervisor>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                actix::spawn(serve(stream, peer, supervisor.clone()));
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What breaks one connection never reaches another.
async fn serve(stream: TcpStream, peer: SocketAddr, supervisor: Addr<Supervisor>) {
    if let Err(error) = converse(stream, peer, supervisor).await {
        tracing::warn!("the session with {peer} ended: {error}");
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    supervisor: Addr<Supervisor>,
) -> Result<(), StreamError> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("{peer}: no TCP_NODELAY: {error}");
    }
    let (read, write) = stream.into_split();
    let mut reader = FrameReader::new(read, Limits::GREETING);
    let mut writer = FrameWriter::new(write, Limits::CONTROL);
    let Ok(frame) = timeout(HELLO_PATIENCE, reader.next_frame()).await else {
        tracing::warn!("{peer} said nothing within {HELLO_PATIENCE:?}");
        return Ok(());
    };
    let Some(frame) = frame? else { return Ok(()) };
    let hello = match read_hello(&frame.body) {
        Ok(hello) => hello,
        Err(fault) => return refuse(&mut writer, peer, fault).await,
    };
    match hello.role {
        Role::Worker(join) => {
            reader.set_limits(Limits::CONTROL);
            serve_worker((reader, writer), peer, *join, supervisor).await
        }
        Role::Client => {
            reader.set_limits(Limits::NO_PAYLOAD);
            serve_client(reader, writer, supervisor).await
        }
    }
}

async fn refuse(writer: &mut Writer, peer: SocketAddr, fault: Fault) -> Result<(), StreamError> {
    tracing::warn!("refused {peer}: {fault}");
    writer.send(&Greeting::Refused(fault), &[]).await?;
    writer.close().await
}

async fn serve_worker(
    (mut reader, mut writer): (Reader, Writer),
    peer: SocketAddr,
    join: Join,
    supervisor: Addr<Supervisor>,
) -> Result<(), StreamError> {
    let (out, orders) = mpsc::unbounded_channel();
    let admitted = supervisor.send(AdmitWorker { join, peer: peer.ip(), out }).await;
    let worker = match admitted.unwrap_or_else(|_| Err(shutting_down())) {
        Ok(worker) => worker,
        Err(fault) => return refuse(&mut writer, peer, fault).await,
    };
    let lease_ms = u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX);
    let ended = async {
        writer.send(&Greeting::Welcome { worker, lease_ms }, &[]).await?;
        command_worker((&mut reader, &mut writer), worker, orders, &supervisor).await
    }
    .await;
    let cause = ended.as_ref().err().map_or_else(String::new, ToString::to_string);
    supervisor.do_send(WorkerLeft { worker, cause });
    writer.close().await.ok();
    ended
}

async fn command_worker(
    (reader, writer): (&mut Reader, &mut Writer),
    worker: WorkerId,
    mut orders: mpsc::UnboundedReceiver<ToWorker>,
    supervisor: &Addr<Supervisor>,
) -> Result<(), StreamError> {
    loop {
        tokio::select! {
            said = reader.next::<ToCoordinator>() => match said? {
                Some((message, payload)) => {
                    supervisor.do_send(WorkerSaid { worker, message, payload });
                }
                None => return Ok(()),
            },
            order = orders.recv() => match order {
                Some(order) => writer.send(&order, &[]).await?,
                // The supervisor took the worker for lost.
                None => return Ok(()),
            },
        }
    }
}

async fn serve_client(
    mut reader: Reader,
    mut writer: Writer,
    supervisor: Addr<Supervisor>,
) -> Result<(), StreamError> {
    static CLIENTS: AtomicU64 = AtomicU64::new(0);
    let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
    let (out, mut events) = mpsc::unbounded_channel::<(ToClient, Bytes)>();
    let welcome = Greeting::Welcome { worker: WorkerId(0), lease_ms: 0 };
    writer.send(&welcome, &[]).await?;
    let ended = async {
        loop {
            tokio::select! {
                said = reader.next::<FromClient>() => match said? {
                    Some((FromClient::Submit(request), _)) => {
                        supervisor.do_send(Submit { client, request: *request, out: out.clone() });
                    }
                    Some((FromClient::Netcheck { fabrics }, _)) => {
                        supervisor.do_send(MeasureLinks { client, fabrics, out: out.clone() });
                    }
                    Some((FromClient::Status, _)) => {
                        let Ok(view) = supervisor.send(ReadCluster).await else { return Ok(()) };
                        writer.send(&ToClient::Cluster(Box::new(view)), &[]).await?;
                    }
                    None => return Ok(()),
                },
                Some((message, payload)) = events.recv() => writer.send(&message, &payload).await?,
            }
        }
    }
    .await;
    supervisor.do_send(ClientLeft { client });
    ended
}

fn shutting_down() -> Fault {
    Fault::new(FaultKind::ShuttingDown, "the coordinator is going away")
}
