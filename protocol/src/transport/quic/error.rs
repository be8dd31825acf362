//! Why there is no QUIC connection, and what to do about it.

use super::closing;
use quinn::crypto::rustls::NoInitialCipherSuite;
use quinn::{ConnectionError, TransportErrorCode};
use std::io;
use std::net::SocketAddr;

/// What QUIC adds to the number of a TLS alert to make an error code of it.
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Why there is no QUIC connection.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The socket cannot be had.
    #[error(
        "cannot listen on UDP {address}: {error}; free the port, choose another, or do without QUIC: --fabric tcp"
    )]
    Unbound {
        /// What was to be bound.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The TLS configuration is not for QUIC.
    #[error("TLS is not set up for QUIC, which needs TLS 1.3 with AES-128-GCM: {0}")]
    Unfit(#[from] NoInitialCipherSuite),
    /// Nothing came back.
    #[error(
        "no answer from UDP {address}: nothing listens there, or a firewall blocks UDP on the way; let UDP through, or do without QUIC: --fabric tcp"
    )]
    Silent {
        /// Who was called.
        address: SocketAddr,
    },
    /// One of the two does not accept the other.
    #[error(
        "no trust between this process and {address}: {cause}; both need certificates of the same cluster that have not expired"
    )]
    Refused {
        /// The other side.
        address: SocketAddr,
        /// What TLS says.
        cause: String,
    },
    /// The connection ended before it was a link.
    #[error("lost {address} over QUIC: {cause}")]
    Lost {
        /// The other side.
        address: SocketAddr,
        /// Why.
        cause: String,
    },
}

impl QuicError {
    /// Why a connection with `address` came to nothing.
    pub(super) fn of(address: SocketAddr, error: ConnectionError) -> Self {
        let cause = closing::cause(&error);
        let alert = |code: TransportErrorCode| TLS_ALERTS.contains(&code.into());
        match error {
            ConnectionError::TimedOut => Self::Silent { address },
            ConnectionError::TransportError(error) if alert(error.code) => {
                Self::Refused { address, cause }
            }
            ConnectionError::ConnectionClosed(close) if alert(close.error_code) => {
                Self::Refused { address, cause }
            }
            _ => Self::Lost { address, cause },
        }
    }
}
