//! How the links of a run come to be.
//!
//! One [`Endpoint`] per worker. For each run every rank calls all lower ranks and is called by all
//! higher ones: at its TCP door, or where QUIC is the pair's fabric, over QUIC. They agree on the run,
//! and then the fabric makes a link of the connection, or with its help. Sockets are served by tasks
//! of the tokio runtime that the endpoint was made on; the compute thread, which is outside of it,
//! meets them in queues.

mod call;
mod gate;
mod offer;

pub use self::offer::{Doors, EndpointError, RdmaWish};

use self::call::Unreached;
use self::gate::{Expected, Gate, accept_calls, accept_streams};
use self::offer::Fabrics;
use super::connection::Connection;
use super::hangup::Hangup;
use super::quic::QuicLink;
use super::tcp::TcpLink;
use super::{Link, LinkError, LinkSpec, Links, OPEN_DEADLINE, shm};
use crate::fault::{Fault, FaultKind};
use crate::handshake::PeerHandshake;
use crate::id::Rank;
use crate::identity::Fingerprint;
use crate::message::PeerAnswer;
use crate::plan::{Fabric, Lack, Offer, Plan, SiteSpec, SlotTable};
use crate::tls::Security;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// Where a worker's peers reach it. Dropping it closes its ports, not the links.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    security: Security,
    gate: Arc<Gate>,
    fabrics: Arc<Fabrics>,
    accepting: Vec<AbortHandle>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.iter().for_each(AbortHandle::abort);
    }
}

/// A connection with a peer that agrees on the run.
#[derive(Debug)]
struct Met {
    connection: Connection,
    /// What it is a stream of, if it came over QUIC.
    quic: Option<quinn::Connection>,
}

impl Endpoint {
    /// Opens `doors`, and serves their sockets on the runtime this is called on.
    ///
    /// # Errors
    /// If the address is in use or not one of this machine's, or a fabric that was asked for cannot be
    /// had.
    pub async fn bind(doors: Doors) -> Result<Self, EndpointError> {
        let address = doors.address;
        let unbound = |error| EndpointError::Listen { address, error };
        let socket = TcpListener::bind(address).await.map_err(unbound)?;
        let address = socket.local_addr().map_err(unbound)?;
        let fabrics = Arc::new(Fabrics::open(address, &doors).await?);
        let (security, gate) = (doors.security, Arc::new(Gate::default()));
        let streams = accept_streams(socket, security.clone(), Arc::clone(&gate));
        let mut accepting = vec![tokio::spawn(streams).abort_handle()];
        if let Some(quic) = &fabrics.quic {
            let calls = accept_calls(Arc::clone(quic), security.clone(), Arc::clone(&gate));
            accepting.push(tokio::spawn(calls).abort_handle());
        }
        Ok(Self { address, security, gate, fabrics, accepting })
    }

    /// Where it listens, with the port that the system chose if none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How its connections are protected.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// The fabrics that it offers, nearest first.
    #[must_use]
    pub fn offers(&self) -> &[Offer] {
        &self.fabrics.offers
    }

    /// Those that it does not, and why.
    #[must_use]
    pub fn lacks(&self) -> &[Lack] {
        &self.fabrics.lacks
    }

    /// Opens the links of `own` to all other ranks of `plan`, and gives the means to close them
    /// at once.
    ///
    /// # Errors
    /// If peers cannot be reached or do not call within [`OPEN_DEADLINE`], all of whom are named; if one
    /// refuses or must be refused; or if the pair's fabric cannot carry the link.
    pub async fn open(
        &self,
        plan: &Plan,
        own: Rank,
        sites: &[SiteSpec],
    ) -> Result<(Links, Hangup), LinkError> {
        let mut handshake = PeerHandshake::new(plan, sites, own);
        let mut expected = self.gate.expect(plan.run);
        let hangup = Hangup::default();
        let opening = async {
            let met = self.shake_hands(&mut handshake, (plan, own), &mut expected).await?;
            self.link(met, plan, &SlotTable::new(plan, sites, own), &hangup).await
        };
        let opened = timeout(OPEN_DEADLINE, opening).await;
        let Ok(links) = opened else {
            let peers = handshake.missing().iter().copied().collect();
            let cause = format!("no answer within {} s", OPEN_DEADLINE.as_secs());
            return Err(LinkError::Unopened { peers, cause });
        };
        let mut links = links?;
        links.sort_by_key(|(peer, _)| *peer);
        Ok((links, hangup))
    }

