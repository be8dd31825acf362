//! What the two ends tell each other, over their authorised connection, before a link opens.

use super::super::LinkError;
use super::super::connection::{Connection, Reading, Writing};
use super::super::stream::{FrameReader, FrameWriter, StreamError};
use crate::codec::Limits;
use crate::fault::{Fault, FaultKind};
use crate::id::{Epoch, Rank};
use serde::{Deserialize, Serialize};

/// The messages on the connection beside a link: an offer or a refusal from either end, then that
/// it is ready. From then on only the connection's end means anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Agreement {
    /// Where this end is.
    Offer(Offer),
    /// This end cannot make the link.
    Refused(Fault),
    /// This end is connected, and takes what is sent.
    Ready,
}

/// One end's queue pair and the memory that its peer may write to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The epoch of its run.
    pub epoch: Epoch,
    /// The queue pair's number.
    pub queue_pair: u32,
    /// The number of its first packet.
    pub sequence: u32,
    /// The port's global address; none over InfiniBand within a subnet.
    pub gid: Option<[u8; 16]>,
    /// The port's address in an InfiniBand subnet; 0 over RoCE.
    pub lid: u16,
    /// The largest packets the port takes: 256 bytes shifted left by one less than this.
    pub mtu: u8,
    /// Where the landing region starts.
    pub address: u64,
    /// The key to it.
    pub key: u32,
    /// Its size, from which the peer sees that both mean the same slots.
    pub bytes: u64,
}

/// The connection while a link is agreed on.
pub(super) struct Table {
    peer: Rank,
    reader: FrameReader<Reading>,
    writer: FrameWriter<Writing>,
}

impl Table {
    pub(super) fn new(connection: Connection, peer: Rank) -> Self {
        let reader = FrameReader::new(connection.reading, Limits::GREETING);
        let writer = FrameWriter::new(connection.writing, Limits::GREETING);
        Self { peer, reader, writer }
    }

    /// Sends the own offer, and gives the peer's.
    pub(super) async fn exchange(&mut self, own: Offer) -> Result<Offer, LinkError> {
        self.send(&Agreement::Offer(own)).await?;
        match self.next().await? {
            Agreement::Offer(offer) => Ok(offer),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Says that this end is ready, and waits until the other is.
    pub(super) async fn ready(&mut self) -> Result<(), LinkError> {
        self.send(&Agreement::Ready).await?;
        match self.next().await? {
            Agreement::Ready => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Tells the peer that there will be no link, and why; gives the own error.
    pub(super) async fn refuse(&mut self, cause: &impl ToString) -> LinkError {
        let fault = Fault::new(FaultKind::PeerLost, cause.to_string());
        self.send(&Agreement::Refused(fault.clone())).await.ok(); // or it is gone: no matter
        LinkError::Refused { peer: self.peer, fault }
    }

    /// The connection, for its end.
    pub(super) fn into_parts(self) -> (FrameReader<Reading>, Writing) {
        (self.reader, self.writer.into_inner())
    }

    async fn send(&mut self, message: &Agreement) -> Result<(), LinkError> {
        self.writer.send(message, &[]).await.map_err(|error| failed(self.peer, &error))
    }

    async fn next(&mut self) -> Result<Agreement, LinkError> {
        let peer = self.peer;
        match self.reader.next().await.map_err(|error| failed(peer, &error))? {
            Some((Agreement::Refused(fault), _)) => Err(LinkError::Refused { peer, fault }),
            Some((message, _)) => Ok(message),
            None => {
                let cause = "it hung up before the link was agreed on".to_owned();
                Err(LinkError::Closed { peer, cause })
            }
        }
    }

    fn unexpected(&self, message: &Agreement) -> LinkError {
        let cause = format!("it sent {message:?} out of turn");
        LinkError::Protocol { peer: self.peer, cause }
    }
}

/// What a broken connection means for the link beside it.
pub(super) fn failed(peer: Rank, error: &StreamError) -> LinkError {
    let cause = error.to_string();
    match error {
        StreamError::Frame(_) => LinkError::Protocol { peer, cause },
        StreamError::Io(_) | StreamError::Truncated { .. } | StreamError::Stalled(_) => {
            LinkError::Closed { peer, cause }
        }
    }
}
