//! Measures the links of a run that renders nothing.

use bytes::Bytes;
use protocol::plan::netcheck::{LARGE_BYTES, LARGE_SITES, LinkFigures, SMALL};
use protocol::transport::Links;
use protocol::{Call, Fault, Rank, Site, Slot};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Exchanges of one small value each way: enough for a mean that one late wake-up does not spoil.
const ROUNDS: u32 = 200;
/// How long large values are exchanged: long enough for a congestion window to open on a slow link.
const FLOOD: Duration = Duration::from_millis(800);

/// What is measured of the link of `own` to each other rank, all at once: first how long values of
/// few bytes take, then how many bytes a second land while as many are sent.
///
/// Ranks of one run do the same: each posts a call's values and waits for those of the call before,
/// as a displaced call does.
///
/// # Errors
/// If a link breaks, or the run is cancelled.
pub fn measure(
    own: Rank,
    links: Links,
    cancel: oneshot::Receiver<Fault>,
) -> Result<Vec<(Rank, LinkFigures)>, Fault> {
    let (landed, gone) = (BTreeMap::new(), BTreeMap::new());
    let mut exchange = Exchange { own, links, landed, gone, cancel };
    let go_on = Bytes::from(vec![0; 8]);
    let mut call = Call(0);
    exchange.swap(SMALL, &go_on, call, call)?; // links that were just opened are slow once
    let start = Instant::now();
    for _ in 0..ROUNDS {
        call = Call(call.0 + 1);
        exchange.swap(SMALL, &go_on, call, call)?;
    }
    let latency_us = start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
    let (calls, took) = exchange.flood(call)?;
    let landed = f64::from(calls) * f64::from(LARGE_SITES) * f64::from(LARGE_BYTES);
    let figures = LinkFigures { latency_us, bytes_per_second: landed / took.as_secs_f64() };
    Ok(exchange.links.iter().map(|(peer, _)| (*peer, figures)).collect())
}

struct Exchange {
    own: Rank,
    links: Links,
    landed: BTreeMap<(Rank, Site, Call), Bytes>,
    /// Whose link ended, and why: no fault until a value of its is missed, for ranks end apart.
    gone: BTreeMap<Rank, Fault>,
    cancel: oneshot::Receiver<Fault>,
}

impl Exchange {
    /// Exchanges large values for a while after call `before`; how many calls that were, and how long
    /// they took. Small values say who has had enough; all stop after the call in which all had.
    fn flood(&mut self, before: Call) -> Result<(u32, Duration), Fault> {
        let value = Bytes::from(vec![0x5a; LARGE_BYTES as usize]);
        let (start, mut calls) = (Instant::now(), 0);
        loop {
            calls += 1;
            let call = Call(before.0 + calls);
            let enough = u8::from(start.elapsed() > FLOOD);
            let said = Bytes::from(vec![enough; 8]);
            for site in 1..=LARGE_SITES {
                self.post(Site(site), &value, call)?;
            }
            let earlier = if calls > 1 { Some(Call(call.0 - 1)) } else { None };
            for site in 1..=LARGE_SITES {
                earlier.map_or(Ok(()), |earlier| self.take(Site(site), earlier).map(drop))?;
            }
            let all = self.swap(SMALL, &said, call, call)?;
            if enough == 1 && all.iter().all(|said| said.first() == Some(&1)) {
                for site in 1..=LARGE_SITES {
                    self.take(Site(site), call)?;
                }
                return Ok((calls, start.elapsed()));
            }
        }
    }

    /// Posts a value to all, and waits for one of all.
    fn swap(
        &mut self,
        site: Site,
        value: &Bytes,
        post: Call,
        take: Call,
    ) -> Result<Vec<Bytes>, Fault> {
        self.post(site, value, post)?;
        self.take(site, take)
    }

    fn post(&mut self, site: Site, value: &Bytes, call: Call) -> Result<(), Fault> {
        let slot = Slot { from: self.own, site };
        for (_, link) in &mut self.links {
            link.post(slot, call, value.clone()).map_err(|error| Fault::from(&error))?;
        }
        Ok(())
    }

    fn take(&mut self, site: Site, call: Call) -> Result<Vec<Bytes>, Fault> {
        let peers: Vec<Rank> = self.links.iter().map(|(peer, _)| *peer).collect();
        let mut values = Vec::new();
        for peer in peers {
            while !self.landed.contains_key(&(peer, site, call)) {
                if let Some(fault) = self.gone.get(&peer) {
                    return Err(fault.clone());
                }
                pollster::block_on(poll_fn(|cx| self.poll_landed(cx)))?;
            }
            values.extend(self.landed.remove(&(peer, site, call)));
        }
        Ok(values)
    }

    /// Ready once something landed.
    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if let Poll::Ready(fault) = Pin::new(&mut self.cancel).poll(cx) {
            let gone = |_| Fault::new(protocol::FaultKind::Cancelled, "the worker gave it up");
            return Poll::Ready(Err(fault.unwrap_or_else(gone)));
        }
        let mut any = false;
        for (peer, link) in &mut self.links {
            while !self.gone.contains_key(peer) {
                match link.poll_landed(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(landed)) => {
                        let key = (*peer, landed.slot.site, landed.call);
                        self.landed.insert(key, landed.bytes);
                    }
                    Poll::Ready(Err(error)) => {
                        self.gone.insert(*peer, Fault::from(&error));
                    }
                }
                any = true;
            }
        }
        if any { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::plan::{Band, Branch, Member, netcheck};
    use protocol::transport::memory;
    use protocol::{RunId, WorkerId};
    use std::net::{Ipv4Addr, SocketAddr};

    fn plan(ranks: u64) -> protocol::plan::Plan {
        let whole = Band { top: 0, rows: 1 };
        let member = |number| Member {
            worker: WorkerId(number),
            name: String::new(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            offers: Vec::new(),
            branch: Branch::Whole,
            band: whole,
            decodes: whole,
            identity: None,
        };
        netcheck::plan(RunId::default(), (0..ranks).map(member).collect(), Vec::new())
    }

    #[test]
    fn every_rank_measures_its_link_to_every_other() {
        let plan = plan(3);
        let links = memory::mesh(&plan, &netcheck::sites(), Some(7));
        let threads: Vec<_> = plan
            .ranks()
            .zip(links)
            .map(|(rank, links)| {
                let (held, cancel) = oneshot::channel();
                (held, std::thread::spawn(move || measure(rank, links, cancel)))
            })
            .collect();
        for (own, (_held, thread)) in (0..).zip(threads) {
            let measured = thread.join().unwrap().unwrap();
            let peers: Vec<u16> = measured.iter().map(|(peer, _)| peer.0).collect();
            assert_eq!(peers, (0..3).filter(|peer| *peer != own).collect::<Vec<_>>());
            assert!(measured.iter().all(|(_, link)| link.latency_us > 0.0));
            assert!(measured.iter().all(|(_, link)| link.bytes_per_second > 1e6), "{measured:?}");
        }
    }

    #[test]
    fn a_cancelled_measurement_ends() {
        let plan = plan(2);
        let mut links = memory::mesh(&plan, &netcheck::sites(), None);
        let (cancel, cancelled) = oneshot::channel();
        let fault = Fault::new(protocol::FaultKind::Cancelled, "enough");
        cancel.send(fault.clone()).unwrap();
        assert_eq!(measure(Rank(0), links.remove(0), cancelled), Err(fault));
    }
}
