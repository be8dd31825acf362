//! Links over RDMA: InfiniBand or RoCE, by the verbs of libibverbs.
//!
//! Each link has a queue pair of its own, a protection domain of its own, and in it a region of
//! memory with two buffers for each slot that lands. A posted value is written straight into the
//! peer's buffer (RDMA WRITE), and the last of its chunks carries a number, the slot and the call,
//! that completes one of the receives which the peer keeps posted (WITH IMMEDIATE). The peer's
//! processor takes no part until then, and its reader is handed the buffer itself.
//!
//! - **Credits.** A buffer is the sender's until a value lands in it, and again once the reader has
//!   let go of it: the receiver then sends an empty message with the value's slot and call. A post
//!   whose buffer is taken waits at the sender. So receives never run out: there is one for every
//!   buffer that may be announced, for every one that may be given back, and for the end.
//! - **Ends.** After its last value a link that was dropped says so, and stays until its peer has
//!   said it too. A peer that dies is noticed by the end of the connection on which the link was
//!   agreed, or, if its machine is gone, by a write that is not acknowledged.
//! - **The epoch's fence (L-4).** The memory of a run is reached through its own queue pairs and
//!   keys only. When a run ends here its queue pairs are destroyed before anything else, and its
//!   regions are deregistered. A write of that run which is still to come names a queue pair that
//!   is not there, and is dropped. Were its number given to a new run's, the packets would have to
//!   match that one's sequence, which starts at random, and come from the peer it is connected to;
//!   and even then their key belongs to no region of the new protection domain. Memory that a
//!   reader still holds stays mapped until it lets go, but no device can reach it.
//!
//! Values that the peer spoils are values of its own slots: nothing that it writes is used as a
//! length or a place before it is checked.

mod agreement;
mod choice;
mod completions;
mod device;
mod driver;
mod error;
mod incoming;
mod layout;
mod outgoing;
mod staging;
mod verbs;

pub use agreement::{Agreement, Offer};
pub use device::{Device, RdmaOptions};
pub use error::RdmaError;

use self::agreement::Table;
use self::completions::Completions;
use self::driver::{Driver, Waiting};
use self::incoming::{Arrival, Incoming};
use self::layout::{Layout, SLOTS_MAX};
use self::outgoing::{Outgoing, Post, SENDS_MAX};
use self::staging::{CHUNK_BYTES, Staging};
use self::verbs::{
    Access, CompletionQueue, Context, Depths, Limits, Memory, MemoryRegion, Peer, ProtectionDomain,
    QueuePair, Remote,
};
use super::connection::Connection;
use super::ledger::Ledger;
use super::{Hangup, LINGER, Landed, Link, LinkError, LinkSpec};
use crate::id::{Call, Epoch, Rank, Slot};
use bytes::Bytes;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// Packets are numbered with 24 bits.
const SEQUENCE_MASK: u32 = 0xff_ffff;

/// One end of a link over RDMA.
#[derive(Debug)]
pub struct RdmaLink {
    peer: Rank,
    posting: Ledger,
    layout: Layout,
    queue: UnboundedSender<Post>,
    landed: UnboundedReceiver<Arrival>,
    ended: Option<LinkError>,
    /// Tells the link's task when this end is dropped.
    _held: oneshot::Sender<()>,
}

/// Makes a link over `device` with the peer at the other end of `connection`, which does the same.
/// The peer is authorised by it; it stays open beside the link. To be called on a tokio runtime,
/// which serves the link from then on, and to be given up when the peer takes too long.
///
/// # Errors
/// If the device or the process has no room for the link, the peer says so of its own, the two
/// cannot reach each other, or the connection breaks.
pub async fn establish(
    connection: Connection,
    device: &Device,
    spec: &LinkSpec,
    hangup: &Hangup,
) -> Result<RdmaLink, LinkError> {
    let mut table = Table::new(connection, spec.peer);
    let made = Parts::make(device, spec).await;
    let parts = match made {
        Ok(parts) => parts,
        Err(error) => return Err(table.refuse(&error).await),
    };
    let sequence = fresh_sequence();
    let offer = table.exchange(parts.offer(device, spec.epoch, sequence)).await?;
    if let Err(cause) = parts.connect(device, &offer, sequence) {
        return Err(table.refuse(&cause).await);
    }
    table.ready().await?;
    parts.start(table, device, spec, &offer).map(|started| started.link(spec, hangup))
}

