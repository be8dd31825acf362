//! What proves who someone is: certificates, keys, requests for certificates, tokens, and the records of
//! tokens.

use protocol::identity::{
    Authority, Credentials, Fingerprint, IdentityError, PeerIdentity, Role, Subject, Token, Tokens,
};
use protocol::tls::Security;
use std::sync::LazyLock;

/// Some time in 2027.
const NOW: u64 = 1_800_000_000;

static AUTHORITY: LazyLock<Authority> =
    LazyLock::new(|| Authority::new(NOW).expect("the system gives random numbers"));

/// Bytes as a certificate; text as everything that there is as text.
pub fn identity(data: &[u8]) {
    if let Ok(identity) = PeerIdentity::read(data) {
        assert_eq!(Fingerprint::of_certificate(data), Ok(identity.fingerprint));
        assert_eq!(identity.fingerprint.to_string().parse(), Ok(identity.fingerprint));
        assert!(identity.to_string().contains(&identity.fingerprint.short()));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    token(text);
    records(text);
    credentials(text);
    authority(text);
    request(text);
}

/// A token is written in one way, and nothing else is one.
fn token(text: &str) {
    let Ok(token) = text.parse::<Token>() else { return };
    let written = token.to_string();
    assert_eq!(written, text.trim().to_ascii_lowercase());
    assert_eq!(written.parse(), Ok(token.clone()));
    assert_eq!(format!("{token:?}"), format!("Token({})", token.id), "its secret shows");
    let nobodys = Tokens::default().redeem(&token, token.authority, 0);
    assert!(nobodys.is_err(), "a token that nobody made is worth something");
}

/// The records of a cluster's tokens: what is read is written and read again, and is worth no more
/// than it says.
fn records(text: &str) {
    let Ok(mut tokens) = serde_json::from_str::<Tokens>(text) else { return };
    let written = serde_json::to_string(&tokens).expect("records are written as they are read");
    assert_eq!(serde_json::from_str::<Tokens>(&written).expect("what was written"), tokens);
    for record in tokens.records() {
        let good = record.refusal(NOW).is_none();
        assert!(!good || !record.revoked && NOW < record.expires && record.used < record.uses);
    }
    let ids: Vec<_> = tokens.records().iter().map(|record| record.id).collect();
    assert!(ids.into_iter().all(|id| tokens.revoke(id)), "a token that is there is not found");
}

/// A certificate, its authority's, and the key: TLS may refuse them, and nothing else may happen.
fn credentials(text: &str) {
    if let Ok(identity) = PeerIdentity::of_pem(text) {
        assert!(!identity.role.name().is_empty());
    }
    let Ok(read) = Credentials::from_pem(text, text) else { return };
    let again = Credentials::from_pem(read.certificates(), read.key()).expect("what was read");
    assert_eq!(again.identity(), read.identity());
    if let Ok(security) = Security::mutual(read) {
        assert_eq!(security.identity(), Some(again.identity()));
    }
}

fn authority(text: &str) {
    let Ok(read) = Authority::from_pem(text, text) else { return };
    let again = Authority::from_pem(read.certificate(), &read.key()).expect("what was read");
    assert_eq!(again.fingerprint(), read.fingerprint());
}

/// Whatever a request says of its sender, the certificate says what the authority does.
fn request(text: &str) {
    let subject = Subject::new(Role::Worker, "a worker", NOW);
    let certificates = match AUTHORITY.issue(text, &subject) {
        Ok(certificates) => certificates,
        Err(error) => {
            assert!(
                matches!(error, IdentityError::Request(_) | IdentityError::Issue(_)),
                "{error}"
            );
            return;
        }
    };
    let issued = PeerIdentity::of_pem(&certificates).expect("a certificate of ours");
    assert_eq!((issued.role, &*issued.name), (subject.role, "a-worker"));
    assert_eq!(issued.expires, subject.until);
}
