//! One link's two directions: what the compute thread and the waiter thread both do.

use super::super::ledger::{Ledger, Ticket};
use super::super::{Landed, LinkError, LinkSpec};
use super::buffers::{Mapped, Receiving, Regions, Sending};
use super::control::{Control, Descriptor};
use super::layout::Layout;
use crate::id::Rank;
use crate::message::DataHead;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;

/// A value that is to be sent.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) slot: usize,
    pub(super) head: DataHead,
    pub(super) bytes: Bytes,
    pub(super) _ticket: Ticket,
}

#[derive(Debug)]
struct Outgoing {
    sending: Sending,
    /// What waits for a buffer, oldest first. While there is any, `wants_credit` is set (W-2).
    queue: VecDeque<Posted>,
}

#[derive(Debug)]
struct Incoming {
    receiving: Receiving,
    ledger: Ledger,
    /// Who is to be woken. While there is one, `wants_values` is set (W-2).
    waker: Option<Waker>,
    over: Option<LinkError>,
}

/// What the compute thread, the waiter thread and the connection's task share of one link.
#[derive(Debug)]
pub(super) struct Traffic {
    peer: Rank,
    regions: Arc<Regions>,
    outgoing: Mutex<Outgoing>,
    incoming: Mutex<Incoming>,
    ended: OnceLock<LinkError>,
    dropped: AtomicBool,
    /// Tells the connection's task that it may close.
    pub(super) closing: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

impl Traffic {
    pub(super) fn new(spec: &LinkSpec, own: Mapped, peers: Mapped) -> Self {
        let (regions, sending, receiving) = Regions::new(own, peers);
        let (ledger, waker, over) = (spec.landing(), None, None);
        Self {
            peer: spec.peer,
            regions: Arc::new(regions),
            outgoing: Mutex::new(Outgoing { sending, queue: VecDeque::new() }),
            incoming: Mutex::new(Incoming { receiving, ledger, waker, over }),
            ended: OnceLock::new(),
            dropped: AtomicBool::new(false),
            closing: Notify::new(),
        }
    }

    /// Where what is posted goes.
    pub(super) fn posting(&self) -> &Layout {
        &self.regions.peers.layout
    }

    fn own(&self) -> Control<'_, AtomicU32> {
        self.regions.own.control()
    }

    /// The link carries nothing from now on; the first reason is kept.
    pub(super) fn end(&self, reason: LinkError) {
        self.ended.get_or_init(|| reason);
        self.own().ring();
        self.closing.notify_one();
    }

    /// Nobody reads or posts any more. What was posted is still sent.
    pub(super) fn drop_reader(&self) {
        self.dropped.store(true, Ordering::SeqCst);
        self.own().ring();
    }

    // Sending.

    /// Copies a value to the peer's region, or keeps it until there is room. Nothing, if the peer
    /// has closed its side.
    ///
    /// # Errors
    /// If the link broke.
    pub(super) fn post(&self, value: Posted) -> Result<(), LinkError> {
        match self.ended.get() {
            None => {}
            Some(LinkError::Closed { .. }) => return Ok(()),
            Some(_) => {
                let cause = "the link broke before".to_owned();
                return Err(LinkError::Closed { peer: self.peer, cause });
            }
        }
        let mut outgoing = lock(&self.outgoing);
        let behind = outgoing.queue.iter().any(|older| older.slot == value.slot);
        if !behind && self.send(&mut outgoing.sending, &value) {
            return Ok(());
        }
        outgoing.queue.push_back(value);
        if outgoing.queue.len() == 1 {
            self.own().want_credit(true);
        }
        drop(outgoing);
        self.flush(); // after saying that credit is wanted, look again (W-1)
        Ok(())
    }

    /// Sends what waits and has room by now: one value at a time, so that a post waits for no more
    /// than the copy of one.
    fn flush(&self) {
        loop {
            let mut outgoing = lock(&self.outgoing);
            let Outgoing { sending, queue } = &mut *outgoing;
            if self.ended.get().is_some() {
                queue.clear();
            }
            let sent = self.send_next(sending, queue);
            if queue.is_empty() {
                self.own().want_credit(false);
                return;
            }
            if !sent {
                return;
            }
        }
    }

