//! A byte stream to another process, however it is secured.

use super::HANDSHAKE_DEADLINE;
use crate::identity::{IdentityError, PeerIdentity, Role};
use crate::tls::{self, Security, server_name};
use rustix::net::sockopt;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The receiving half of a [`Connection`].
pub type Reading = Box<dyn AsyncRead + Send + Unpin>;
/// The sending half of a [`Connection`]. What is written to it may stay in its buffer until it is
/// flushed.
pub type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection to another process, over which control messages cross, a link is agreed on, and
/// with TCP its values, too.
pub struct Connection {
    /// Where the other process is.
    pub peer: SocketAddr,
    /// Who it is; None if nothing is protected, or it shows no certificate because it wants one.
    pub identity: Option<PeerIdentity>,
    /// What comes from it.
    pub reading: Reading,
    /// What goes to it.
    pub writing: Writing,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The sockets failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// One of the two refused the other.
    #[error("{0}")]
    Refused(String),
    /// The peer took too long.
    #[error("it did not finish the TLS handshake within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Slow,
}

/// A connection on which nothing was heard for so long is asked whether it is there: seldom beside what is said anyway.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// How often it is asked, if it does not answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often in all, until it counts as broken: a router that starts again takes its time.
const KEEPALIVE_RETRIES: u32 = 3;

impl Connection {
    /// A connection over TCP that nothing protects.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn plain(stream: TcpStream) -> io::Result<Self> {
        prepare(&stream)?;
        let peer = stream.peer_addr()?;
        let (reading, writing) = stream.into_split();
        Ok(Self { peer, identity: None, reading: Box::new(reading), writing: Box::new(writing) })
    }

    fn tls(
        peer: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        identity: Option<PeerIdentity>,
    ) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        let reading = TlsReading(Box::pin(reading));
        Self { peer, identity, reading: Box::new(reading), writing: Box::new(writing) }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}

impl Security {
    /// Calls the process at `address`, which must have this `role`; if nothing is protected, whoever
    /// answers there.
    ///
    /// # Errors
    /// If nobody answers, one of the two refuses the other, or the peer has another role.
    pub async fn connect(
        &self,
        address: impl ToSocketAddrs,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        let stream = TcpStream::connect(address).await?;
        match self {
            Self::Insecure => Ok(Connection::plain(stream)?),
            Self::Mutual(_) => call(stream, self.client_config(), role).await,
        }
    }

    /// Answers a caller, who must be a member of the cluster if it is protected.
    ///
    /// # Errors
    /// If it is none, or does not prove it in time.
    pub async fn accept(&self, stream: TcpStream) -> Result<Connection, ConnectError> {
        match self {
            Self::Insecure => Ok(Connection::plain(stream)?),
            Self::Mutual(_) => answer(stream, self.server_config()).await,
        }
    }

    /// As [`Self::accept`], but the caller may also be one that wants to become a member: then it has no
    /// identity, and may do nothing else.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn accept_enrolling(&self, stream: TcpStream) -> Result<Connection, ConnectError> {
        match self {
            Self::Insecure => Ok(Connection::plain(stream)?),
            Self::Mutual(_) => answer(stream, self.enrolling_config()).await,
        }
    }
}

/// What is said is sent at once, and a machine that vanished without a word is missed: one that only listens, as a
/// command that follows a job does, would else wait for ever.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(sockopt::set_tcp_keepcnt(stream, KEEPALIVE_RETRIES)?)
}

/// The TLS handshake with a process that was called.
pub(super) async fn call(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    role: Role,
) -> Result<Connection, ConnectError> {
    prepare(&stream)?;
    let peer = stream.peer_addr()?;
    let handshake = TlsConnector::from(config).connect(server_name(), stream);
    let stream = timeout(HANDSHAKE_DEADLINE, handshake).await.map_err(|_| ConnectError::Slow)?;
    let stream = stream.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let cause = "it hung up during the TLS handshake: was it started with --insecure?";
            ConnectError::Refused(cause.to_owned())
        }
        _ => broken(error),
    })?;
    let identity = identity(stream.get_ref().1.peer_certificates())?;
    match &identity {
        Some(found) if found.role == role => Ok(Connection::tls(peer, stream, identity)),
        Some(found) => Err(ConnectError::Refused(format!("it is no {role} but {found}"))),
        None => Err(ConnectError::Refused("it shows no certificate".to_owned())),
    }
}

/// The TLS handshake with a caller.
async fn answer(stream: TcpStream, config: Arc<ServerConfig>) -> Result<Connection, ConnectError> {
    prepare(&stream)?;
    let peer = stream.peer_addr()?;
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = timeout(HANDSHAKE_DEADLINE, handshake).await.map_err(|_| ConnectError::Slow)?;
    let stream = stream.map_err(broken)?;
    let identity = identity(stream.get_ref().1.peer_certificates())?;
    Ok(Connection::tls(peer, stream, identity))
}

fn identity(
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<Option<PeerIdentity>, ConnectError> {
    let own = certificates.and_then(<[_]>::first);
    let read = own.map(|certificate| PeerIdentity::read(certificate)).transpose();
    read.map_err(|error: IdentityError| ConnectError::Refused(error.to_string()))
}

/// A handshake that failed.
fn broken(error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(inner) => ConnectError::Refused(tls::reason(inner)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            ConnectError::Refused("it hung up during the TLS handshake".to_owned())
        }
        None => ConnectError::Io(error),
    }
}

/// What comes over TLS. That the peer's end is not announced is no error here, as it is none of TCP's:
/// frames tell whether something is missing. And errors say what they mean.
struct TlsReading(Pin<Box<dyn AsyncRead + Send>>);

impl AsyncRead for TlsReading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.0.as_mut().poll_read(cx, into));
        Poll::Ready(match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(inner) => io::Error::new(error.kind(), tls::reason(inner)),
                None => error,
            }),
            read => read,
        })
    }
}
