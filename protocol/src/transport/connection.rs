//! A byte stream to another process, however it is secured.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The receiving half of a [`Connection`].
pub type Reading = Box<dyn AsyncRead + Send + Unpin>;
/// The sending half of a [`Connection`].
pub type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection to another process, over which control messages cross, a link is agreed on, and
/// with TCP its values, too.
pub struct Connection {
    /// Where the other process is.
    pub peer: SocketAddr,
    /// What comes from it.
    pub reading: Reading,
    /// What goes to it.
    pub writing: Writing,
}

impl Connection {
    /// A connection over TCP that nothing protects.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn plain(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        let (reading, writing) = stream.into_split();
        Ok(Self { peer, reading: Box::new(reading), writing: Box::new(writing) })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}
