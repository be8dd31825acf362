//! Links over TCP, plain or under TLS: works everywhere, and is what every faster fabric is measured
//! against.
//!
//! A posted value is written from where it lies. One that lands is read straight into a buffer of its
//! slot.

use super::LINGER;
use super::connection::{Connection, Reading, Writing};
use super::hangup::Hangup;
use super::incoming::{Arrival, Incoming};
use super::ledger::{Ledger, Ticket};
use super::{Landed, Link, LinkError, LinkSpec};
use crate::codec::{self, Limits};
use crate::id::{Call, Rank, Slot};
use crate::message::DataHead;
use bytes::{Bytes, BytesMut};
use std::io;
use std::task::{Context, Poll};
use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// Small values, such as group statistics, are gathered up to this many bytes before a system
/// call; larger ones bypass both buffers.
const BUFFER_BYTES: usize = 16 << 10;

/// One end of a link over TCP.
#[derive(Debug)]
pub struct TcpLink {
    peer: Rank,
    posting: Ledger,
    queue: UnboundedSender<Post>,
    landed: UnboundedReceiver<Arrival>,
    ended: Option<LinkError>,
    /// Tells the socket's task when this end is dropped.
    _held: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Post {
    head: BytesMut,
    bytes: Bytes,
    ticket: Ticket,
}

impl TcpLink {
    /// A link over `connection`, on which the handshake is done. To be called on a tokio runtime,
    /// which serves the socket from then on.
    #[must_use]
    pub fn start(connection: Connection, spec: &LinkSpec, hangup: &Hangup) -> Self {
        let Connection { reading, writing, .. } = connection;
        let (queue, posts) = unbounded_channel();
        let (arrivals, landed) = unbounded_channel();
        let (held, dropped) = oneshot::channel();
        let reading = BufReader::with_capacity(BUFFER_BYTES, reading);
        let mut landing = spec.landing();
        let incoming = Incoming::new(reading, spec, move |head, bytes| landing.land(head, bytes));
        let incoming = receive_all(incoming, spec.peer, arrivals);
        let lingered = async {
            dropped.await.ok(); // the other half is never used, only dropped
            tokio::time::sleep(LINGER).await;
        };
        let hung_up = hangup.wait();
        tokio::spawn(async move {
            tokio::select! {
                _ = async { tokio::try_join!(incoming, send_all(writing, posts)) } => {}
                () = lingered => {}
                () = hung_up => {}
            }
        });
        let (peer, posting) = (spec.peer, spec.posting());
        Self { peer, posting, queue, landed, ended: None, _held: held }
    }

    fn closed(&self, cause: &str) -> LinkError {
        LinkError::Closed { peer: self.peer, cause: cause.to_owned() }
    }
}

impl Link for TcpLink {
    fn post(&mut self, slot: Slot, call: Call, bytes: Bytes) -> Result<(), LinkError> {
        let unposted = |cause| LinkError::Unposted { peer: self.peer, cause };
        let (head, ticket) = self.posting.post(slot, call, bytes.len()).map_err(unposted)?;
        let head = codec::encode_head(&head, bytes.len(), &Limits::data(bytes.len()))
            .map_err(|error| unposted(error.to_string()))?;
        let post = Post { head, bytes, ticket };
        self.queue.send(post).map_err(|_| self.closed("the link broke before"))
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

/// The link is broken: everything about it ends now. The reason was said in an [`Arrival`].
struct Broken;

/// Sends what is posted until the link is dropped, then ends this direction.
///
/// A socket that fails is no reason to break the link: the receiving side notices too, and may
/// have values before that. What is posted from then on is void.
async fn send_all(stream: Writing, mut posts: UnboundedReceiver<Post>) -> Result<(), Broken> {
    let mut stream = BufWriter::with_capacity(BUFFER_BYTES, stream);
    if let Err(error) = send_posts(&mut stream, &mut posts).await {
        tracing::debug!(%error, "a link sends no more");
        while posts.recv().await.is_some() {}
    }
    Ok(())
}

async fn send_posts(
    stream: &mut BufWriter<Writing>,
    posts: &mut UnboundedReceiver<Post>,
) -> io::Result<()> {
    while let Some(Post { head, bytes, ticket }) = posts.recv().await {
        drop(ticket);
        stream.write_all(&head).await?;
        stream.write_all(&bytes).await?;
        if posts.is_empty() {
            stream.flush().await?;
        }
    }
    stream.shutdown().await
}

/// Receives until the peer ends its direction.
async fn receive_all<E>(
    mut incoming: Incoming<BufReader<Reading>, E>,
    peer: Rank,
    arrivals: UnboundedSender<Arrival>,
) -> Result<(), Broken>
where
    E: FnMut(DataHead, usize) -> Result<Option<Ticket>, String>,
{
    let received = incoming.run(&arrivals).await;
    let broken = received.is_err();
    let ended = received.err().unwrap_or(LinkError::Closed { peer, cause: String::new() });
    arrivals.send(Err(ended)).ok(); // or dropped: nobody is left to tell
    if broken { Err(Broken) } else { Ok(()) }
}