/// The number of a queue pair's first packet, which those of an earlier one cannot know.
fn fresh_sequence() -> u32 {
    let random = RandomState::new().hash_one(0).to_le_bytes();
    u32::from_le_bytes([random[0], random[1], random[2], 0]) & SEQUENCE_MASK
}

/// What a link needs of the device, before it is connected.
struct Parts {
    pair: QueuePair,
    landing: MemoryRegion,
    staging: Staging,
    completions: Arc<CompletionQueue>,
    lands: Layout,
    posts: Layout,
}

impl Parts {
    /// Makes them away from the runtime's threads: to lock a GB of memory takes a good part of a
    /// second.
    async fn make(device: &Device, spec: &LinkSpec) -> Result<Self, RdmaError> {
        let (lands, posts) = (Layout::new(spec.lands()), Layout::new(spec.posts()));
        let receives = lands.buffers() + posts.buffers() + 1; // values, credits, the end
        let depths = Depths { sends: SENDS_MAX, receives };
        check_room(device, depths, [&lands, &posts])?;
        let (context, port) = (Arc::clone(&device.context), device.port);
        let making = move || Self::make_now(&context, port, depths, (lands, posts));
        tokio::task::spawn_blocking(making).await.unwrap_or_else(|error| {
            Err(RdmaError::Verb { verb: "registering memory", cause: error.to_string() })
        })
    }

    fn make_now(
        context: &Arc<Context>,
        port: u8,
        depths: Depths,
        (lands, posts): (Layout, Layout),
    ) -> Result<Self, RdmaError> {
        let domain = ProtectionDomain::new(context)?;
        let completions = CompletionQueue::new(context, depths.sends + depths.receives)?;
        let pair = QueuePair::new(&domain, &completions, depths, port)?;
        for _ in 0..depths.receives {
            pair.receive()?;
        }
        let landing = MemoryRegion::new(&domain, Memory::new(lands.bytes)?, Access::Land)?;
        let staging = Staging::new(&domain, posts.bytes)?;
        Ok(Self { pair, landing, staging, completions, lands, posts })
    }

    fn offer(&self, device: &Device, epoch: Epoch, sequence: u32) -> Offer {
        Offer {
            epoch,
            queue_pair: self.pair.number(),
            sequence,
            gid: device.gid(),
            lid: device.lid(),
            mtu: u8::try_from(device.view.mtu).unwrap_or(1),
            address: self.landing.address(),
            key: self.landing.remote_key(),
            bytes: u64::try_from(self.lands.bytes).unwrap_or(u64::MAX),
        }
    }

    fn connect(&self, device: &Device, offer: &Offer, sequence: u32) -> Result<(), String> {
        let posts = &self.posts;
        if u64::try_from(posts.bytes) != Ok(offer.bytes) {
            let (own, theirs) = (posts.bytes, offer.bytes);
            return Err(format!("it has {theirs} bytes for slots of {own} bytes"));
        }
        let Some(hop) = device.hop(offer.gid, offer.lid) else {
            let unlike = "use --rdma-device or a GID index to make the two alike";
            return Err(format!("{device} cannot address the peer's port: {unlike}"));
        };
        let peer = Peer {
            number: offer.queue_pair,
            sequence: offer.sequence & SEQUENCE_MASK,
            hop,
            mtu: device.view.mtu.min(u32::from(offer.mtu)),
        };
        self.pair.connect(&peer, sequence).map_err(|error| error.to_string())
    }

