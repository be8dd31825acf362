//! How QUIC connections come to be.

use super::closing::Code;
use super::error::QuicError;
use super::tuning::{self, Congestion, MTU_BYTES_MAX};
use crate::transport::connection::Connection;
use crate::transport::{OPEN_DEADLINE, STRANGERS_MAX};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, EndpointConfig, ReadError, TokioRuntime};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// What both ends of a QUIC connection must say they speak.
pub const ALPN: &[u8] = b"tessera-link/5";

/// A connection, and its first stream in both directions, which is for the hello.
type Opened = (quinn::Connection, Connection);

/// Where a worker's peers reach it over QUIC, and from where it calls them. Dropping it takes no
/// more callers; the connections stay, and keep the port until they have ended.
#[derive(Debug)]
pub struct QuicEndpoint {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    client: quinn::ClientConfig,
    callers: Mutex<Receiver<Opened>>,
    accepting: AbortHandle,
}

impl Drop for QuicEndpoint {
    fn drop(&mut self) {
        self.accepting.abort();
        self.endpoint.set_server_config(None); // whoever calls now is refused at once
    }
}

impl QuicEndpoint {
    /// Listens on `address` over UDP, and serves the socket on the runtime this is called on. What
    /// certificates are shown and accepted is up to `server` and `client`, which must be of TLS
    /// 1.3; which protocol is spoken is not.
    ///
    /// # Errors
    /// If the port is in use, the address is not one of this machine's, or TLS is not as QUIC
    /// needs it.
    pub async fn bind(
        address: SocketAddr,
        server: &rustls::ServerConfig,
        client: &rustls::ClientConfig,
        congestion: Congestion,
    ) -> Result<Self, QuicError> {
        let (mut server, mut client) = (server.clone(), client.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        client.alpn_protocols = vec![ALPN.to_vec()];
        // A session that is resumed shows no certificate, so that one revoked since would pass.
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        let transport = Arc::new(tuning::transport(congestion));
        let mut server =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        server.transport_config(Arc::clone(&transport)).max_incoming(STRANGERS_MAX);
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
        client.transport_config(transport);
        let endpoint =
            listen(address, server).map_err(|error| QuicError::Unbound { address, error })?;
        let address =
            endpoint.local_addr().map_err(|error| QuicError::Unbound { address, error })?;
        let (met, callers) = channel(STRANGERS_MAX);
        let accepting = tokio::spawn(accept_all(endpoint.clone(), met)).abort_handle();
        let callers = Mutex::new(callers);
        Ok(Self { endpoint, address, client, callers, accepting })
    }

    /// Where it listens, with the port that the system chose if none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls the endpoint at `address`, whose certificate must be one for `name`, and opens the
    /// stream for the hello, which the other side sees once something is written to it.
    ///
    /// The other side checks this one's certificate after that. If it refuses, the first read of
    /// the stream says so.
    ///
    /// # Errors
    /// If nobody answers within [`OPEN_DEADLINE`], or one of the two refuses.
    pub async fn connect(&self, address: SocketAddr, name: &str) -> Result<Opened, QuicError> {
        let failed = |error| QuicError::of(address, error);
        let connecting = self
            .endpoint
            .connect_with(self.client.clone(), address, name)
            .map_err(|error| QuicError::Lost { address, cause: error.to_string() })?;
        let connected = timeout(OPEN_DEADLINE, connecting).await;
        let connection = connected.unwrap_or(Err(ConnectionError::TimedOut)).map_err(failed)?;
        let (writing, reading) = connection.open_bi().await.map_err(failed)?;
        Ok(opened(connection, writing, reading))
    }

    /// The next caller that has opened the stream for its hello. Callers that do not within
    /// [`OPEN_DEADLINE`] are hung up on, as are those over [`STRANGERS_MAX`] at once.
    pub async fn accept(&self) -> Option<(quinn::Connection, Connection)> {
        self.callers.lock().await.recv().await
    }

    /// Ready when no connection is left: before a process exits, so that what its links posted
    /// and how they ended still reaches the peers.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// The certificates that the other side showed, its own first, whose key it holds. None: it was
/// not asked for any.
#[must_use]
pub fn peer_identity(connection: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    connection.peer_identity()?.downcast().ok().map(|certificates| *certificates)
}

fn listen(address: SocketAddr, server: quinn::ServerConfig) -> io::Result<quinn::Endpoint> {
    let socket = std::net::UdpSocket::bind(address)?;
    tuning::enlarge(&socket)?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MTU_BYTES_MAX).map_err(io::Error::other)?;
    quinn::Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

fn opened(
    connection: quinn::Connection,
    writing: quinn::SendStream,
    stream: quinn::RecvStream,
) -> Opened {
    let peer = connection.remote_address();
    let reading = Box::new(Reading { stream, peer });
    (connection, Connection { peer, identity: None, reading, writing: Box::new(writing) })
}

async fn accept_all(endpoint: quinn::Endpoint, met: Sender<Opened>) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address();
        let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
            tracing::warn!(%address, "too many callers at once, hung up on one");
            incoming.refuse();
            continue;
        };
        let met = met.clone();
        tokio::spawn(async move {
            match greet(incoming).await {
                Ok(caller) => {
                    met.send(caller).await.ok(); // or the endpoint is closed, and so is this
                }
                Err(error) => tracing::warn!(%address, %error, "sent a caller away"),
            }
            drop(permit);
        });
    }
}

/// Waits for the caller's first stream.
async fn greet(incoming: quinn::Incoming) -> Result<Opened, QuicError> {
    let address = incoming.remote_address();
    let failed = |error| QuicError::of(address, error);
    let shaken = timeout(OPEN_DEADLINE, incoming.accept().map_err(failed)?).await;
    let connection = shaken.unwrap_or(Err(ConnectionError::TimedOut)).map_err(failed)?;
    let Ok(stream) = timeout(OPEN_DEADLINE, connection.accept_bi()).await else {
        Code::Stranger.close(&connection);
        let cause = format!("it said nothing for {} s", OPEN_DEADLINE.as_secs());
        return Err(QuicError::Lost { address, cause });
    };
    let (writing, reading) = stream.map_err(failed)?;
    Ok(opened(connection, writing, reading))
}

/// The receiving half of the hello's stream, whose errors say what to do.
struct Reading {
    stream: quinn::RecvStream,
    peer: SocketAddr,
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.poll_read_buf(cx, into).map_err(|error| match error {
            ReadError::ConnectionLost(lost) => io::Error::other(QuicError::of(self.peer, lost)),
            error => error.into(),
        })
    }
}
