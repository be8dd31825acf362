//! TLS between members of a cluster, as configurations: the sockets are in `transport`.
//!
//! TLS 1.3 alone, certificates on both sides, the cluster's authority the only root. Sessions are not
//! resumed: each handshake looks at the certificates again.

mod open;
mod pinned;
mod reason;

pub use open::{insecure_client_config, insecure_server_config};
pub use pinned::enrolment_config;
pub use reason::reason;

use crate::identity::{Credentials, IdentityError, PeerIdentity, SERVER_NAME};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, ConfigSide, RootCertStore, ServerConfig, WantsVerifier};
use std::fmt;
use std::sync::Arc;

/// How a process's connections are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// They are not: for one machine's loopback alone.
    Insecure,
    /// By TLS with certificates on both sides.
    Mutual(Arc<Mutual>),
}

/// Credentials, and what TLS makes of them.
pub struct Mutual {
    credentials: Credentials,
    server: Arc<ServerConfig>,
    enrolling: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Mutual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mutual({})", self.credentials.identity())
    }
}

impl Security {
    /// By TLS, as the process that `credentials` say.
    ///
    /// # Errors
    /// If they are of no use for TLS.
    pub fn mutual(credentials: Credentials) -> Result<Self, IdentityError> {
        let roots = roots(credentials.chain().last())?;
        let server = server_config(&credentials, &roots, false)?;
        let enrolling = server_config(&credentials, &roots, true)?;
        let client = client_config(&credentials, roots)?;
        Ok(Self::Mutual(Arc::new(Mutual { credentials, server, enrolling, client })))
    }

    /// Who this process is; None if nothing is protected.
    #[must_use]
    pub fn identity(&self) -> Option<&PeerIdentity> {
        self.credentials().map(Credentials::identity)
    }

    /// What this process proves itself by; None if nothing is protected.
    #[must_use]
    pub fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Insecure => None,
            Self::Mutual(mutual) => Some(&mutual.credentials),
        }
    }

    /// For answering members of the cluster. If nothing is protected: a self-made certificate, and
    /// none asked for.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        match self {
            Self::Insecure => insecure_server_config(),
            Self::Mutual(mutual) => Arc::clone(&mutual.server),
        }
    }

    /// For calling members of the cluster. If nothing is protected: whatever certificate is accepted.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        match self {
            Self::Insecure => insecure_client_config(),
            Self::Mutual(mutual) => Arc::clone(&mutual.client),
        }
    }

    /// For answering members and those who want to become one and show no certificate: what these may do
    /// is for the caller to limit.
    #[must_use]
    pub fn enrolling_config(&self) -> Arc<ServerConfig> {
        match self {
            Self::Insecure => insecure_server_config(),
            Self::Mutual(mutual) => Arc::clone(&mutual.enrolling),
        }
    }
}

/// The name that callers ask for.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("a constant that is a DNS name")
}

fn unfit(error: &dyn fmt::Display) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS 1.3 alone.
fn only_1_3<S: ConfigSide>(
    builder: ConfigBuilder<S, rustls::WantsVersions>,
) -> ConfigBuilder<S, WantsVerifier> {
    let versions = builder.with_protocol_versions(&[&rustls::version::TLS13]);
    versions.expect("ring has suites of TLS 1.3")
}

fn roots(authority: Option<&CertificateDer<'static>>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    let authority = authority.ok_or(IdentityError::NoAuthority)?.clone();
    roots.add(authority).map_err(|error| unfit(&error))?;
    Ok(Arc::new(roots))
}

fn server_config(
    credentials: &Credentials,
    roots: &Arc<RootCertStore>,
    enrolling: bool,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
    let verifier = if enrolling { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|error| unfit(&error))?;
    let mut config = only_1_3(ServerConfig::builder_with_provider(provider()))
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain().to_vec(), credentials.private_key()?)
        .map_err(|error| unfit(&error))?;
    resume_nothing(&mut config);
    Ok(Arc::new(config))
}

fn resume_nothing(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

fn client_config(
    credentials: &Credentials,
    roots: Arc<RootCertStore>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let verifier = server_verifier(roots)?;
    let mut config = only_1_3(ClientConfig::builder_with_provider(provider()))
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(credentials.chain().to_vec(), credentials.private_key()?)
        .map_err(|error| unfit(&error))?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_verifier(roots: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, IdentityError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider());
    verifier.build().map_err(|error| unfit(&error))
}
