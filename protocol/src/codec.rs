//! Frames: bytes to messages and back, without a socket.
//!
//! A frame is `[u32 LE body length][u32 LE payload length][body][payload]`. The body is one
//! message in bincode; the payload is raw bytes and is never parsed. Everything here is bounded:
//! - **C-1**: a frame over the [`Limits`] is refused when its lengths are read, before any of it.
//! - **C-2**: a length inside a body reserves at most eight times what a body of that size class
//!   may hold, so that a few bytes cannot claim much memory.
//! - **C-3**: a body is its message and nothing else; trailing bytes are an error.

use crate::job::CHUNK_BYTES;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the two lengths that start a frame.
pub const LENGTHS_BYTES: usize = 8;

/// The longest body of a control message. The largest ones are a plan of 64 ranks and a status
/// of the whole cluster (tens of KiB) and a prompt pasted from a file.
pub const CONTROL_BODY_BYTES_MAX: usize = 1 << 20;

/// The longest payload of a control message: the RGB image of the largest admitted size,
/// 8192 x 8192. Its latent (f32, 8 channels, an eighth of the side) is a sixth of that.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 8192 * 8192 * 3;

/// The longest first message, from someone unknown: a model card and some names.
pub const GREETING_BODY_BYTES_MAX: usize = 64 << 10;

/// The longest head of a slot's value: three numbers of at most 5, 3 and 5 bytes.
pub const DATA_BODY_BYTES_MAX: usize = 16;

/// Bodies up to this size are decoded under a tighter memory bound (C-2): nearly all of them.
const SMALL_BODY_BYTES: usize = 4 << 10;

/// bincode counts what a number takes in memory against its limit, not what it takes on the
/// wire; a u64 of one byte counts as eight, and nothing inflates more.
const INFLATION: usize = 8;

/// How long the parts of a frame may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest body.
    pub body_bytes_max: usize,
    /// The longest payload.
    pub payload_bytes_max: usize,
}

impl Limits {
    /// For control connections once the greeting is done.
    pub const CONTROL: Self = Self {
        body_bytes_max: CONTROL_BODY_BYTES_MAX,
        payload_bytes_max: CONTROL_PAYLOAD_BYTES_MAX,
    };

    /// For the first message of any connection, and for the answer to it.
    pub const GREETING: Self =
        Self { body_bytes_max: GREETING_BODY_BYTES_MAX, payload_bytes_max: 0 };

    /// For a receiver of control messages none of which has a payload.
    pub const NO_PAYLOAD: Self =
        Self { body_bytes_max: CONTROL_BODY_BYTES_MAX, payload_bytes_max: 0 };

    /// For a receiver of control messages whose payloads are parts of files.
    pub const FILES: Self =
        Self { body_bytes_max: CONTROL_BODY_BYTES_MAX, payload_bytes_max: CHUNK_BYTES };

    /// For a link whose largest slot has `payload_bytes_max` bytes.
    #[must_use]
    pub const fn data(payload_bytes_max: usize) -> Self {
        Self { body_bytes_max: DATA_BODY_BYTES_MAX, payload_bytes_max }
    }

    fn check(&self, body: usize, payload: usize) -> Result<(), FrameError> {
        let over = |part, bytes, bytes_max| Err(FrameError::TooLong { part, bytes, bytes_max });
        if body > self.body_bytes_max {
            return over("body", body, self.body_bytes_max);
        }
        if payload > self.payload_bytes_max {
            return over("payload", payload, self.payload_bytes_max);
        }
        Ok(())
    }
}

/// Why bytes are no frame, or a message cannot become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A part is over its limit.
    #[error("a frame's {part} of {bytes} bytes is over the limit of {bytes_max}")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// The body is no such message.
    #[error("a frame's body is not a {expected}: {cause}")]
    Malformed {
        /// The message that was expected.
        expected: &'static str,
        /// What bincode says.
        cause: String,
    },
    /// The body goes on after its message.
    #[error("a frame's body goes on for {bytes} bytes after its message")]
    Trailing {
        /// How many bytes are left over.
        bytes: usize,
    },
    /// The message cannot be written.
    #[error("cannot encode a message: {cause}")]
    Unencodable {
        /// What bincode says.
        cause: String,
    },
}

/// One frame whose body is not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The message.
    pub body: Bytes,
    /// The raw bytes that go with it.
    pub payload: Bytes,
}

