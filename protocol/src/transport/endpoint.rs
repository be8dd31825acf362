//! How the links of a run come to be.
//!
//! One [`Endpoint`] per worker. For each run every rank calls all lower ranks and is called by all
//! higher ones. Sockets are served by tasks of the tokio runtime that the endpoint was made on;
//! the compute thread, which is outside of it, meets them in queues.

mod gate;

use self::gate::{Expected, Gate, accept_all, read_greeting};
use super::connection::Connection;
use super::hangup::Hangup;
use super::stream::StreamError;
use super::tcp::TcpLink;
use super::{Link, LinkError, LinkSpec, Links, OPEN_DEADLINE};
use crate::codec::{self, Limits};
use crate::fault::FaultKind;
use crate::handshake::PeerHandshake;
use crate::id::Rank;
use crate::message::{PeerAnswer, PeerHello};
use crate::plan::{Plan, SiteSpec, SlotTable};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// Where a worker's peers reach it. Dropping it closes the port, not the links.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    gate: Arc<Gate>,
    accepting: AbortHandle,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Endpoint {
    /// Listens on `address`, and serves the sockets on the runtime this is called on.
    ///
    /// # Errors
    /// If the address is in use or not one of this machine's.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        let gate = Arc::new(Gate::default());
        let accepting = tokio::spawn(accept_all(socket, Arc::clone(&gate))).abort_handle();
        Ok(Self { address, gate, accepting })
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
        let opening = shake_hands(&mut handshake, plan, &mut expected);
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
}

fn closed(peer: Rank, cause: &impl ToString) -> LinkError {
    LinkError::Closed { peer, cause: cause.to_string() }
}

/// Calls the lower ranks and answers the higher ones until there is one socket for each.
async fn shake_hands(
    handshake: &mut PeerHandshake,
    plan: &Plan,
    expected: &mut Expected,
) -> Result<Vec<(Rank, Connection)>, LinkError> {
    let mut calls = JoinSet::new();
    for peer in handshake.to_call() {
        calls.spawn(call(plan.members[peer.index()].address, handshake.hello(peer)));
    }
    let mut connections = Vec::new();
    while handshake.missing().is_some() {
        tokio::select! {
            Some(Ok((peer, called))) = calls.join_next() => {
                let (connection, answer) = called.map_err(|error| closed(peer, &error))?;
                handshake.answered(peer, answer)?;
                connections.push((peer, connection));
            }
            Some(mut caller) = expected.callers.recv() => match handshake.admit(&caller.hello) {
                Ok(peer) => {
                    caller.answer(&PeerAnswer::Welcome).await.map_err(|e| closed(peer, &e))?;
                    connections.push((peer, caller.connection));
                }
                Err(fault) => {
                    let (peer, hopeless) = (caller.hello.from, fault.kind == FaultKind::PlanMismatch);
                    caller.refuse(fault.clone()).await;
                    if hopeless {
                        return Err(LinkError::Refused { peer, fault });
                    }
                }
            },
        }
    }
    Ok(connections)
}

/// Calls the peer at `address`.
async fn call(
    address: SocketAddr,
    hello: PeerHello,
) -> (Rank, Result<(Connection, PeerAnswer), Unreached>) {
    let called = async {
        let mut connection = Connection::plain(TcpStream::connect(address).await?)?;
        let frame = codec::encode(&hello, &[], &Limits::GREETING)?;
        connection.writing.write_all(&frame).await?;
        let answer = codec::decode_body(&read_greeting(&mut connection.reading).await?)?;
        Ok((connection, answer))
    };
    (hello.to, called.await.map_err(|error| Unreached { address, error }))
}

/// A peer that could not be called.
#[derive(Debug, thiserror::Error)]
#[error("cannot call {address}: {error}")]
struct Unreached {
    address: SocketAddr,
    error: StreamError,
}
