//! Calling a peer, by the way that the pair's fabric takes.

use super::Met;
use super::gate::read_greeting;
use crate::codec::{self, Limits};
use crate::identity::{PeerIdentity, Role, SERVER_NAME};
use crate::message::{PeerAnswer, PeerHello};
use crate::tls::Security;
use crate::transport::connection::Connection;
use crate::transport::quic::{QuicEndpoint, peer_identity};
use crate::transport::stream::StreamError;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// How a peer is called.
pub(super) enum Way {
    /// At its TCP door.
    Door(SocketAddr, Security),
    /// Over QUIC.
    Quic(SocketAddr, Arc<QuicEndpoint>, Security),
}

/// A peer that could not be called.
#[derive(Debug, thiserror::Error)]
#[error("cannot call {address}: {cause}")]
pub(super) struct Unreached {
    address: SocketAddr,
    cause: String,
}

impl Way {
    /// Calls the peer, says `hello`, and hears its answer.
    pub(super) async fn call(self, hello: PeerHello) -> Result<(Met, PeerAnswer), Unreached> {
        let (Self::Door(address, _) | Self::Quic(address, _, _)) = self;
        let unreached = |cause: String| Unreached { address, cause };
        let mut met = match self {
            Self::Door(address, security) => {
                let connected = security.connect(address, Role::Worker).await;
                let connection = connected.map_err(|error| unreached(error.to_string()))?;
                Met { connection, quic: None }
            }
            Self::Quic(address, endpoint, security) => {
                let connected = endpoint.connect(address, SERVER_NAME).await;
                let opened = connected.map_err(|error| unreached(error.to_string()))?;
                over_quic(opened, &security).map_err(unreached)?
            }
        };
        let answer = greet(&mut met.connection, &hello).await;
        Ok((met, answer.map_err(|error| unreached(error.to_string()))?))
    }
}

/// What was opened over QUIC, and who is at its other end: nobody in particular, if nothing is
/// protected.
pub(super) fn over_quic(
    (quic, mut connection): (quinn::Connection, Connection),
    security: &Security,
) -> Result<Met, String> {
    let shown = match security {
        Security::Insecure => None,
        Security::Mutual(_) => peer_identity(&quic).and_then(|shown| shown.into_iter().next()),
    };
    let read = shown.map(|certificate| PeerIdentity::read(&certificate)).transpose();
    connection.identity = read.map_err(|error| error.to_string())?;
    Ok(Met { connection, quic: Some(quic) })
}

async fn greet(connection: &mut Connection, hello: &PeerHello) -> Result<PeerAnswer, StreamError> {
    let frame = codec::encode(hello, &[], &Limits::GREETING)?;
    connection.writing.write_all(&frame).await?;
    connection.writing.flush().await?;
    Ok(codec::decode_body(&read_greeting(&mut connection.reading).await?)?)
}
