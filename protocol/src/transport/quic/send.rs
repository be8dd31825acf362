//! The sending direction: one stream for each slot.

use super::Broken;
use crate::id::Site;
use crate::plan::SlotSpec;
use crate::transport::LinkSpec;
use crate::transport::ledger::Ticket;
use bytes::Bytes;
use quinn::{Connection, ConnectionError, WriteError};
use std::collections::BTreeMap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

#[derive(Debug)]
pub(super) struct Post {
    pub(super) head: Bytes,
    pub(super) bytes: Bytes,
    pub(super) ticket: Ticket,
}

/// What the queues of all slots are sent by.
pub(super) struct Sender {
    connection: Connection,
    slots: Vec<(SlotSpec, UnboundedReceiver<Post>)>,
}

impl Sender {
    /// The sender, and the queue of each slot. They are bounded by the posting ledger.
    pub(super) fn new(
        connection: Connection,
        spec: &LinkSpec,
    ) -> (Self, BTreeMap<Site, UnboundedSender<Post>>) {
        let mut queues = BTreeMap::new();
        let mut slots = Vec::new();
        for posted in spec.posts() {
            let (queue, posts) = unbounded_channel();
            queues.insert(posted.slot.site, queue);
            slots.push((*posted, posts));
        }
        (Self { connection, slots }, queues)
    }

    /// Sends what is posted until the link is dropped, then ends this direction.
    pub(super) async fn run(self) -> Result<(), Broken> {
        let mut streams = JoinSet::new();
        for (spec, posts) in self.slots {
            streams.spawn(send_slot(self.connection.clone(), spec, posts));
        }
        while streams.join_next().await.is_some() {}
        match self.connection.open_uni().await {
            Ok(mut end) => {
                end.finish().ok(); // it is fresh, so open
            }
            Err(error) => tracing::debug!(%error, "a link was over before it was ended"),
        }
        Ok(())
    }
}

/// A connection that fails is no reason to break the link: the receiving side notices too, and may
/// have values before that. What is posted from then on is void.
async fn send_slot(connection: Connection, spec: SlotSpec, mut posts: UnboundedReceiver<Post>) {
    if let Err(error) = send_posts(&connection, spec, &mut posts).await {
        tracing::debug!(%error, slot = %spec.slot, "a slot is sent no more");
        while posts.recv().await.is_some() {}
    }
}

async fn send_posts(
    connection: &Connection,
    spec: SlotSpec,
    posts: &mut UnboundedReceiver<Post>,
) -> Result<(), Unsent> {
    let mut next = posts.recv().await;
    if next.is_none() {
        return Ok(());
    }
    let mut stream = connection.open_uni().await?;
    stream.set_priority(priority(spec.bytes)).map_err(|_| WriteError::ClosedStream)?;
    while let Some(Post { head, bytes, ticket }) = next {
        drop(ticket);
        stream.write_all_chunks(&mut [head, bytes]).await?;
        next = posts.recv().await;
    }
    stream.finish().map_err(|_| WriteError::ClosedStream)?;
    Ok(())
}

/// Small values first: each halving of the size is one level.
fn priority(bytes: usize) -> i32 {
    -i32::try_from(bytes.max(1).ilog2()).unwrap_or(i32::MAX)
}

#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    Lost(#[from] ConnectionError),
    #[error(transparent)]
    Unwritten(#[from] WriteError),
}
