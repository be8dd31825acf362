//! Round trips of every message, and what damaged frames do: nothing worse than an error.

use crate::strategy;
use bytes::BytesMut;
use proptest::prelude::*;
use protocol::codec::{self, FrameError, Limits};
use protocol::message::{
    FromClient, Greeting, Hello, PeerHello, ToClient, ToCoordinator, ToWorker,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Small, so that damaged lengths are over them often.
const LIMITS: Limits = Limits { body_bytes_max: 1 << 16, payload_bytes_max: 1 << 12 };

fn round_trip<M>(message: &M, payload: &[u8]) -> Result<(), TestCaseError>
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let frame = codec::encode(message, payload, &LIMITS).expect("a small message");
    let mut bytes = BytesMut::new();
    bytes.extend_from_slice(&frame);
    bytes.extend_from_slice(b"next");
    let (back, rest) = codec::decode::<M>(&mut bytes, &LIMITS)
        .map_err(|error| TestCaseError::fail(error.to_string()))?
        .expect("a whole frame");
    prop_assert_eq!(&back, message);
    prop_assert_eq!(&rest[..], payload);
    prop_assert_eq!(&bytes[..], b"next");
    Ok(())
}

macro_rules! round_trips {
    ($($name:ident),+ $(,)?) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(128))]
            $(
                #[test]
                fn $name(
                    message in strategy::$name(),
                    payload in prop::collection::vec(any::<u8>(), 0..64),
                ) {
                    round_trip(&message, &payload)?;
                }
            )+
        }
    };
}

round_trips!(
    hello,
    greeting,
    to_coordinator,
    to_worker,
    from_client,
    to_client,
    peer_hello,
    peer_answer,
    data_head,
);

/// Decodes `bytes` as every message a process listens to; only the limits are checked.
fn decode_all(bytes: &[u8]) -> Result<(), TestCaseError> {
    fn one<M: DeserializeOwned>(bytes: &[u8]) -> Result<(), TestCaseError> {
        let mut bytes = BytesMut::from(bytes);
        if let Ok(Some((_, payload))) = codec::decode::<M>(&mut bytes, &LIMITS) {
            prop_assert!(payload.len() <= LIMITS.payload_bytes_max);
        }
        Ok(())
    }
    one::<Hello>(bytes)?;
    one::<Greeting>(bytes)?;
    one::<ToCoordinator>(bytes)?;
    one::<ToWorker>(bytes)?;
    one::<FromClient>(bytes)?;
    one::<ToClient>(bytes)?;
    one::<PeerHello>(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn flipped_bits_never_panic(
        message in strategy::to_worker(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
    ) {
        let mut bytes = codec::encode(&message, b"payload", &LIMITS).expect("small").to_vec();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        decode_all(&bytes)?;
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        decode_all(&bytes)?;
        let mut framed = vec![u8::try_from(bytes.len()).expect("under 256"), 0, 0, 0, 0, 0, 0, 0];
        framed.extend_from_slice(&bytes);
        decode_all(&framed)?;
    }

    #[test]
    fn a_truncated_frame_waits_for_the_rest(
        message in strategy::to_client(),
        cut in any::<prop::sample::Index>(),
    ) {
        let frame = codec::encode(&message, b"payload", &LIMITS).expect("small");
        let mut bytes = BytesMut::from(&frame[..cut.index(frame.len())]);
        let before = bytes.clone();
        let decoded = codec::decode::<ToClient>(&mut bytes, &LIMITS);
        prop_assert_eq!(decoded, Ok(None));
        prop_assert_eq!(bytes, before);
    }
}

#[test]
fn c1_lengths_over_the_limits_are_refused_before_the_bytes_are_there() {
    let frame = |body: u32, payload: u32| {
        let mut bytes = BytesMut::from(&body.to_le_bytes()[..]);
        bytes.extend_from_slice(&payload.to_le_bytes());
        codec::take_frame(&mut bytes, &LIMITS)
    };
    assert_eq!(frame(1 << 16, 1 << 12), Ok(None), "at the limits");
    for (body, payload, part) in [((1 << 16) + 1, 0, "body"), (4, u32::MAX, "payload")] {
        let refused = frame(body, payload);
        assert!(
            matches!(refused, Err(FrameError::TooLong { part: over, .. }) if over == part),
            "{refused:?}"
        );
    }
}

#[test]
fn c2_a_string_cannot_claim_more_than_its_bound() {
    // `ToCoordinator::Notice` of a run, with a text of 2^62 bytes.
    let body = bincode::serde::encode_to_vec((2_u32, 1_u64, 1_u32, 1_u64 << 62), bincode_config())
        .expect("encodes");
    let refused = codec::decode_body::<ToCoordinator>(&body);
    assert!(matches!(refused, Err(FrameError::Malformed { .. })), "{refused:?}");
}

#[test]
fn c3_bytes_after_the_message_are_an_error() {
    let mut body =
        bincode::serde::encode_to_vec(FromClient::Status, bincode_config()).expect("encodes");
    body.push(0);
    let refused = codec::decode_body::<FromClient>(&body);
    assert_eq!(refused, Err(FrameError::Trailing { bytes: 1 }));
}

#[test]
fn the_longest_body_decodes_again() {
    let text = "p".repeat(codec::CONTROL_BODY_BYTES_MAX - 64);
    let message = ToCoordinator::Notice { run: protocol::RunId::default(), text };
    let mut bytes =
        BytesMut::from(&codec::encode(&message, &[], &Limits::CONTROL).expect("fits")[..]);
    let back = codec::decode::<ToCoordinator>(&mut bytes, &Limits::CONTROL);
    assert_eq!(back.expect("decodes").expect("whole").0, message);
}

#[test]
fn a_message_over_the_limits_is_not_encoded() {
    let refused = codec::encode(&FromClient::Status, &[0; (1 << 12) + 1], &LIMITS);
    assert!(matches!(refused, Err(FrameError::TooLong { part: "payload", .. })), "{refused:?}");
}

fn bincode_config() -> bincode::config::Configuration {
    bincode::config::standard()
}
