//! What only sockets can do wrong, and how the links of a run come to be.

use crate::fabric::{bound, landed, over, plan, sites, slot, sockets, specs};
use protocol::codec::{self, Limits};
use protocol::handshake::PeerHandshake;
use protocol::message::{DataHead, PeerAnswer};
use protocol::plan::{Fabric, Plan};
use protocol::tls::Security;
use protocol::transport::tcp::TcpLink;
use protocol::transport::{Endpoint, Hangup, LinkError, Links, OPEN_DEADLINE};
use protocol::{Call, Epoch, FaultKind, Rank, Site};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SIZES: [usize; 2] = [64, 4096];

/// What the link says after the peer wrote `bytes` and then, maybe, closed.
async fn answer_to(bytes: &[u8], close: bool) -> LinkError {
    let [mut near, far] = sockets().await;
    let [_, spec] = specs(&SIZES, [0, 0]);
    let mut link = TcpLink::start(over(far), &spec, &Hangup::default());
    near.write_all(bytes).await.expect("written");
    if close {
        near.shutdown().await.expect("shut down");
    }
    landed(&mut link).await.expect_err("nothing may land")
}

fn frame(site: u16, call: u32, bytes: usize) -> Vec<u8> {
    let head = DataHead { epoch: Epoch(0), site: Site(site), call: Call(call) };
    codec::encode(&head, &vec![1; bytes], &Limits::data(1 << 20)).expect("encodes").to_vec()
}

#[tokio::test]
async fn garbage_breaks_the_link() {
    let over = [255; 64];
    let wrong_length = frame(0, 0, 8);
    let unknown = frame(7, 0, 64);
    let no_head = [&[3, 0, 0, 0, 64, 0, 0, 0][..], &[255; 67]].concat();
    for bytes in [&over[..], &wrong_length, &unknown, &no_head, b"GET / HTTP/1.1\r\n\r\n"] {
        let error = answer_to(bytes, false).await;
        assert!(matches!(error, LinkError::Protocol { peer: Rank(0), .. }), "{error:?}");
    }
}

#[tokio::test]
async fn l1_a_value_cut_anywhere_does_not_land() {
    let whole = frame(1, 0, 4096);
    for cut in [1, 7, 8, 10, 11, 12, 2000, whole.len() - 1] {
        let error = answer_to(&whole[..cut], true).await;
        let LinkError::Closed { peer: Rank(0), cause } = error else { panic!("{error:?}") };
        assert!(cause.contains("inside a value"), "{cause}");
    }
}

/// Two buffers for each slot, by parity of the call; a value that is still held is never overwritten.
#[tokio::test]
async fn values_land_in_the_two_buffers_of_their_slot() {
    let [mut near, far] = sockets().await;
    let [_, spec] = specs(&SIZES, [0, 0]);
    let mut link = TcpLink::start(over(far), &spec, &Hangup::default());
    let mut first = Vec::new();
    let mut held = None;
    for call in 0..8 {
        near.write_all(&frame(1, call, 4096)).await.expect("written");
        let bytes = landed(&mut link).await.expect("landed").bytes;
        let place = bytes.as_ptr().addr();
        match call {
            0 | 1 => first.push(place),
            2..5 => assert_eq!(place, first[usize::try_from(call % 2).expect("0 or 1")], "{call}"),
            5 => held = Some(bytes),
            7 => assert_ne!(Some(place), held.as_ref().map(|held| held.as_ptr().addr())),
            _ => {}
        }
    }
    assert_eq!(held.expect("kept").as_ref(), &[1; 4096][..]);
}

