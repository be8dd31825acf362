//! Values read off a byte stream straight into their slots' buffers: what TCP and QUIC share.
//!
//! Each slot has two buffers, one for even calls and one for odd ones, made when they are first
//! needed and used again once their reader has let go of what they held.

use super::ledger::Ticket;
use super::{Landed, LinkError, LinkSpec};
use crate::codec::{self, LENGTHS_BYTES, Limits};
use crate::id::{Call, Rank, Site, Slot};
use crate::message::DataHead;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc::UnboundedSender;

/// What a link's background side tells the end that polls.
pub(super) type Arrival = Result<(Landed, Ticket), LinkError>;

/// The receiving side of one stream. `enter` asks the ledger whether a value may land; None: it
/// is of an older epoch.
pub(super) struct Incoming<R, E> {
    peer: Rank,
    stream: R,
    limits: Limits,
    enter: E,
    begun: bool,
    /// What landed last in each slot, in even and in odd calls.
    buffers: BTreeMap<Site, [Bytes; 2]>,
}

impl<R, E> Incoming<R, E>
where
    R: AsyncRead + Unpin,
    E: FnMut(DataHead, usize) -> Result<Option<Ticket>, String>,
{
    pub(super) fn new(stream: R, spec: &LinkSpec, enter: E) -> Self {
        let limits = Limits::data(spec.landing_bytes_max());
        Self { peer: spec.peer, stream, limits, enter, begun: false, buffers: BTreeMap::new() }
    }

    /// Whether anything came on the stream.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// Hands over what lands until the peer ends the stream. When nobody takes values any more,
    /// the rest is read and dropped: closing with unread data could cost the peer the last values
    /// that were sent to it.
    pub(super) async fn run(
        &mut self,
        arrivals: &UnboundedSender<Arrival>,
    ) -> Result<(), LinkError> {
        while let Some(value) = self.next().await? {
            if arrivals.send(Ok(value)).is_err() {
                tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await.ok(); // ends it, too
                break;
            }
        }
        Ok(())
    }

    /// The next value that lands; None: a clean end.
    async fn next(&mut self) -> Result<Option<(Landed, Ticket)>, LinkError> {
        loop {
            let mut lengths = [0; LENGTHS_BYTES];
            let read = self.stream.read(&mut lengths).await.map_err(|error| self.closed(&error))?;
            if read == 0 {
                return Ok(None);
            }
            self.begun = true;
            self.read_exact(&mut lengths[read..]).await?;
            let (body, bytes) = codec::read_lengths(lengths, &self.limits)
                .map_err(|error| self.broke(error.to_string()))?;
            let mut head = [0; codec::DATA_BODY_BYTES_MAX];
            let head = &mut head[..body];
            self.read_exact(head).await?;
            let head: DataHead =
                codec::decode_body(head).map_err(|error| self.broke(error.to_string()))?;
            let ticket = (self.enter)(head, bytes).map_err(|cause| self.broke(cause))?;
            let value = self.read_value(head.site, head.call, bytes).await?;
            if let Some(ticket) = ticket {
                let slot = Slot { from: self.peer, site: head.site };
                return Ok(Some((Landed { slot, call: head.call, bytes: value }, ticket)));
            }
        }
    }

    async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.stream.read_exact(bytes).await.map_err(|error| self.closed(&error))?;
        Ok(())
    }

    /// Reads a value whose size the ledger has checked into its slot's buffer, or if that is still
    /// being read, into a new one.
    async fn read_value(
        &mut self,
        site: Site,
        call: Call,
        bytes: usize,
    ) -> Result<Bytes, LinkError> {
        let parity = usize::from(call.0 % 2 == 1);
        let held = std::mem::take(&mut self.buffers.entry(site).or_default()[parity]);
        let mut value = held.try_into_mut().unwrap_or_default();
        value.clear();
        value.reserve(bytes);
        while value.len() < bytes {
            let rest = u64::try_from(bytes - value.len()).unwrap_or(u64::MAX);
            let read = (&mut self.stream).take(rest).read_buf(&mut value).await;
            if read.map_err(|error| self.closed(&error))? == 0 {
                return Err(self.closed(&io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let value = value.freeze();
        self.buffers.entry(site).or_default()[parity] = value.clone();
        Ok(value)
    }

    fn closed(&self, error: &io::Error) -> LinkError {
        let cause = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the connection ended inside a value".to_owned(),
            _ => error.to_string(),
        };
        LinkError::Closed { peer: self.peer, cause }
    }

    fn broke(&self, cause: String) -> LinkError {
        LinkError::Protocol { peer: self.peer, cause }
    }
}