    /// Calls the lower ranks and answers the higher ones until there is a connection with each. Who cannot be
    /// called is told of once that is known of all who are called: one cut may be between many.
    async fn shake_hands(
        &self,
        handshake: &mut PeerHandshake,
        (plan, own): (&Plan, Rank),
        expected: &mut Expected,
    ) -> Result<Vec<(Rank, Met)>, LinkError> {
        let mut calls = JoinSet::new();
        for peer in handshake.to_call() {
            let hello = handshake.hello(peer);
            let way = self.fabrics.way(plan, (own, peer), &self.security)?;
            calls.spawn(async move { (peer, way.call(hello).await) });
        }
        let (mut all, mut unreached) = (Vec::new(), Vec::new());
        while !handshake.missing().is_empty() {
            tokio::select! {
                Some(Ok((peer, called))) = calls.join_next() => {
                    match answered(handshake, (plan, peer), called) {
                        Ok(met) => all.push((peer, met)),
                        Err(error) => unreached.push((peer, lost(error)?)),
                    }
                    if calls.is_empty() && let Some((_, cause)) = unreached.first() {
                        let cause = cause.clone();
                        let mut peers: Vec<Rank> =
                            unreached.into_iter().map(|(peer, _)| peer).collect();
                        peers.sort_unstable();
                        return Err(LinkError::Unopened { peers, cause });
                    }
                }
                Some(mut caller) = expected.callers.recv() => {
                    let from = caller.hello.from;
                    let known = recognise(plan, from, &caller.met.connection)
                        .and_then(|()| came_by(plan.link_fabric(own, from), &caller.met));
                    if let Err(fault) = known {
                        self.gate.refused(caller.met.connection.peer, &fault.cause);
                        caller.refuse(fault).await;
                        continue;
                    }
                    match handshake.admit(&caller.hello) {
                        Ok(peer) => {
                            let welcomed = caller.answer(&PeerAnswer::Welcome).await;
                            welcomed.map_err(|error| closed(peer, &error))?;
                            all.push((peer, caller.met));
                        }
                        Err(fault) => {
                            let hopeless = fault.kind == FaultKind::PlanMismatch;
                            caller.refuse(fault.clone()).await;
                            if hopeless {
                                return Err(LinkError::Refused { peer: from, fault });
                            }
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    /// Makes the links, all at once: some fabrics have more to agree on, and no rank may wait for
    /// another that waits for a third.
    async fn link(
        &self,
        met: Vec<(Rank, Met)>,
        plan: &Plan,
        table: &SlotTable,
        hangup: &Hangup,
    ) -> Result<Links, LinkError> {
        let mut making = JoinSet::new();
        for (peer, met) in met {
            let spec = LinkSpec::new(plan.run.epoch, table.rank, peer, table);
            let (fabric, hangup) = (plan.link_fabric(table.rank, peer), hangup.clone());
            let making_of = make(met, fabric, spec, hangup, Arc::clone(&self.fabrics));
            making.spawn(async move { Ok((peer, making_of.await?)) });
        }
        let mut links = Links::new();
        while let Some(made) = making.join_next().await {
            let gone = |error: tokio::task::JoinError| closed(table.rank, &error);
            links.push(made.map_err(gone)??);
        }
        Ok(links)
    }
}

/// What became of a call.
fn answered(
    handshake: &mut PeerHandshake,
    (plan, peer): (&Plan, Rank),
    called: Result<(Met, PeerAnswer), Unreached>,
) -> Result<Met, LinkError> {
    let (met, answer) = called.map_err(|error| closed(peer, &error))?;
    recognise(plan, peer, &met.connection).map_err(|fault| LinkError::Refused { peer, fault })?;
    handshake.answered(peer, answer)?;
    Ok(met)
}

/// Why a call led nowhere, if it is the way or the peer's absence; any other reason ends the run at once.
fn lost(error: LinkError) -> Result<String, LinkError> {
    match error {
        LinkError::Closed { cause, .. } => Ok(cause),
        LinkError::Refused { fault, .. } if fault.kind == FaultKind::PeerLost => Ok(fault.cause),
        error => Err(error),
    }
}

/// The link that `fabric` makes of a connection.
async fn make(
    met: Met,
    fabric: Option<Fabric>,
    spec: LinkSpec,
    hangup: Hangup,
    fabrics: Arc<Fabrics>,
) -> Result<Box<dyn Link>, LinkError> {
    let Met { connection, quic } = met;
    Ok(match (fabric, quic) {
        (Some(Fabric::Quic), Some(quic)) => Box::new(QuicLink::start(quic, &spec, &hangup)),
        (Some(Fabric::Shm), None) => Box::new(shm::establish(connection, &spec, &hangup).await?),
        (Some(Fabric::Rdma), None) => fabrics.over_rdma(connection, &spec, &hangup).await?,
        (Some(Fabric::Tcp), None) => Box::new(TcpLink::start(connection, &spec, &hangup)),
        (fabric, _) => return Err(not_carried(fabric, &spec)),
    })
}

fn not_carried(fabric: Option<Fabric>, spec: &LinkSpec) -> LinkError {
    let fabric = fabric.map_or("no fabric", Fabric::name);
    closed(spec.peer, &format!("{fabric} does not carry links here"))
}

fn closed(peer: Rank, cause: &impl ToString) -> LinkError {
    LinkError::Closed { peer, cause: cause.to_string() }
}

/// Whether a caller came by the way that its fabric takes.
fn came_by(fabric: Option<Fabric>, met: &Met) -> Result<(), Fault> {
    if met.quic.is_some() == (fabric == Some(Fabric::Quic)) {
        return Ok(());
    }
    let fabric = fabric.map_or("none", Fabric::name);
    let cause = format!("it called by another way than its fabric's, which is {fabric}");
    Err(Fault::new(FaultKind::Protocol, cause))
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
