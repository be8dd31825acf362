//! Why a connection was closed: codes for the peer, and the peer's in words.

use super::tuning::IDLE_TIMEOUT;
use crate::id::Rank;
use crate::transport::LinkError;
use quinn::{Connection, ConnectionError, VarInt};

/// Why this side closes a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Code {
    /// Everything that the peer sent was received.
    Done = 0,
    /// The run was aborted.
    HungUp = 1,
    /// The peer sent what it may not send.
    Broke = 2,
    /// What was posted was not received in all the time that a link lingers.
    Gone = 3,
    /// It called, but opened no stream.
    Stranger = 4,
}

impl Code {
    const ALL: [Self; 5] = [Self::Done, Self::HungUp, Self::Broke, Self::Gone, Self::Stranger];

    fn number(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub(super) fn close(self, connection: &Connection) {
        connection.close(self.number(), &[]); // the code says all: what a peer writes is not shown
    }

    fn words(self) -> &'static str {
        match self {
            Self::Done => "",
            Self::HungUp => "its run was aborted",
            Self::Broke => "it was sent what it does not accept; its log says what",
            Self::Gone => "it was not heard out before it had to leave",
            Self::Stranger => "it heard no hello in time",
        }
    }
}

/// Why there is no connection any more, in words.
pub(super) fn cause(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let known = Code::ALL.into_iter().find(|code| code.number() == close.error_code);
            known.map_or_else(
                || format!("code {}", close.error_code),
                |code| code.words().to_owned(),
            )
        }
        ConnectionError::TimedOut => format!(
            "nothing came from it for {} ms: it died, or the network is down",
            IDLE_TIMEOUT.as_millis()
        ),
        ConnectionError::LocallyClosed => "the run was aborted here".to_owned(),
        error => error.to_string(),
    }
}

/// What the link says once its connection is lost.
pub(super) fn lost(peer: Rank, connection: &Connection) -> LinkError {
    match connection.close_reason() {
        // quinn found it out here: what came was not QUIC as agreed on.
        Some(ConnectionError::TransportError(error)) => {
            LinkError::Protocol { peer, cause: error.to_string() }
        }
        Some(error) => LinkError::Closed { peer, cause: cause(&error) },
        None => LinkError::Closed { peer, cause: String::new() },
    }
}