    fn start(
        self,
        table: Table,
        device: &Device,
        spec: &LinkSpec,
        offer: &Offer,
    ) -> Result<Started, LinkError> {
        let failed = |error: std::io::Error| LinkError::Closed {
            peer: spec.peer,
            cause: format!("cannot wait for the device: {error}"),
        };
        let (queue, posts) = unbounded_channel();
        let (arrivals, landed) = unbounded_channel();
        let (released, releases) = unbounded_channel();
        let (reader, writing) = table.into_parts();
        let memory = Arc::clone(self.landing.memory());
        let region = Remote { address: offer.address, key: offer.key };
        let waiting = Waiting {
            queue: self.completions.identity(),
            completions: Completions::new(self.completions).map_err(failed)?,
            events: device.events.follow().map_err(failed)?,
            posts,
            releases,
            probe: driver::probe_interval(),
            reader,
            _writing: writing,
        };
        let sinks = (arrivals, released);
        let driver = Driver {
            pair: self.pair,
            _landing: self.landing,
            outgoing: Outgoing::new(self.posts.clone(), region, self.staging),
            incoming: Incoming::new(offer.epoch, self.lands, memory, spec.landing(), sinks),
            waiting,
            peer: spec.peer,
            port: device.port,
            unexplained: false,
        };
        Ok(Started { driver, layout: self.posts, queue, landed })
    }
}

/// Whether the device has room for a link.
fn check_room(device: &Device, depths: Depths, layouts: [&Layout; 2]) -> Result<(), RdmaError> {
    let Limits { work_requests_max, completions_max, region_bytes_max } = device.limits;
    let count = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
    let [lands, posts] = layouts;
    let slots = lands.places.len().max(posts.places.len());
    let queue = u64::from(depths.sends.max(depths.receives));
    let completions = u64::from(depths.sends) + u64::from(depths.receives);
    for (what, needed, limit) in [
        ("slots that a link can number", count(slots), count(SLOTS_MAX)),
        ("requests to a queue (max_qp_wr)", queue, work_requests_max.into()),
        ("completions to a queue (max_cqe)", completions, completions_max.into()),
        ("bytes to a region (max_mr_size)", count(lands.bytes), region_bytes_max),
        ("bytes to a message", count(CHUNK_BYTES), device.view.message_bytes_max.into()),
    ] {
        if needed > limit {
            let device = device.context.device().to_owned();
            return Err(RdmaError::TooSmall { device, what, needed, limit });
        }
    }
    Ok(())
}

/// A link whose task does not run yet.
struct Started {
    driver: Driver,
    layout: Layout,
    queue: UnboundedSender<Post>,
    landed: UnboundedReceiver<Arrival>,
}

impl Started {
    fn link(self, spec: &LinkSpec, hangup: &Hangup) -> RdmaLink {
        let Self { driver, layout, queue, landed } = self;
        let (held, dropped) = oneshot::channel::<()>();
        let lingered = async {
            dropped.await.ok(); // the other half is never used, only dropped
            tokio::time::sleep(LINGER).await;
        };
        let hung_up = hangup.wait();
        tokio::spawn(async move {
            tokio::select! {
                () = driver.serve() => {}
                () = lingered => {}
                () = hung_up => {}
            }
        });
        let (peer, posting) = (spec.peer, spec.posting());
        RdmaLink { peer, posting, layout, queue, landed, ended: None, _held: held }
    }
}

impl RdmaLink {
    fn closed(&self, cause: &str) -> LinkError {
        LinkError::Closed { peer: self.peer, cause: cause.to_owned() }
    }
}

impl Link for RdmaLink {
    fn post(&mut self, slot: Slot, call: Call, bytes: Bytes) -> Result<(), LinkError> {
        let unposted = |cause| LinkError::Unposted { peer: self.peer, cause };
        let (_, ticket) = self.posting.post(slot, call, bytes.len()).map_err(unposted)?;
        let number = self.layout.number(slot.site).expect("the ledger knows the same slots");
        let call = u16::try_from(call.0).map_err(|_| {
            unposted(format!("{call} is over {}, the last that RDMA numbers", u16::MAX))
        })?;
        let post = Post { slot: number, call, bytes, ticket };
        self.queue.send(post).map_err(|_| self.closed("the link broke before"))
    }

    fn poll_landed(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Landed, LinkError>> {
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
