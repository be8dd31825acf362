//! TLS that protects nothing, for fabrics that cannot do without TLS: on loopback alone.

use super::{only_1_3, provider, resume_nothing};
use crate::identity::SERVER_NAME;
use rcgen::CertifiedKey;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use std::sync::{Arc, OnceLock};

/// Answers whoever calls, with a self-made certificate that proves nothing. For loopback alone.
#[must_use]
pub fn insecure_server_config() -> Arc<ServerConfig> {
    static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])
                .expect("the system gives random numbers");
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let mut config = only_1_3(ServerConfig::builder_with_provider(provider()))
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.into())
            .expect("a certificate goes with the key it was made for");
        resume_nothing(&mut config);
        Arc::new(config)
    });
    Arc::clone(config)
}

/// Calls whoever answers, and believes every certificate. For loopback alone.
#[must_use]
pub fn insecure_client_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let verifier = AcceptsAnyone(provider().signature_verification_algorithms);
        let mut config = only_1_3(ClientConfig::builder_with_provider(provider()))
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    });
    Arc::clone(config)
}

/// Believes every certificate; only that the peer has its key is checked.
#[derive(Debug)]
struct AcceptsAnyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptsAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
