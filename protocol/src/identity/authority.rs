//! The cluster's certificate authority.

use super::credentials::Credentials;
use super::{Fingerprint, IdentityError, Request, Role, SERVER_NAME, plain_name};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::time::Duration;

/// How long a member's certificate is valid, in seconds: a year, after which a token is needed again.
pub const YEAR: u64 = 365 * 86_400;

/// How long the authority's own certificate is valid: longer than any cluster is left as it is.
const AUTHORITY_SECONDS: u64 = 20 * YEAR;

/// Certificates are valid from this long before they are made, in seconds: the clocks of a cluster's
/// machines need not agree to the minute.
const SKEW: u64 = 3600;

/// Whom a certificate is for, and from when to when, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// What it may do.
    pub role: Role,
    /// What people call it; anything but printable ASCII becomes a dash.
    pub name: String,
    /// From when.
    pub from: u64,
    /// Until when.
    pub until: u64,
}

impl Subject {
    /// Of a process that is made a member `now`, for a [`YEAR`].
    #[must_use]
    pub fn new(role: Role, name: &str, now: u64) -> Self {
        Self { role, name: name.to_owned(), from: now.saturating_sub(SKEW), until: now + YEAR }
    }

    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()])?;
        params.subject_alt_names.push(SanType::URI(self.role.uri().try_into()?));
        params.distinguished_name = common_name(&plain_name(&self.name));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.from);
        params.not_after = epoch + Duration::from_secs(self.until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let (server, client) =
            (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        params.extended_key_usages = match self.role {
            Role::Coordinator => vec![server],
            Role::Worker => vec![server, client],
            Role::Client => vec![client],
        };
        Ok(params)
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// The cluster's certificate authority: who has its key decides who is a member.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    fingerprint: Fingerprint,
}

impl Authority {
    /// A new one, with a key of its own.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(now: u64) -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(issue)?;
        let mut params = CertificateParams::default();
        // Two clusters' authorities have two names: a certificate of the other one is then told from a
        // damaged one of this.
        let own = Fingerprint::of(key.public_key_raw());
        params.distinguished_name = common_name(&format!("Tessera cluster {}", own.short()));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(now.saturating_sub(SKEW));
        params.not_after = epoch + Duration::from_secs(now + AUTHORITY_SECONDS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(issue)?.pem();
        Self::from_pem(&certificate, &key.serialize_pem())
    }

    /// The one with this certificate and key.
    ///
    /// # Errors
    /// If one of them is damaged, or they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(key).map_err(|_| IdentityError::NoKey)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| IdentityError::NoCertificate)?;
        if super::parse(&der)?.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(IdentityError::OtherKey);
        }
        let fingerprint = Fingerprint::of_certificate(&der)?;
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|_| IdentityError::NoCertificate)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), fingerprint })
    }

    /// Its certificate, which every member has, as PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, as PEM: a secret.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Which key it has: what a token names the cluster by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// A certificate for the key of `request`, followed by the authority's own, as PEM. Of what the
    /// request says of its subject nothing is taken over: the `subject` decides.
    ///
    /// # Errors
    /// If it is no request, or not signed with its own key.
    pub fn issue(&self, request: &str, subject: &Subject) -> Result<String, IdentityError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        let params = subject.params().map_err(issue)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(issue)?;
        Ok(certificate.pem() + &self.certificate)
    }

    /// A key and its certificate, for a process on this machine.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn credentials(&self, subject: &Subject) -> Result<Credentials, IdentityError> {
        let request = Request::new()?;
        let certificates = self.issue(request.text(), subject)?;
        request.answered(&certificates)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.fingerprint.short())
    }
}

pub(super) fn issue(error: rcgen::Error) -> IdentityError {
    IdentityError::Issue(error.to_string())
}