/// A whole frame as bytes.
///
/// # Errors
/// If it would be over `limits`.
pub fn encode<M: Serialize>(
    message: &M,
    payload: &[u8],
    limits: &Limits,
) -> Result<Bytes, FrameError> {
    let mut bytes = encode_head(message, payload.len(), limits)?;
    bytes.put_slice(payload);
    Ok(bytes.freeze())
}

/// A frame's bytes up to its payload, which the caller sends itself.
///
/// # Errors
/// If the frame would be over `limits`.
pub fn encode_head<M: Serialize>(
    message: &M,
    payload_bytes: usize,
    limits: &Limits,
) -> Result<BytesMut, FrameError> {
    let body = encode_body(message)?;
    limits.check(body.len(), payload_bytes)?;
    let mut bytes = BytesMut::with_capacity(LENGTHS_BYTES + body.len());
    bytes.put_u32_le(length(body.len())?);
    bytes.put_u32_le(length(payload_bytes)?);
    bytes.put_slice(&body);
    Ok(bytes)
}

/// A message's body alone, as [`decode_body`] reads it: what is kept of a message, not sent.
///
/// # Errors
/// If the message cannot be written.
pub fn encode_body<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|error| FrameError::Unencodable { cause: error.to_string() })
}

fn length(bytes: usize) -> Result<u32, FrameError> {
    let bytes_max = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
    u32::try_from(bytes).map_err(|_| FrameError::TooLong { part: "length", bytes, bytes_max })
}

/// Body and payload length of the frame that starts with `lengths`.
///
/// # Errors
/// If one is over `limits`.
pub fn read_lengths(
    lengths: [u8; LENGTHS_BYTES],
    limits: &Limits,
) -> Result<(usize, usize), FrameError> {
    let [a, b, c, d, e, f, g, h] = lengths;
    let size = |bytes| usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
    let (body, payload) = (size([a, b, c, d]), size([e, f, g, h]));
    limits.check(body, payload)?;
    Ok((body, payload))
}

/// Takes the first frame off `bytes`. None: more bytes are needed, none were taken.
///
/// # Errors
/// If its lengths are over `limits`.
pub fn take_frame(bytes: &mut BytesMut, limits: &Limits) -> Result<Option<Frame>, FrameError> {
    let Some(lengths) = bytes.first_chunk::<LENGTHS_BYTES>() else { return Ok(None) };
    let (body, payload) = read_lengths(*lengths, limits)?;
    if bytes.len() - LENGTHS_BYTES < body.saturating_add(payload) {
        return Ok(None);
    }
    bytes.advance(LENGTHS_BYTES);
    let body = bytes.split_to(body).freeze();
    Ok(Some(Frame { body, payload: bytes.split_to(payload).freeze() }))
}

/// Takes the first message and its payload off `bytes`. None: more bytes are needed.
///
/// # Errors
/// If the frame is over `limits` or its body is not an `M`.
pub fn decode<M: DeserializeOwned>(
    bytes: &mut BytesMut,
    limits: &Limits,
) -> Result<Option<(M, Bytes)>, FrameError> {
    let Some(frame) = take_frame(bytes, limits)? else { return Ok(None) };
    Ok(Some((decode_body(&frame.body)?, frame.payload)))
}

/// The message that is all of `body` (C-3).
///
/// # Errors
/// If it is another message, or is followed by something.
pub fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    let (message, used) = decode_start(body)?;
    if used < body.len() {
        return Err(FrameError::Trailing { bytes: body.len() - used });
    }
    Ok(message)
}

/// The value that `body` starts with, and how many bytes it takes: how a greeting's version is
/// read when the rest of it cannot be.
///
/// # Errors
/// If it starts with something else.
pub fn decode_start<M: DeserializeOwned>(body: &[u8]) -> Result<(M, usize), FrameError> {
    if body.len() <= SMALL_BODY_BYTES {
        decode_within::<M, { INFLATION * SMALL_BODY_BYTES }>(body)
    } else {
        decode_within::<M, { INFLATION * CONTROL_BODY_BYTES_MAX }>(body)
    }
}

fn decode_within<M: DeserializeOwned, const LIMIT: usize>(
    body: &[u8],
) -> Result<(M, usize), FrameError> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    bincode::serde::decode_from_slice(body, config).map_err(|error| FrameError::Malformed {
        expected: short_name::<M>(),
        cause: error.to_string(),
    })
}

/// A type's name without its module path.
fn short_name<M>() -> &'static str {
    let name = std::any::type_name::<M>();
    let path_end = name.find('<').unwrap_or(name.len());
    name[..path_end].rfind("::").map_or(name, |at| &name[at + 2..])
}
