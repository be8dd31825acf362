//! Who calls: hears each caller out and brings it together with the run it calls for.

use super::Met;
use super::call::over_quic;
use crate::codec::{self, LENGTHS_BYTES, Limits};
use crate::fault::{Fault, FaultKind};
use crate::handshake::read_peer_hello;
use crate::id::RunId;
use crate::identity::Strangers;
use crate::message::{PeerAnswer, PeerHello};
use crate::tls::Security;
use crate::transport::connection::{Reading, Writing};
use crate::transport::quic::QuicEndpoint;
use crate::transport::stream::StreamError;
use crate::transport::{OPEN_DEADLINE, PARKED_FOR, PARKED_MAX, STRANGERS_MAX};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

/// How long accepting rests after the system refused a socket: too many open files pass.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Reads the first message of a connection, and not a byte of what follows it.
pub(super) async fn read_greeting(stream: &mut Reading) -> Result<Vec<u8>, StreamError> {
    let mut lengths = [0; LENGTHS_BYTES];
    stream.read_exact(&mut lengths).await?;
    let (body, _) = codec::read_lengths(lengths, &Limits::GREETING)?;
    let mut bytes = vec![0; body];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// A peer that has said hello.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) hello: PeerHello,
    pub(super) met: Met,
}

impl Caller {
    pub(super) async fn answer(&mut self, answer: &PeerAnswer) -> Result<(), StreamError> {
        answer_on(&mut self.met.connection.writing, answer).await
    }

    pub(super) async fn refuse(mut self, fault: Fault) {
        tracing::debug!(%fault, "refused a link");
        self.answer(&PeerAnswer::Refused(fault)).await.ok(); // gone already: as good
    }
}

async fn answer_on(stream: &mut Writing, answer: &PeerAnswer) -> Result<(), StreamError> {
    let frame = codec::encode(answer, &[], &Limits::GREETING)?;
    stream.write_all(&frame).await?;
    Ok(stream.flush().await?)
}

/// Brings callers and the runs they call for together, whichever comes first.
#[derive(Debug)]
pub(super) struct Gate {
    waiting: Mutex<Waiting>,
    strangers: Mutex<Strangers>,
    opened: Instant,
}

impl Default for Gate {
    fn default() -> Self {
        let (waiting, strangers) = (Mutex::default(), Mutex::default());
        Self { waiting, strangers, opened: Instant::now() }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    runs: Vec<(RunId, UnboundedSender<Caller>)>,
    parked: Vec<(u64, Caller)>,
    parked_ever: u64,
}

impl Gate {
    /// Logs that a caller was refused, once for each address and reason.
    pub(super) fn refused(&self, caller: SocketAddr, reason: &str) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let line = strangers.refuse(caller.ip(), reason, self.opened.elapsed());
        if let Some(line) = line {
            tracing::warn!("links: {line}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends callers for `run` to who asks, those first who called too early.
    pub(super) fn expect(self: &Arc<Self>, run: RunId) -> Expected {
        let (found, callers) = unbounded_channel();
        let mut waiting = self.lock();
        for (_, caller) in waiting.parked.extract_if(.., |(_, caller)| caller.hello.run == run) {
            found.send(caller).ok(); // the receiver is right here
        }
        waiting.runs.push((run, found));
        Expected { run, callers, gate: Arc::clone(self) }
    }

    /// Hands the caller to its run, or parks it and gives its number.
    fn meet(&self, caller: Caller) -> Result<Option<u64>, Box<Caller>> {
        let mut waiting = self.lock();
        let run = waiting.runs.iter().find(|(run, _)| *run == caller.hello.run);
        if let Some((_, found)) = run {
            return found.send(caller).map(|()| None).map_err(|unsent| Box::new(unsent.0));
        }
        if waiting.parked.len() >= PARKED_MAX {
            return Err(Box::new(caller));
        }
        waiting.parked_ever += 1;
        let number = waiting.parked_ever;
        waiting.parked.push((number, caller));
        Ok(Some(number))
    }

    /// The parked caller of that number, if no run came for it.
    fn give_up(&self, number: u64) -> Option<Caller> {
        let mut waiting = self.lock();
        let at = waiting.parked.iter().position(|(parked, _)| *parked == number)?;
        Some(waiting.parked.swap_remove(at).1)
    }
}

/// A run that waits for callers, until it is dropped.
#[derive(Debug)]
pub(super) struct Expected {
    run: RunId,
    pub(super) callers: UnboundedReceiver<Caller>,
    gate: Arc<Gate>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.gate.lock().runs.retain(|(run, _)| *run != self.run);
    }
}

pub(super) async fn accept_streams(socket: TcpListener, security: Security, gate: Arc<Gate>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        match socket.accept().await {
            Ok((stream, address)) => {
                let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
                    gate.refused(address, "too many callers at once have not said who they are");
                    continue;
                };
                let (gate, security) = (Arc::clone(&gate), security.clone());
                tokio::spawn(async move {
                    let greeted = match security.accept(stream).await {
                        Ok(connection) => greet(Met { connection, quic: None }, &gate).await,
                        Err(error) => {
                            gate.refused(address, &error.to_string());
                            None
                        }
                    };
                    drop(permit);
                    if let Some(caller) = greeted {
                        introduce(caller, &gate).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a link");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// The same over QUIC, whose endpoint limits callers that have not opened a stream.
pub(super) async fn accept_calls(quic: Arc<QuicEndpoint>, security: Security, gate: Arc<Gate>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    while let Some(opened) = quic.accept().await {
        let address = opened.1.peer;
        let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
            gate.refused(address, "too many callers at once have not said who they are");
            continue;
        };
        let (gate, security) = (Arc::clone(&gate), security.clone());
        tokio::spawn(async move {
            let greeted = match over_quic(opened, &security) {
                Ok(met) => greet(met, &gate).await,
                Err(cause) => {
                    gate.refused(address, &cause);
                    None
                }
            };
            drop(permit);
            if let Some(caller) = greeted {
                introduce(caller, &gate).await;
            }
        });
    }
}

/// Hears who calls; None if nobody who may.
async fn greet(mut met: Met, gate: &Gate) -> Option<Caller> {
    let connection = &mut met.connection;
    let said = timeout(OPEN_DEADLINE, read_greeting(&mut connection.reading)).await;
    let Ok(Ok(body)) = said else {
        gate.refused(connection.peer, "it said nothing that a Tessera worker says");
        return None;
    };
    match read_peer_hello(&body) {
        Ok(hello) => Some(Caller { hello, met }),
        Err(fault) => {
            gate.refused(connection.peer, &fault.cause);
            answer_on(&mut connection.writing, &PeerAnswer::Refused(fault)).await.ok(); // gone: as good
            None
        }
    }
}

async fn introduce(caller: Caller, gate: &Gate) {
    let run = caller.hello.run;
    let (caller, cause) = match gate.meet(caller) {
        Ok(None) => return,
        Ok(Some(number)) => {
            tokio::time::sleep(PARKED_FOR).await;
            let Some(caller) = gate.give_up(number) else { return };
            (caller, format!("{run} was not started here within {} s", PARKED_FOR.as_secs()))
        }
        Err(caller) => (*caller, format!("{run} is not rendered here, and too many others wait")),
    };
    caller.refuse(Fault::new(FaultKind::PeerLost, cause)).await;
}
