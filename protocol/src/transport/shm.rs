//! Links through memory: between processes of one host, at the speed of one copy.
//!
//! Each end makes a region, a file in `/dev/shm`, in which values land on it, and maps the other's;
//! see [`layout`]. A post is a copy into the peer's region by the posting thread; a value that landed
//! is read where it lies. The connection on which the two agreed stays open, silent: its end tells
//! that the peer closed the link or that its process died.
//!
//! Regions are this user's, mode 0600, under names nobody guesses, which go as soon as both are
//! mapped. Whoever else runs as this user could write to them, as it could to the process:
//! nothing that is read there can reach beyond the values themselves. Only a process that is killed
//! while it sets a link up leaves a file, `/dev/shm/tessera-*`.
//!
//! # Buffers
//! - **B-1**: a buffer belongs to the sender while its state is free, to the receiver while it is
//!   full. Only the sender makes it full, after it copied a value there, and then announces it; only
//!   the receiver makes it free, when the last reader of that value let go of it. So a value that is
//!   read never changes, and what was announced was written before.
//! - **B-2**: what the region says is checked against what only this process knows: the count of
//!   announcements against the ring, a slot against the table, a call and an epoch against the
//!   ledger, a buffer against those whose values are still read. What fails is the peer's breach.
//! - **B-3**: a buffer is announced at most once at a time, and the ring has as many places, so
//!   no announcement overwrites another.
//! - **B-4**: a post whose buffer is full waits in a queue, and those of its slot behind it, so versions
//!   of a slot land in order. The ledger bounds the queue: two of each slot. It moves when readers let
//!   go of older values: who waits for a version must not hold the one two calls older.
//!
//! # Waking
//! Each end has one thread that sleeps on the *bell*, a word of its own region. Ringing adds one to it
//! and wakes the thread. There are four things to ring for: a value was announced, a buffer was freed,
//! the link ended, the link was dropped.
//! - **W-1**: nobody who waits is forgotten. Who will wait for a value or a buffer first sets the word
//!   that says so, then looks for it once more. Who provides one first does that, then reads the
//!   word, and rings if it is set. All these accesses are in one order (they are sequentially
//!   consistent), so either the look comes after the providing and finds it, or the word was
//!   set before it was read and the bell rings.
//! - **W-2**: only the waiting end writes that word, under the lock of what it stands for: the waker of the
//!   compute thread, or the queue of posts. It is set exactly while there is a waker (or the link is
//!   dropped, and discards), or while the queue is not empty. So it cannot be cleared by one wake-up
//!   while the next one is wanted.
//! - **W-3**: the bell is never missed. The thread reads the bell, then does all there is to do, then sleeps
//!   only if the bell is what it read; the kernel compares and sleeps in one step. What happens
//!   before the look is found by it; what happens later rings later, and changes the bell. The four causes
//!   are all in place before the bell is rung for them.
//! - **W-4**: what landed before the end is given out before the end: who looks for values first reads
//!   whether the link has ended, and only believes an end that was there before a look that found
//!   nothing. The peer announces before it closes the connection.
//! - **W-5**: nobody rings for who does not wait, so that between two busy ends there is no system call.

mod buffers;
mod control;
mod file;
#[cfg(test)]
mod interleaving;
pub mod layout;
mod region;
mod setup;
mod traffic;

pub use file::{ShmError, memory};

use self::traffic::{Posted, Traffic};
use super::LINGER;
use super::connection::{Connection, Reading};
use super::hangup::Hangup;
use super::ledger::Ledger;
use super::{Landed, Link, LinkError, LinkSpec};
use crate::id::{Call, Rank, Slot};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

/// One end of a link through memory.
#[derive(Debug)]
pub struct ShmLink {
    peer: Rank,
    posting: Ledger,
    traffic: Arc<Traffic>,
    /// Tells the connection's task that this end is dropped.
    _held: oneshot::Sender<()>,
}

/// Makes a link over memory that both ends map, having agreed on it over `connection`, on which
/// the handshake is done. Both ends call this, at the same time, each on a tokio runtime, which
/// watches the connection from then on.
///
/// There is no deadline in here. Dropping the future leaves nothing behind.
///
/// # Errors
/// If there is no shared memory, not enough, or not the same for both, at either end; if the peer
/// goes away or breaks the protocol.
pub async fn establish(
    mut connection: Connection,
    spec: &LinkSpec,
    hangup: &Hangup,
) -> Result<ShmLink, LinkError> {
    let (own, peers) = setup::regions(Path::new(file::FOLDER), &mut connection, spec).await?;
    let traffic = Arc::new(Traffic::new(spec, own, peers));
    let waiting = Arc::clone(&traffic);
    thread::Builder::new()
        .name(format!("shm {}", spec.peer))
        .spawn(move || waiting.attend())
        .map_err(|error| {
            let cause = format!("no thread to wait on shared memory: {error}");
            LinkError::Closed { peer: spec.peer, cause }
        })?;
    let (held, dropped) = oneshot::channel();
    let end = End { peer: spec.peer, traffic: Arc::clone(&traffic) };
    tokio::spawn(watch(connection, end, dropped, hangup.wait()));
    Ok(ShmLink { peer: spec.peer, posting: spec.posting(), traffic, _held: held })
}

impl Link for ShmLink {
    fn post(&mut self, slot: Slot, call: Call, bytes: Bytes) -> Result<(), LinkError> {
        let unposted = |cause| LinkError::Unposted { peer: self.peer, cause };
        let (head, ticket) = self.posting.post(slot, call, bytes.len()).map_err(unposted)?;
        let Some(slot) = self.traffic.posting().slot(head.site) else {
            return Err(unposted(format!("{slot} is not in the slot table")));
        };
        self.traffic.post(Posted { slot, head, bytes, _ticket: ticket })
    }

    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Landed, LinkError>> {
        self.traffic.poll(cx)
    }
}

impl Drop for ShmLink {
    fn drop(&mut self) {
        self.traffic.drop_reader();
    }
}

/// Ends the link when the task that watches its connection does, for whatever reason.
struct End {
    peer: Rank,
    traffic: Arc<Traffic>,
}

impl End {
    fn closed(&self, cause: &str) {
        self.traffic.end(LinkError::Closed { peer: self.peer, cause: cause.to_owned() });
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.closed("the runtime that watched it is gone");
    }
}

/// Watches the connection, on which nothing comes but its end.
async fn watch(
    connection: Connection,
    end: End,
    dropped: oneshot::Receiver<()>,
    hung_up: impl Future<Output = ()>,
) {
    let Connection { mut reading, mut writing, .. } = connection;
    let lingered = async {
        dropped.await.ok(); // the other half is never used, only dropped
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = read_end(&mut reading, &end) => {}
        () = lingered => end.closed("its values were not taken in time"),
        () = hung_up => return end.closed("the run was aborted here"),
        () = end.traffic.closing.notified() => {}
    }
    writing.shutdown().await.ok(); // the peer may have closed first
}

async fn read_end(reading: &mut Reading, end: &End) {
    match reading.read_u8().await {
        Ok(_) => {
            let cause = "it sent something beside the memory".to_owned();
            end.traffic.end(LinkError::Protocol { peer: end.peer, cause });
        }
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => end.closed(""),
        Err(error) => end.closed(&error.to_string()),
    }
}