    /// Sends the first value that has room and is the oldest of its slot.
    fn send_next(&self, sending: &mut Sending, queue: &mut VecDeque<Posted>) -> bool {
        let mut behind = BTreeSet::new();
        let next =
            queue.iter().position(|value| behind.insert(value.slot) && self.send(sending, value));
        next.and_then(|at| queue.remove(at)).is_some()
    }

    /// Sends a value if there is room for it.
    fn send(&self, sending: &mut Sending, value: &Posted) -> bool {
        let Posted { slot, head: DataHead { epoch, call, .. }, bytes, .. } = value;
        let slot = u32::try_from(*slot).expect("a slot per site at most");
        self.regions.send(sending, Descriptor { epoch: *epoch, slot, call: *call }, bytes)
    }

    // Receiving.

    /// See [`super::super::Link::poll_landed`].
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Landed, LinkError>> {
        let mut incoming = lock(&self.incoming);
        let mut known = incoming.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        loop {
            if let Some(over) = &incoming.over {
                return Poll::Ready(Err(over.clone()));
            }
            // Before the ring is looked at: what had landed by then is given out first (W-4).
            let ended = self.ended.get().cloned();
            match self.take(&mut incoming) {
                Ok(Some(landed)) => {
                    self.forget_waker(&mut incoming);
                    return Poll::Ready(Ok(landed));
                }
                Ok(None) => incoming.over = ended,
                Err(cause) => {
                    let broke = LinkError::Protocol { peer: self.peer, cause };
                    incoming.over = Some(broke.clone());
                    self.end(broke);
                }
            }
            if incoming.over.is_some() {
                continue;
            }
            if known {
                return Poll::Pending; // it was known before the ring was looked at (W-1)
            }
            incoming.waker = Some(cx.waker().clone());
            self.own().want_values(true);
            known = true;
        }
    }

    fn forget_waker(&self, incoming: &mut Incoming) -> Option<Waker> {
        let waker = incoming.waker.take()?;
        self.own().want_values(false);
        Some(waker)
    }

    /// The oldest value that landed and was not taken.
    fn take(&self, incoming: &mut Incoming) -> Result<Option<Landed>, String> {
        let Incoming { receiving, ledger, .. } = incoming;
        while let Some((place, descriptor)) = self.regions.next(receiving)? {
            let Descriptor { epoch, call, .. } = descriptor;
            let head = DataHead { epoch, site: place.site, call };
            let current = ledger.land(head, place.bytes)?.is_some();
            let slot = ledger.slot(place.site);
            let Some(bytes) = self.regions.lend(receiving, descriptor) else {
                return Err(format!("it wrote {call} of {slot} over one that is still read"));
            };
            if current {
                return Ok(Some(Landed { slot, call, bytes }));
            }
        }
        Ok(None)
    }

    // Waiting.

    /// Wakes, sends and discards until the link has ended, or is dropped and all is sent.
    pub(super) fn attend(&self) {
        loop {
            let heard = self.own().heard();
            if self.attend_once() {
                return;
            }
            self.own().sleep(heard);
        }
    }

    /// Does what there is to do. True: nothing more will come.
    fn attend_once(&self) -> bool {
        let ended = self.ended.get().is_some();
        let dropped = self.dropped.load(Ordering::SeqCst);
        self.flush();
        if dropped && !ended {
            self.discard();
        }
        let waker = {
            let mut incoming = lock(&self.incoming);
            let due = ended || self.regions.has_next(&incoming.receiving);
            if due { self.forget_waker(&mut incoming) } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        let sent = dropped && lock(&self.outgoing).queue.is_empty();
        if sent {
            self.closing.notify_one();
        }
        ended || sent
    }

    /// Takes what nobody will read, so that the peer's buffers come back and it can close, too.
    fn discard(&self) {
        let mut incoming = lock(&self.incoming);
        incoming.waker = None; // whose end would unset the word
        self.own().want_values(true); // before looking (W-1)
        loop {
            match self.take(&mut incoming) {
                Ok(Some(landed)) => drop(landed),
                Ok(None) => return,
                Err(cause) => return self.end(LinkError::Protocol { peer: self.peer, cause }),
            }
        }
    }
}
