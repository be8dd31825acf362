//! TLS of a process that has a token and no certificate yet: of the cluster's authority it knows the
//! fingerprint alone.

use super::{only_1_3, provider, roots, server_verifier};
use crate::identity::Fingerprint;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// For calling the coordinator of the cluster whose authority has this fingerprint, without a
/// certificate of one's own: to be given one.
#[must_use]
pub fn enrolment_config(authority: Fingerprint) -> Arc<ClientConfig> {
    let algorithms = provider().signature_verification_algorithms;
    let mut config = only_1_3(ClientConfig::builder_with_provider(provider()))
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { authority, algorithms }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Trusts the one authority with this fingerprint, whose certificate the server sends along; the rest is
/// the usual verifier's.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = |other: &&CertificateDer<'_>| {
            Fingerprint::of_certificate(other).is_ok_and(|found| found == self.authority)
        };
        let authority = others.iter().find(pinned).ok_or(CertificateError::UnknownIssuer)?;
        let trusted = roots(Some(&authority.clone().into_owned())).and_then(server_verifier);
        let trusted = trusted.map_err(|error| Error::General(error.to_string()))?;
        trusted.verify_server_cert(own, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
