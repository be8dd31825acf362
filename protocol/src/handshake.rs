//! Who may talk to whom, decided without a socket.
//!
//! Every connection starts with one message of the caller and one answer. On a control connection
//! these are [`Hello`] and [`Greeting`]; on a link [`PeerHello`](crate::message::PeerHello) and
//! [`PeerAnswer`](crate::message::PeerAnswer). Both openers start with the caller's wire version,
//! which is read before anything else, so that processes of two releases can at least tell each
//! other that they are.

mod peer;

pub use peer::{PeerHandshake, read_peer_hello};

use crate::codec::{decode_body, decode_start};
use crate::fault::{Fault, FaultKind};
use crate::id::WorkerId;
use crate::identity::plain_name;
use crate::message::{Greeting, Hello, Role};
use crate::{RELEASE, Version};

/// What a caller that speaks `version` says first on a control connection.
#[must_use]
pub fn hello(version: Version, role: Role) -> Hello {
    Hello { wire: version.number(), release: RELEASE.to_owned(), role }
}

/// What the coordinator makes of a caller's first message, and what the two speak from then on.
///
/// # Errors
/// The fault to refuse the caller with: a version that is not spoken here, or no [`Hello`] at all.
pub fn read_hello(body: &[u8]) -> Result<(Version, Hello), Fault> {
    let (wire, _) = decode_start::<u16>(body).map_err(|error| not_understood(&error))?;
    let Some(version) = Version::of(wire) else {
        // A stranger's words: they go into a log, and into an answer that has a limit.
        let release = decode_start::<(u16, String)>(body).map_or_else(
            |_| "of unknown number".to_owned(),
            |((_, release), _)| plain_name(&release),
        );
        return Err(Fault::new(
            FaultKind::VersionMismatch,
            format!(
                "the caller is release {release} (wire {wire}), the coordinator is release \
                 {RELEASE} (wire {} to {}): install the same release on both",
                Version::OLDEST,
                Version::newest()
            ),
        ));
    };
    let hello = version.speak(|| decode_body(body)).map_err(|error| not_understood(&error))?;
    Ok((version, hello))
}

fn not_understood(error: &impl ToString) -> Fault {
    Fault::new(FaultKind::Protocol, format!("no greeting of Tessera: {}", error.to_string()))
}

/// What a welcomed worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its number; 0 for clients.
    pub worker: WorkerId,
    /// The coordinator takes it for lost when it is silent for this long.
    pub lease_ms: u32,
}

/// What a caller makes of the coordinator's answer.
///
/// # Errors
/// The coordinator's refusal, or a fault of our own if the answer is no [`Greeting`].
pub fn read_greeting(body: &[u8]) -> Result<Admission, Fault> {
    match decode_body::<Greeting>(body) {
        Ok(Greeting::Welcome { worker, lease_ms }) => Ok(Admission { worker, lease_ms }),
        Ok(Greeting::Refused(fault)) => Err(fault),
        Ok(Greeting::Enrolled { .. }) => {
            Err(not_understood(&"a certificate that nobody asked for"))
        }
        Err(error) => Err(not_understood(&error)),
    }
}

/// What a caller that showed a token makes of the coordinator's answer: its certificate and the
/// authority's, as PEM.
///
/// # Errors
/// As [`read_greeting`].
pub fn read_enrolled(body: &[u8]) -> Result<String, Fault> {
    match decode_body::<Greeting>(body) {
        Ok(Greeting::Enrolled { certificates }) => Ok(certificates),
        Ok(Greeting::Refused(fault)) => Err(fault),
        Ok(Greeting::Welcome { .. }) => Err(not_understood(&"a welcome in place of a certificate")),
        Err(error) => Err(not_understood(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WIRE_VERSION;
    use bincode::config::standard;

    fn bytes(value: impl serde::Serialize) -> Vec<u8> {
        bincode::serde::encode_to_vec(value, standard()).expect("encodes")
    }

    #[test]
    fn a_hello_of_this_release_is_read() {
        let said = hello(Version::newest(), Role::Client);
        assert_eq!(read_hello(&bytes(&said)), Ok((Version::newest(), said)));
    }

    #[test]
    fn so_is_one_of_the_release_before() {
        let said = hello(Version::OLDEST, Role::Client);
        assert_eq!(said.wire, crate::WIRE_VERSION_OLDEST);
        assert_eq!(read_hello(&bytes(&said)), Ok((Version::OLDEST, said)));
    }

    #[test]
    fn another_version_is_refused_with_both_named_whatever_follows() {
        let body = bytes((99_u16, "9.8.7", "a role of the future", 300_u32));
        let fault = read_hello(&body).expect_err("wire 99");
        assert_eq!(fault.kind, FaultKind::VersionMismatch);
        for part in
            ["9.8.7", "wire 99", RELEASE, &format!("wire {} to {WIRE_VERSION}", Version::OLDEST)]
        {
            assert!(fault.cause.contains(part), "{part} is missing: {fault}");
        }
    }

    #[test]
    fn a_strangers_release_is_repeated_as_far_as_a_line_has_room() {
        let body = bytes((99_u16, format!("9\r\n\x1b[2J{}", "9".repeat(60_000))));
        let fault = read_hello(&body).expect_err("wire 99");
        assert!(fault.cause.contains("release 9---[2J999"), "{fault}");
        assert!(fault.cause.len() < 300, "{} bytes", fault.cause.len());
    }

    #[test]
    fn garbage_is_a_protocol_fault() {
        // The right version, then nonsense.
        let version = u8::try_from(WIRE_VERSION).expect("a small number");
        let http = read_hello(&[&[version][..], b"GET / HTTP/1.1"].concat()).expect_err("no hello");
        assert_eq!(http.kind, FaultKind::Protocol);
        assert_eq!(read_hello(b"").expect_err("empty").kind, FaultKind::Protocol);
        assert_eq!(read_greeting(b"\xff").expect_err("no greeting").kind, FaultKind::Protocol);
    }

    #[test]
    fn a_refusal_reaches_the_caller_as_it_was_said() {
        let fault = Fault::new(FaultKind::ModelMismatch, "two models");
        let answer = bytes(Greeting::Refused(fault.clone()));
        assert_eq!(read_greeting(&answer), Err(fault));
    }
}
