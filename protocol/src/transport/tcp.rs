//! Links over TCP, plain or under TLS: works everywhere, and is what every faster fabric is measured
//! against.
//!
//! A posted value is written from where it lies. One that lands is read straight into a buffer of its
//! slot: each has two, one for even calls and one for odd ones, made when they are first needed and
//! used again once their reader has let go of what they held.

use super::LINGER;
use super::connection::{Connection, Reading, Writing};
use super::hangup::Hangup;
use super::ledger::{Ledger, Ticket};
use super::{Landed, Link, LinkError, LinkSpec};
use crate::codec::{self, LENGTHS_BYTES, Limits};
use crate::id::{Call, Rank, Site, Slot};
use crate::message::DataHead;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io;
use std::task::{Context, Poll};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
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

type Arrival = Result<(Landed, Ticket), LinkError>;

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
        let incoming = Incoming {
            peer: spec.peer,
            stream: BufReader::with_capacity(BUFFER_BYTES, reading),
            limits: Limits::data(spec.landing_bytes_max()),
            buffers: BTreeMap::new(),
            ledger: spec.landing(),
        };
        let lingered = async {
            dropped.await.ok(); // the other half is never used, only dropped
            tokio::time::sleep(LINGER).await;
        };
        let hung_up = hangup.wait();
        tokio::spawn(async move {
            tokio::select! {
                _ = async { tokio::try_join!(incoming.run(arrivals), send_all(writing, posts)) } => {}
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

/// The receiving direction.
struct Incoming {
    peer: Rank,
    stream: BufReader<Reading>,
    limits: Limits,
    /// What landed last in each slot, in even and in odd calls.
    buffers: BTreeMap<Site, [Bytes; 2]>,
    ledger: Ledger,
}

impl Incoming {
    /// Receives until the peer ends its direction.
    async fn run(mut self, arrivals: UnboundedSender<Arrival>) -> Result<(), Broken> {
        loop {
            match self.next().await {
                Ok(Some(value)) => {
                    if arrivals.send(Ok(value)).is_err() {
                        return self.discard().await;
                    }
                }
                Ok(None) => {
                    let (peer, cause) = (self.peer, String::new());
                    arrivals.send(Err(LinkError::Closed { peer, cause })).ok(); // or dropped
                    return Ok(());
                }
                Err(error) => {
                    arrivals.send(Err(error)).ok(); // or dropped: nobody is left to tell
                    return Err(Broken);
                }
            }
        }
    }

    /// Reads what nobody wants any more: closing the socket with unread data would reset the
    /// connection and could cost the peer the last values sent to it.
    async fn discard(mut self) -> Result<(), Broken> {
        tokio::io::copy_buf(&mut self.stream, &mut tokio::io::sink()).await.ok(); // ends it, too
        Ok(())
    }

    /// The next value that lands; None: a clean end.
    async fn next(&mut self) -> Result<Option<(Landed, Ticket)>, LinkError> {
        loop {
            let ended = self.stream.fill_buf().await.map(<[u8]>::is_empty);
            if ended.map_err(|error| self.closed(&error))? {
                return Ok(None);
            }
            let mut lengths = [0; LENGTHS_BYTES];
            self.read_exact(&mut lengths).await?;
            let (body, bytes) = codec::read_lengths(lengths, &self.limits)
                .map_err(|error| self.broke(error.to_string()))?;
            let mut head = [0; codec::DATA_BODY_BYTES_MAX];
            let head = &mut head[..body];
            self.read_exact(head).await?;
            let head: DataHead =
                codec::decode_body(head).map_err(|error| self.broke(error.to_string()))?;
            let ticket = self.ledger.land(head, bytes).map_err(|cause| self.broke(cause))?;
            let value = self.read_value(head.site, head.call, bytes).await?;
            if let Some(ticket) = ticket {
                let slot = self.ledger.slot(head.site);
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
