//! A process's own key and certificate.

use super::authority::issue;
use super::{Fingerprint, IdentityError, PeerIdentity};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;

/// A new key, and the request for a certificate for it. The key does not leave the process.
pub struct Request {
    key: KeyPair,
    text: String,
}

impl Request {
    /// With a new key.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new() -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new(); // the authority decides who it is for
        let request = params.serialize_request(&key).map_err(issue)?;
        let text = request.pem().map_err(issue)?;
        Ok(Self { key, text })
    }

    /// What the authority is sent, as PEM.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Key and certificate, now that the authority answered.
    ///
    /// # Errors
    /// If the answer is not a certificate for this key and the authority's.
    pub fn answered(self, certificates: &str) -> Result<Credentials, IdentityError> {
        Credentials::from_pem(certificates, &self.key.serialize_pem())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}

/// A process's own key, its certificate and that of its authority.
#[derive(Clone)]
pub struct Credentials {
    certificates: String,
    key: String,
    chain: Vec<CertificateDer<'static>>,
    identity: PeerIdentity,
    authority: Fingerprint,
}

impl Credentials {
    /// Those in PEM: the own certificate followed by the authority's, and the key.
    ///
    /// # Errors
    /// If something is missing or damaged, or does not belong together.
    pub fn from_pem(certificates: &str, key: &str) -> Result<Self, IdentityError> {
        let pair = KeyPair::from_pem(key).map_err(|_| IdentityError::NoKey)?;
        let chain = CertificateDer::pem_slice_iter(certificates.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| IdentityError::NoCertificate)?;
        let (own, authority) = match &*chain {
            [own, authority] => (own, authority),
            [_] => return Err(IdentityError::NoAuthority),
            _ => return Err(IdentityError::NoCertificate),
        };
        if super::parse(own)?.public_key().subject_public_key.data != pair.public_key_raw() {
            return Err(IdentityError::OtherKey);
        }
        let identity = PeerIdentity::read(own)?;
        let authority = Fingerprint::of_certificate(authority)?;
        let (certificates, key) = (certificates.to_owned(), key.to_owned());
        Ok(Self { certificates, key, chain, identity, authority })
    }

    /// The own certificate followed by the authority's, as PEM.
    #[must_use]
    pub fn certificates(&self) -> &str {
        &self.certificates
    }

    /// The key, as PEM: a secret.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Who they say this process is.
    #[must_use]
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// Which authority they are of.
    #[must_use]
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    /// The own certificate and the authority's.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| IdentityError::NoKey)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.identity)
    }
}
