//! Links over QUIC: for networks that lose packets, and for hosts that TCP's window holds back.
//!
//! Every slot has a unidirectional stream of its own, opened at its first post and kept for the
//! run, on which its values follow each other in the frames that TCP uses. A lost packet so holds
//! back its own slot only, and the order within a slot is the stream's. Small values, which whole
//! images wait for, go first.
//!
//! The end of a link is agreed on, because a QUIC connection that closes loses what its reader has
//! not read yet. An end that is dropped finishes its streams and then opens one that stays empty:
//! the other end, which accepts streams in the order they were opened, has received everything
//! once that one and all before it have ended. It closes the connection, not the end that sent.

mod closing;
mod endpoint;
mod error;
mod receive;
mod send;
mod tuning;

pub use endpoint::{ALPN, QuicEndpoint, peer_identity};
pub use error::QuicError;
pub use tuning::{Congestion, IDLE_TIMEOUT, KEEP_ALIVE, MTU_BYTES_MAX};

use self::closing::Code;
use self::receive::Receiver;
use self::send::{Post, Sender};
use super::hangup::Hangup;
use super::incoming::Arrival;
use super::ledger::Ledger;
use super::{LINGER, Landed, Link, LinkError, LinkSpec};
use crate::codec::{self, Limits};
use crate::id::{Call, Rank, Site, Slot};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// One end of a link over QUIC.
#[derive(Debug)]
pub struct QuicLink {
    peer: Rank,
    posting: Ledger,
    queues: BTreeMap<Site, UnboundedSender<Post>>,
    landed: UnboundedReceiver<Arrival>,
    ended: Option<LinkError>,
    /// Tells the connection's task when this end is dropped.
    _held: oneshot::Sender<()>,
}

/// The link is broken: everything about it ends now. The reason was said in an [`Arrival`].
struct Broken;

impl QuicLink {
    /// A link over `connection`, on which the handshake is done. To be called on a tokio runtime,
    /// which serves the link from then on.
    #[must_use]
    pub fn start(connection: quinn::Connection, spec: &LinkSpec, hangup: &Hangup) -> Self {
        tuning::widen(&connection, spec);
        let (arrivals, landed) = unbounded_channel();
        let (held, dropped) = oneshot::channel();
        let (sender, queues) = Sender::new(connection.clone(), spec);
        let receiver = Receiver::new(connection.clone(), spec, arrivals);
        let closing = connection.clone();
        let lingered = async move {
            dropped.await.ok(); // the other half is never used, only dropped
            tokio::time::sleep(LINGER).await;
            Code::Gone.close(&closing);
        };
        let hung_up = hangup.wait();
        tokio::spawn(async move {
            // Each branch closes the connection before the streams are dropped: a stream that is
            // dropped inside a value looks finished to the peer.
            tokio::select! {
                _ = async { tokio::try_join!(receiver.run(), sender.run()) } => {}
                () = lingered => {}
                () = async { hung_up.await; Code::HungUp.close(&connection) } => {}
            }
        });
        Self { peer: spec.peer, posting: spec.posting(), queues, landed, ended: None, _held: held }
    }

    fn closed(&self, cause: &str) -> LinkError {
        LinkError::Closed { peer: self.peer, cause: cause.to_owned() }
    }
}

impl Link for QuicLink {
    fn post(&mut self, slot: Slot, call: Call, bytes: Bytes) -> Result<(), LinkError> {
        let unposted = |cause| LinkError::Unposted { peer: self.peer, cause };
        let (head, ticket) = self.posting.post(slot, call, bytes.len()).map_err(unposted)?;
        let head = codec::encode_head(&head, bytes.len(), &Limits::data(bytes.len()))
            .map_err(|error| unposted(error.to_string()))?;
        let post = Post { head: head.freeze(), bytes, ticket };
        let posted = self.queues.get(&slot.site).is_some_and(|queue| queue.send(post).is_ok());
        if posted { Ok(()) } else { Err(self.closed("the link broke before")) }
    }

    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Landed, LinkError>> {
        if let Some(error) = &self.ended {
            return Poll::Ready(Err(error.clone()));
        }
        let error = match std::task::ready!(self.landed.poll_recv(cx)) {
            Some(Ok((landed, _))) => return Poll::Ready(Ok(landed)),
            Some(Err(error)) => error,
            None => self.closed("the run was aborted here"),
        };
        self.ended = Some(error.clone());
        Poll::Ready(Err(error))
    }
}