#[tokio::test]
async fn l2_l3_a_version_lands_once_and_never_after_a_newer_one() {
    for second in [5, 4] {
        let [mut near, far] = sockets().await;
        let [_, spec] = specs(&SIZES, [0, 0]);
        let mut link = TcpLink::start(over(far), &spec, &Hangup::default());
        near.write_all(&[frame(0, 5, 64), frame(0, second, 64)].concat()).await.expect("written");
        assert_eq!(landed(&mut link).await.expect("the first").call, Call(5));
        let error = landed(&mut link).await.expect_err("not newer");
        assert!(matches!(error, LinkError::Protocol { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_third_version_that_nobody_can_be_ready_for_breaks_the_link() {
    let [mut near, far] = sockets().await;
    let [_, spec] = specs(&SIZES, [0, 0]);
    let mut link = TcpLink::start(over(far), &spec, &Hangup::default());
    for call in 0..3 {
        near.write_all(&frame(0, call, 64)).await.expect("written");
    }
    near.read_u8().await.expect_err("the link is closed before anything is polled");
    for call in 0..2 {
        assert_eq!(landed(&mut link).await.expect("the first two").call, Call(call));
    }
    let error = landed(&mut link).await.expect_err("the third");
    assert!(matches!(error, LinkError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_hangup_closes_both_ends_at_once_though_they_are_held() {
    let [near, far] = sockets().await;
    let [one, other] = specs(&SIZES, [0, 0]);
    let hangup = Hangup::default();
    let mut near = TcpLink::start(over(near), &one, &hangup);
    let mut far = TcpLink::start(over(far), &other, &Hangup::default());
    hangup.now();
    for link in [&mut near, &mut far] {
        let ended = landed(link).await;
        assert!(matches!(ended, Err(LinkError::Closed { .. })), "{ended:?}");
    }
}

async fn listeners(count: usize) -> Vec<Endpoint> {
    let mut listeners = Vec::new();
    for _ in 0..count {
        let address = "127.0.0.1:0".parse().expect("an address");
        listeners.push(bound(address, Security::Insecure, vec![Fabric::Tcp]).await);
    }
    listeners
}

fn plan_of(listeners: &[Endpoint]) -> Plan {
    let addresses: Vec<_> = listeners.iter().map(Endpoint::address).collect();
    plan(2, &addresses)
}

async fn open(listener: &Endpoint, plan: &Plan, rank: u16) -> Result<Links, LinkError> {
    let opened = listener.open(plan, Rank(rank), &sites(&SIZES)).await;
    opened.map(|(links, _)| links)
}

#[tokio::test]
async fn four_ranks_link_up_though_some_start_late() {
    let listeners = listeners(4).await;
    let plan = plan_of(&listeners);
    let late = |rank: u16, wait_ms| {
        let (listener, plan) = (&listeners[usize::from(rank)], &plan);
        async move {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            open(listener, plan, rank).await.expect("linked")
        }
    };
    let (a, b, c, d) = tokio::join!(late(0, 200), late(1, 100), late(2, 0), late(3, 50));
    let mut all = [a, b, c, d];
    for (own, links) in (0_u16..).zip(&mut all) {
        let peers: Vec<u16> = links.iter().map(|(peer, _)| peer.0).collect();
        assert_eq!(peers, (0..4).filter(|peer| *peer != own).collect::<Vec<_>>());
        for (_, link) in links {
            link.post(slot(own, 0), Call(0), vec![u8::try_from(own).expect("small"); 64].into())
                .expect("posted");
        }
    }
    for (peer, link) in all.iter_mut().flatten() {
        let landed = landed(link.as_mut()).await.expect("landed");
        assert_eq!(landed.slot, slot(peer.0, 0));
        assert_eq!(u16::from(landed.bytes[0]), peer.0);
    }
}

#[tokio::test]
async fn ranks_that_disagree_refuse_each_other() {
    let listeners = listeners(2).await;
    let plan = plan_of(&listeners);
    let mut other = plan.clone();
    other.spec.seed += 1;
    let ends = tokio::join!(open(&listeners[0], &plan, 0), open(&listeners[1], &other, 1));
    for (end, peer) in [(ends.0, 1), (ends.1, 0)] {
        let Err(LinkError::Refused { peer: refused, fault }) = end else { panic!("{end:?}") };
        assert_eq!((refused, fault.kind), (Rank(peer), FaultKind::PlanMismatch));
    }
}

#[tokio::test]
async fn strangers_and_other_ranks_do_not_disturb_a_run() {
    let listeners = listeners(2).await;
    let plan = plan_of(&listeners);
    let handshake = PeerHandshake::new(&plan, &sites(&SIZES), Rank(1));
    let mut not_me = handshake.hello(Rank(0));
    not_me.from = Rank(0);
    let mut misdirected = handshake.hello(Rank(0));
    misdirected.to = Rank(5);
    let mut future = handshake.hello(Rank(0));
    future.wire += 1;
    let disturb = async {
        let mut garbage = TcpStream::connect(listeners[0].address()).await.expect("connected");
        garbage.write_all(&[200; 100]).await.expect("written");
        for (hello, kind) in [
            (not_me, FaultKind::Protocol),
            (misdirected, FaultKind::Protocol),
            (future, FaultKind::VersionMismatch),
        ] {
            let mut stream = TcpStream::connect(listeners[0].address()).await.expect("connected");
            let hello = codec::encode(&hello, &[], &Limits::GREETING).expect("encodes");
            stream.write_all(&hello).await.expect("written");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("an answer and an end");
            let answer = codec::decode_body(&answer[8..]).expect("an answer");
            let PeerAnswer::Refused(fault) = answer else { panic!("{answer:?}") };
            assert_eq!(fault.kind, kind, "{fault}");
        }
        open(&listeners[1], &plan, 1).await.expect("linked")
    };
    let (links, _) = tokio::join!(open(&listeners[0], &plan, 0), disturb);
    assert_eq!(links.expect("linked").len(), 1);
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_named_at_once() {
    let mut listeners = listeners(2).await;
    let plan = plan_of(&listeners);
    let upper = listeners.pop().expect("two");
    let gone = listeners.pop().expect("one").address();
    tokio::time::sleep(Duration::from_millis(20)).await; // the port closes
    let start = Instant::now();
    let error = open(&upper, &plan, 1).await.expect_err("nobody to call");
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_peer_that_never_calls_is_named_at_the_deadline() {
    let listeners = listeners(2).await;
    let plan = plan_of(&listeners);
    let start = Instant::now();
    let error = open(&listeners[0], &plan, 0).await.expect_err("nobody calls");
    assert_eq!(error.unopened(), [Rank(1)], "{error:?}");
    let took = start.elapsed();
    assert!((OPEN_DEADLINE..2 * OPEN_DEADLINE).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_caller_whose_run_never_starts_is_sent_away() {
    let listeners = listeners(2).await;
    let plan = plan_of(&listeners);
    let error = open(&listeners[1], &plan, 1).await.expect_err("rank 0 never starts");
    assert_eq!(error.unopened(), [Rank(0)], "{error:?}");
}
