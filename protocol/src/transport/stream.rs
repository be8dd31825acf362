//! Frames over any byte stream.

use crate::Version;
use crate::codec::{self, Frame, FrameError, Limits};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How much is asked of the stream at a time: a control message in one read, a payload of many
/// MB in few, and no more memory than this is set aside on a peer's word alone.
const READ_BYTES: usize = 64 << 10;

/// How much of a payload must be taken within a writer's patience: at 1 Mbit/s half a second's worth.
const WRITE_BYTES: usize = 64 << 10;

/// Why a stream of frames broke.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It carried something that is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It ended inside a frame.
    #[error("the connection ended inside a frame, {bytes} bytes into it")]
    Truncated {
        /// How much of the frame had come.
        bytes: usize,
    },
    /// The other side takes nothing.
    #[error("the other side took nothing for {} ms", .0.as_millis())]
    Stalled(Duration),
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    unread: BytesMut,
    limits: Limits,
    version: Version,
    bytes: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames within `limits` from `stream`.
    pub fn new(stream: R, limits: Limits) -> Self {
        Self { stream, unread: BytesMut::new(), limits, version: Version::newest(), bytes: 0 }
    }

    /// Limits the frames that are read from now on: strangers get less than those who have
    /// said hello.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// What is read from now on is of `version`; of the newest, if this is never said.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// The next message and its payload. None: the stream ended between two frames.
    ///
    /// Cancel-safe: what has been read stays for the next call.
    ///
    /// # Errors
    /// If the stream failed, ended inside a frame, or carried something else. It is of no use
    /// after that.
    pub async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<(M, Bytes)>, StreamError> {
        let Some(frame) = self.next_frame().await? else { return Ok(None) };
        let message = self.version.speak(|| codec::decode_body(&frame.body))?;
        Ok(Some((message, frame.payload)))
    }

    /// As [`Self::next`], with the message left undecoded.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_frame(&mut self) -> Result<Option<Frame>, StreamError> {
        loop {
            if let Some(frame) = codec::take_frame(&mut self.unread, &self.limits)? {
                return Ok(Some(frame));
            }
            self.unread.reserve(READ_BYTES);
            let bytes = self.stream.read_buf(&mut self.unread).await?;
            self.bytes += bytes as u64;
            if bytes == 0 {
                return match self.unread.len() {
                    0 => Ok(None),
                    bytes => Err(StreamError::Truncated { bytes }),
                };
            }
        }
    }

    /// How much was read so far: a large frame that is under way is a sign of life.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stream, and what was read of it beyond the last frame.
    pub fn into_parts(self) -> (R, Bytes) {
        (self.stream, self.unread.freeze())
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    limits: Limits,
    version: Version,
    patience: Duration,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames within `limits` to `stream`.
    pub fn new(stream: W, limits: Limits) -> Self {
        Self { stream, limits, version: Version::newest(), patience: Duration::MAX }
    }

    /// How long the other side may take nothing of a frame before the stream counts as broken; for ever,
    /// if this is never said.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// What is sent from now on is of `version`; of the newest, if this is never said.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// Sends a message and its payload, which is not copied.
    ///
    /// Not cancel-safe: a stream on which a send was dropped half-way must be closed.
    ///
    /// # Errors
    /// If the frame is over the limits (nothing was sent then) or the stream failed.
    pub async fn send<M: Serialize>(
        &mut self,
        message: &M,
        payload: &[u8],
    ) -> Result<(), StreamError> {
        let head =
            self.version.speak(|| codec::encode_head(message, payload.len(), &self.limits))?;
        let stalled = |_| StreamError::Stalled(self.patience);
        for part in std::iter::once(&head[..]).chain(payload.chunks(WRITE_BYTES)) {
            timeout(self.patience, self.stream.write_all(part)).await.map_err(stalled)??;
        }
        timeout(self.patience, self.stream.flush()).await.map_err(stalled)??;
        Ok(())
    }

    /// Ends the stream: the other side reads a clean end after the last frame.
    ///
    /// # Errors
    /// If the stream failed.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        Ok(self.stream.shutdown().await?)
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.stream
    }
}
