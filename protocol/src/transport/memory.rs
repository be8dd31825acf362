//! Links within one process: for tests, and the reference of what every fabric promises.

use super::ledger::{Ledger, LinkSpec, Ticket};
use super::{Landed, Link, LinkError, Links};
use crate::id::{Call, Rank, Slot};
use crate::message::DataHead;
use crate::plan::{Plan, SiteSpec, SlotTable};
use bytes::Bytes;
use std::collections::VecDeque;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The links of all ranks of `plan` to each other, by rank.
///
/// With a seed, values are late and overtake those of other slots, differently for each seed.
#[must_use]
pub fn mesh(plan: &Plan, sites: &[SiteSpec], seed: Option<u64>) -> Vec<Links> {
    let ranks: Vec<Rank> = plan.ranks().collect();
    let tables: Vec<SlotTable> =
        ranks.iter().map(|rank| SlotTable::new(plan, sites, *rank)).collect();
    let mut links: Vec<Links> = ranks.iter().map(|_| Links::new()).collect();
    for (lower, upper) in
        ranks.iter().flat_map(|upper| ranks.iter().map(move |lower| (*lower, *upper)))
    {
        if lower < upper {
            let spec =
                |own: Rank, peer| LinkSpec::new(plan.run.epoch, own, peer, &tables[own.index()]);
            let salt = u64::from(lower.0) << 16 | u64::from(upper.0);
            let seed = seed.map(|seed| seed ^ salt << 32);
            let (low, up) = pair(&spec(lower, upper), &spec(upper, lower), seed);
            links[lower.index()].push((upper, Box::new(low)));
            links[upper.index()].push((lower, Box::new(up)));
        }
    }
    for links in &mut links {
        links.sort_by_key(|(peer, _)| *peer);
    }
    links
}

/// Both ends of one link. With a seed, values are late and overtake those of other slots.
#[must_use]
pub fn pair(one: &LinkSpec, other: &LinkSpec, seed: Option<u64>) -> (MemoryLink, MemoryLink) {
    let (to_other, from_one) = unbounded_channel();
    let (to_one, from_other) = unbounded_channel();
    let shuffle = |side: u64| seed.map(|seed| Shuffle { state: seed ^ side });
    (
        MemoryLink::new(one, to_other, from_other, shuffle(1)),
        MemoryLink::new(other, to_one, from_one, shuffle(2)),
    )
}

/// One end of a link within one process.
#[derive(Debug)]
pub struct MemoryLink {
    peer: Rank,
    posting: Ledger,
    landing: Ledger,
    to_peer: UnboundedSender<Value>,
    from_peer: UnboundedReceiver<Value>,
    arrived: VecDeque<Value>,
    shuffle: Option<Shuffle>,
    ended: Option<LinkError>,
}

#[derive(Debug)]
struct Value {
    head: DataHead,
    bytes: Bytes,
    _ticket: Ticket,
}

impl MemoryLink {
    fn new(
        spec: &LinkSpec,
        to_peer: UnboundedSender<Value>,
        from_peer: UnboundedReceiver<Value>,
        shuffle: Option<Shuffle>,
    ) -> Self {
        Self {
            peer: spec.peer,
            posting: spec.posting(),
            landing: spec.landing(),
            to_peer,
            from_peer,
            arrived: VecDeque::new(),
            shuffle,
            ended: None,
        }
    }

    /// The value to look at next; Ready(None) once the peer is gone and nothing is left.
    fn poll_value(&mut self, cx: &mut Context<'_>) -> Poll<Option<Value>> {
        let mut open = true;
        while let Poll::Ready(value) = self.from_peer.poll_recv(cx) {
            let Some(value) = value else {
                open = false;
                break;
            };
            self.arrived.push_back(value);
        }
        if self.arrived.is_empty() {
            return if open { Poll::Pending } else { Poll::Ready(None) };
        }
        let Some(shuffle) = &mut self.shuffle else {
            return Poll::Ready(self.arrived.pop_front());
        };
        if shuffle.late() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let at = shuffle.pick(&self.arrived);
        Poll::Ready(self.arrived.remove(at))
    }

    fn land(&mut self, value: Value) -> Result<Option<Landed>, LinkError> {
        let Value { head, bytes, .. } = value;
        match self.landing.land(head, bytes.len()) {
            Ok(Some(_)) => {
                Ok(Some(Landed { slot: self.landing.slot(head.site), call: head.call, bytes }))
            }
            Ok(None) => Ok(None),
            Err(cause) => Err(LinkError::Protocol { peer: self.peer, cause }),
        }
    }
}

impl Link for MemoryLink {
    fn post(&mut self, slot: Slot, call: Call, bytes: Bytes) -> Result<(), LinkError> {
        let (head, ticket) = self
            .posting
            .post(slot, call, bytes.len())
            .map_err(|cause| LinkError::Unposted { peer: self.peer, cause })?;
        let value = Value { head, bytes, _ticket: ticket };
        self.to_peer.send(value).ok(); // void if the peer has closed its side
        Ok(())
    }

    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Landed, LinkError>> {
        loop {
            if let Some(error) = &self.ended {
                return Poll::Ready(Err(error.clone()));
            }
            match std::task::ready!(self.poll_value(cx)).map(|value| self.land(value)) {
                Some(Ok(Some(landed))) => return Poll::Ready(Ok(landed)),
                Some(Ok(None)) => {}
                Some(Err(error)) => self.ended = Some(error),
                None => {
                    let (peer, cause) = (self.peer, String::new());
                    self.ended = Some(LinkError::Closed { peer, cause });
                }
            }
        }
    }
}

/// Delays and reorders values across slots, never within one; always the same for one seed.
#[derive(Debug)]
struct Shuffle {
    state: u64,
}

impl Shuffle {
    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn late(&mut self) -> bool {
        self.next().is_multiple_of(4)
    }

    /// The oldest value of a slot drawn at random.
    fn pick(&mut self, arrived: &VecDeque<Value>) -> usize {
        let count = u64::try_from(arrived.len()).unwrap_or(u64::MAX);
        let drawn = usize::try_from(self.next() % count).unwrap_or(0);
        let site = arrived[drawn].head.site;
        arrived.iter().position(|value| value.head.site == site).unwrap_or(drawn)
    }
}
