//! Why a handshake failed, in words that say what to do.

use rustls::{AlertDescription, CertificateError, Error};

/// Why a peer was refused, or refused. One of few texts: nothing in it is the peer's to choose.
#[must_use]
pub fn reason(error: &Error) -> String {
    match error {
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => {
            "it does not speak TLS: it sends plain text or garbage, or was started with --insecure"
                .to_owned()
        }
        Error::PeerIncompatible(_) => "it does not speak TLS 1.3".to_owned(),
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        Error::InvalidCertificate(wrong) => certificate(wrong),
        Error::AlertReceived(alert) => said(*alert),
        other => format!("the TLS handshake failed: {other}"),
    }
}

fn certificate(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not of this cluster's authority"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired, or a clock is wrong"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: a clock is wrong"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is for another role"
        }
        _ => "its certificate is none of a Tessera cluster's",
    }
    .to_owned()
}

/// What the peer said about this process.
fn said(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA | AlertDescription::BadCertificate => {
            "it says that this process's certificate is not of its cluster's authority".to_owned()
        }
        AlertDescription::CertificateExpired => {
            "it says that this process's certificate has expired".to_owned()
        }
        AlertDescription::CertificateRequired => {
            "it wants a certificate, and this process has none".to_owned()
        }
        AlertDescription::UnsupportedCertificate => {
            "it says that this process's certificate is for another role".to_owned()
        }
        other => format!("it ended the TLS handshake with {other:?}"),
    }
}
