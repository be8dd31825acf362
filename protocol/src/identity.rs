//! Who a process is, and how it proves it. No socket, no clock: seconds since 1970 are given.
//!
//! A cluster has one [`Authority`], whose certificate every member knows and trusts alone. Each process
//! has [`Credentials`]: a key that never leaves it, and a certificate of the authority's that says its
//! [`Role`] and name. A process that has none yet shows a [`Token`] and is given them.
//!
//! Hosts need no DNS names: every certificate is made out to [`SERVER_NAME`], and who a process is
//! allowed to be is read from its role and its [`Fingerprint`] once the TLS handshake is done.

mod authority;
mod credentials;
pub(crate) mod hex;
mod strangers;
mod token;
mod tokens;

pub use authority::{Authority, Subject, YEAR};
pub use credentials::{Credentials, Request};
pub use hex::HexError;
pub use strangers::Strangers;
pub use token::{Token, TokenFormatError, TokenId};
pub use tokens::{Terms, TokenError, TokenRecord, Tokens};

pub(crate) use hex::hex_bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::fmt;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// The DNS name that every certificate carries and every caller asks for: addresses change, and
/// fingerprints say more than names.
pub const SERVER_NAME: &str = "tessera";

/// The longest name in a certificate, as X.509 has it for common names.
pub const NAME_LETTERS_MAX: usize = 64;

/// What a process may do in the cluster. Its certificate says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Is called by all others, and issues certificates.
    Coordinator,
    /// Renders, and exchanges values with other workers.
    Worker,
    /// Submits, watches and asks.
    Client,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Coordinator, Self::Worker, Self::Client];

    /// The name on the command line and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
            Self::Client => "client",
        }
    }

    /// How a certificate says it: a URI among its subject's alternative names.
    fn uri(self) -> String {
        format!("tessera:{}", self.name())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

hex_bytes! {
    /// Which key a process or an authority has: blake3 of its public key. It stays the same when
    /// the certificate is renewed.
    pub Fingerprint(32)
}

impl Fingerprint {
    /// Of a public key, as DER.
    fn of(public_key: &[u8]) -> Self {
        Self(*blake3::hash(public_key).as_bytes())
    }

    /// Of the key that a certificate is for.
    ///
    /// # Errors
    /// If `certificate` is no certificate in DER.
    pub fn of_certificate(certificate: &[u8]) -> Result<Self, IdentityError> {
        Ok(Self::of(parse(certificate)?.public_key().raw))
    }

    /// Its first eight digits: enough for people to tell a cluster's members apart.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

/// Who a certificate says a process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerIdentity {
    /// Which key it has.
    pub fingerprint: Fingerprint,
    /// What it may do.
    pub role: Role,
    /// What people call it.
    pub name: String,
    /// When its certificate expires, in seconds since 1970.
    pub expires: u64,
}

impl PeerIdentity {
    /// Reads a certificate that was verified before.
    ///
    /// # Errors
    /// If it is no certificate in DER, or none of a Tessera process.
    pub fn read(certificate: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse(certificate)?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let has = |role: &Role| {
            let uri = role.uri();
            let says =
                |name: &GeneralName<'_>| matches!(name, GeneralName::URI(said) if *said == uri);
            names.as_ref().is_some_and(|names| names.value.general_names.iter().any(says))
        };
        let role = Role::ALL.into_iter().find(has).ok_or(IdentityError::NoRole)?;
        let name = certificate.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned();
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { fingerprint: Fingerprint::of(certificate.public_key().raw), role, name, expires })
    }

    /// As [`Self::read`], of the first certificate in PEM.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_pem(certificates: &str) -> Result<Self, IdentityError> {
        let first = CertificateDer::from_pem_slice(certificates.as_bytes());
        Self::read(&first.map_err(|_| IdentityError::NoCertificate)?)
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {} ({})", self.role, self.name, self.fingerprint.short())
    }
}

fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, certificate)| certificate).map_err(|_| IdentityError::NoCertificate)
}

/// A name as a certificate and a log line can carry it.
pub(crate) fn plain_name(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_graphic() { letter } else { '-' };
    name.chars().take(NAME_LETTERS_MAX).map(plain).collect()
}

/// Bytes that nobody can guess.
///
/// # Errors
/// If the system gives no random numbers.
pub fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| IdentityError::NoRandomness)?;
    Ok(bytes)
}

/// Why there is no such identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The text or bytes are no certificate.
    #[error("no certificate: damaged, or not in PEM")]
    NoCertificate,
    /// The text is no private key.
    #[error("no private key: damaged, or not PKCS #8 in PEM")]
    NoKey,
    /// The certificate is for another key.
    #[error("the certificate is for another key than the one beside it")]
    OtherKey,
    /// It is not a certificate that names a role.
    #[error("the certificate names no role: it is none of a Tessera cluster's")]
    NoRole,
    /// It is not followed by the authority's.
    #[error("the certificate is not followed by that of its authority")]
    NoAuthority,
    /// The request for a certificate is none.
    #[error("no request for a certificate: {0}")]
    Request(String),
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(String),
    /// TLS does not take the key and certificate.
    #[error("key and certificate are of no use for TLS: {0}")]
    Tls(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}
