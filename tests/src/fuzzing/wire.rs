//! What comes from a socket.

use super::{Target, sample};
use bytes::BytesMut;
use protocol::codec::{self, Frame, FrameError, LENGTHS_BYTES, Limits};
use protocol::handshake::{
    PeerHandshake, read_enrolled, read_greeting, read_hello, read_peer_hello,
};
use protocol::job::Parallelism;
use protocol::message::{
    DataHead, FromClient, Greeting, Hello, PeerAnswer, PeerHello, ToClient, ToCoordinator, ToWorker,
};
use protocol::plan::{Branch, Digest, Plan, SiteSpec};
use protocol::{Fault, FaultKind, LINK_VERSION, Rank, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// A stream of frames under the limits of each kind of connection: none is longer than they say, none is
/// taken before it is whole, and where the stream is cut into reads changes nothing.
pub fn frame(data: &[u8]) {
    for limits in [Limits::GREETING, Limits::NO_PAYLOAD, Limits::CONTROL, Limits::data(4096)] {
        let stream = frames(&[data], &limits);
        let (first, second) = data.split_at(data.len() / 2);
        assert_eq!(frames(&[first, second], &limits), stream, "in two reads");
        let (whole, end) = stream;
        for frame in &whole {
            assert!(frame.body.len() <= limits.body_bytes_max, "{limits:?}");
            assert!(frame.payload.len() <= limits.payload_bytes_max, "{limits:?}");
        }
        let taken =
            whole.iter().map(|frame| LENGTHS_BYTES + frame.body.len() + frame.payload.len());
        let left = data.len() - taken.sum::<usize>();
        match end {
            Err(error) => assert!(matches!(error, FrameError::TooLong { .. }), "{error}"),
            Ok(rest) => assert_eq!(rest, left, "bytes of an unfinished frame were taken"),
        }
    }
}

/// All frames of what is read piece by piece, and how many bytes are left over.
fn frames(pieces: &[&[u8]], limits: &Limits) -> (Vec<Frame>, Result<usize, FrameError>) {
    let (mut bytes, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        bytes.extend_from_slice(piece);
        loop {
            match codec::take_frame(&mut bytes, limits) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    (frames, Ok(bytes.len()))
}

/// The kinds of message, in the order of the number that an input of [`message`] starts with.
const KINDS: [Target; 9] = [
    round_trip::<Hello>,
    round_trip::<Greeting>,
    round_trip::<ToCoordinator>,
    round_trip::<ToWorker>,
    round_trip::<FromClient>,
    round_trip::<ToClient>,
    round_trip::<PeerHello>,
    round_trip::<PeerAnswer>,
    round_trip::<DataHead>,
];
/// The kind of message, then its body: what decodes is encoded no longer than it was, and decodes again to
/// the same.
pub fn message(data: &[u8]) {
    if let Some((kind, body)) = data.split_first() {
        KINDS[usize::from(*kind) % KINDS.len()](body);
    }
}

fn round_trip<M: Serialize + DeserializeOwned + Debug>(body: &[u8]) {
    let Ok(message) = codec::decode_body::<M>(body) else { return };
    let encode =
        |message: &M| codec::encode(message, &[], &Limits::CONTROL).expect("it came in one");
    let bytes = encode(&message);
    assert!(bytes.len() <= LENGTHS_BYTES + body.len(), "{message:?} has grown");
    let again = codec::decode::<M>(&mut BytesMut::from(&bytes[..]), &Limits::CONTROL);
    let (again, _) = again.expect("what was encoded decodes").expect("it is whole");
    // Bytes, as a number that is none differs from itself.
    assert_eq!(encode(&again), bytes, "{message:?} became {again:?}");
}

/// The rank that is called, of four: one below it, two above.
const OWN: Rank = Rank(1);

/// What [`handshake`] is about: a plan, and the exchange points that its ranks agree on.
pub(super) fn agreed() -> (Plan, Vec<SiteSpec>) {
    (sample::plan(Parallelism::Patch, &[Branch::Whole; 4]), sample::sites())
}

/// A stream of frames, each the first on a connection of its own. Whoever is let in said what must be said,
/// once; whoever is not is told why in a frame that fits.
pub fn handshake(data: &[u8]) {
    let (plan, sites) = agreed();
    let mut handshake = PeerHandshake::new(&plan, &sites, OWN);
    let digest = Digest::new(&plan, &sites);
    let mut missing: BTreeSet<Rank> = plan.ranks().filter(|rank| *rank != OWN).collect();
    for frame in frames(&[data], &Limits::GREETING).0 {
        openers(&frame.body);
        if let Ok(hello) = read_peer_hello(&frame.body).map_err(|fault| refusable(&fault)) {
            assert_eq!(hello.wire, LINK_VERSION);
            let agrees = hello.digest == digest && hello.run == plan.run && hello.to == OWN;
            let due = hello.from > OWN && missing.contains(&hello.from);
            match handshake.admit(&hello) {
                Ok(rank) => {
                    assert!(agrees && due && rank == hello.from, "{hello:?} was let in");
                    missing.remove(&rank);
                }
                Err(fault) => {
                    assert!(!(agrees && due), "{hello:?} was refused: {fault}");
                    refusable(&fault);
                }
            }
        }
        let called = handshake.to_call().next();
        if let (Some(peer), Ok(answer)) = (called, codec::decode_body::<PeerAnswer>(&frame.body)) {
            let welcome = answer == PeerAnswer::Welcome;
            assert_eq!(handshake.answered(peer, answer).is_ok(), welcome);
            if welcome {
                missing.remove(&peer);
            }
        }
        assert_eq!(*handshake.missing(), missing);
    }
}

/// The first messages on a control connection, as either end reads them.
fn openers(body: &[u8]) {
    let spoken = codec::decode_start::<u16>(body).ok().and_then(|(wire, _)| Version::of(wire));
    let decode = || codec::decode_body::<Hello>(body);
    let said = spoken.unwrap_or(Version::OLDEST).speak(decode);
    match read_hello(body) {
        Ok((version, hello)) => {
            assert_eq!((Some(version), hello.wire), (spoken, version.number()));
            // As they print, as a number that is none differs from itself.
            assert_eq!(format!("{hello:?}"), format!("{:?}", said.expect("it was read")));
        }
        Err(fault) => {
            let of_ours = spoken.is_some() && said.is_ok();
            assert!(!of_ours, "a hello of this version was refused: {fault}");
            refusable(&fault);
        }
    }
    let answers = (read_greeting(body), read_enrolled(body));
    assert!(answers.0.is_err() || answers.1.is_err(), "an answer to two questions");
}

/// The longest cause of a refusal: a few lines of text.
const CAUSE_BYTES_MAX: usize = 512;

/// Someone unknown is refused with a fault that fits an answer, and a log line.
fn refusable(fault: &Fault) {
    let kinds = [FaultKind::VersionMismatch, FaultKind::Protocol, FaultKind::PlanMismatch];
    assert!(kinds.contains(&fault.kind), "{fault:?}");
    assert!(fault.cause.len() <= CAUSE_BYTES_MAX, "{} bytes of a stranger's", fault.cause.len());
    assert!(!fault.cause.contains(char::is_control), "control characters in {fault:?}");
}
