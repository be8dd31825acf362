//! How the links of a run come to be.
//!
//! One [`Endpoint`] per worker. For each run every rank calls all lower ranks and is called by all
//! higher ones. Sockets are served by tasks of the tokio runtime that the endpoint was made on;
//! the compute thread, which is outside of it, meets them in queues.

mod gate;

use self::gate::{Expected, Gate, accept_all, read_greeting};
use super::connection::{ConnectError, Connection};
use super::hangup::Hangup;
use super::stream::StreamError;
use super::tcp::TcpLink;
use super::{Link, LinkError, LinkSpec, Links, OPEN_DEADLINE};
use crate::codec::{self, Limits};
use crate::fault::{Fault, FaultKind};
use crate::handshake::PeerHandshake;
use crate::id::Rank;
use crate::identity::{Fingerprint, Role};
use crate::message::{PeerAnswer, PeerHello};
use crate::plan::{Plan, SiteSpec, SlotTable};
use crate::tls::Security;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// Where a worker's peers reach it. Dropping it closes the port, not the links.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    security: Security,
    gate: Arc<Gate>,
    accepting: AbortHandle,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Endpoint {
    /// Listens on `address` for peers that prove themselves as `security` has it, and serves the
    /// sockets on the runtime this is called on.
    ///
    /// # Errors
    /// If the address is in use or not one of this machine's.
    pub async fn bind(address: SocketAddr, security: Security) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        let gate = Arc::new(Gate::default());
        let accepting = accept_all(socket, security.clone(), Arc::clone(&gate));
        let accepting = tokio::spawn(accepting).abort_handle();
        Ok(Self { address, security, gate, accepting })
    }

    /// Where it listens, with the port that the system chose if none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens the links of `own` to all other ranks of `plan`, and gives the means to close them
    /// at once.
    ///
    /// # Errors
    /// If a peer cannot be reached, refuses, must be refused, or does not call within
    /// [`OPEN_DEADLINE`].
    pub async fn open(
        &self,
        plan: &Plan,
        own: Rank,
        sites: &[SiteSpec],
    ) -> Result<(Links, Hangup), LinkError> {
        let mut handshake = PeerHandshake::new(plan, sites, own);
        let mut expected = self.gate.expect(plan.run);
        let opening = self.shake_hands(&mut handshake, plan, &mut expected);
        let Ok(connections) = timeout(OPEN_DEADLINE, opening).await else {
            let peer = handshake.missing().unwrap_or(own);
            let cause = format!("it did not answer within {} s", OPEN_DEADLINE.as_secs());
            return Err(LinkError::Closed { peer, cause });
        };
        let (table, hangup) = (SlotTable::new(plan, sites, own), Hangup::default());
        let mut links = Links::new();
        for (peer, connection) in connections? {
            let spec = LinkSpec::new(plan.run.epoch, own, peer, &table);
            let link = TcpLink::start(connection, &spec, &hangup);
            links.push((peer, Box::new(link) as Box<dyn Link>));
        }
        links.sort_by_key(|(peer, _)| *peer);
        Ok((links, hangup))
    }

    /// Calls the lower ranks and answers the higher ones until there is one socket for each.
    async fn shake_hands(
        &self,
        handshake: &mut PeerHandshake,
        plan: &Plan,
        expected: &mut Expected,
    ) -> Result<Vec<(Rank, Connection)>, LinkError> {
        let mut calls = JoinSet::new();
        for peer in handshake.to_call() {
            let address = plan.members[peer.index()].address;
            calls.spawn(call(address, self.security.clone(), handshake.hello(peer)));
        }
        let mut connections = Vec::new();
        while handshake.missing().is_some() {
            tokio::select! {
                Some(Ok((peer, called))) = calls.join_next() => {
                    let (connection, answer) = called.map_err(|error| closed(peer, &error))?;
                    recognise(plan, peer, &connection)
                        .map_err(|fault| LinkError::Refused { peer, fault })?;
                    handshake.answered(peer, answer)?;
                    connections.push((peer, connection));
                }
                Some(mut caller) = expected.callers.recv() => {
                    let known = recognise(plan, caller.hello.from, &caller.connection);
                    if let Err(fault) = known {
                        self.gate.refused(caller.connection.peer, &fault.cause);
                        caller.refuse(fault).await;
                        continue;
                    }
                    match handshake.admit(&caller.hello) {
                        Ok(peer) => {
                            let welcomed = caller.answer(&PeerAnswer::Welcome).await;
                            welcomed.map_err(|error| closed(peer, &error))?;
                            connections.push((peer, caller.connection));
                        }
                        Err(fault) => {
                            let peer = caller.hello.from;
                            let hopeless = fault.kind == FaultKind::PlanMismatch;
                            caller.refuse(fault.clone()).await;
                            if hopeless {
                                return Err(LinkError::Refused { peer, fault });
                            }
                        }
                    }
                }
            }
        }
        Ok(connections)
    }
}

fn closed(peer: Rank, cause: &impl ToString) -> LinkError {
    LinkError::Closed { peer, cause: cause.to_string() }
}

/// Whether the process at the other end is the one that the plan has as `rank`.
fn recognise(plan: &Plan, rank: Rank, connection: &Connection) -> Result<(), Fault> {
    let planned = plan.member(rank).and_then(|member| member.identity);
    let shown = connection.identity.as_ref().map(|identity| identity.fingerprint);
    if planned == shown {
        return Ok(());
    }
    let name = |identity: Option<Fingerprint>| {
        identity.map_or_else(|| "no identity".to_owned(), |identity| identity.short())
    };
    let (planned, shown) = (name(planned), name(shown));
    let cause = format!("it is not {rank}, which the plan knows as {planned}, but {shown}");
    Err(Fault::new(FaultKind::Unauthorised, cause))
}

/// Calls the peer at `address`.
async fn call(
    address: SocketAddr,
    security: Security,
    hello: PeerHello,
) -> (Rank, Result<(Connection, PeerAnswer), Unreached>) {
    let unreached = |cause: String| Unreached { address, cause };
    let called = async {
        let connected = security.connect(address, Role::Worker).await;
        let mut connection =
            connected.map_err(|error: ConnectError| unreached(error.to_string()))?;
        let answer = greet(&mut connection, &hello).await;
        Ok((connection, answer.map_err(|error| unreached(error.to_string()))?))
    };
    (hello.to, called.await)
}

async fn greet(connection: &mut Connection, hello: &PeerHello) -> Result<PeerAnswer, StreamError> {
    let frame = codec::encode(hello, &[], &Limits::GREETING)?;
    connection.writing.write_all(&frame).await?;
    connection.writing.flush().await?;
    Ok(codec::decode_body(&read_greeting(&mut connection.reading).await?)?)
}

/// A peer that could not be called.
#[derive(Debug, thiserror::Error)]
#[error("cannot call {address}: {cause}")]
struct Unreached {
    address: SocketAddr,
    cause: String,
}
