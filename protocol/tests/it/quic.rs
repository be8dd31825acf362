//! What only QUIC can do wrong, and what it is there for.

use crate::authority::Authority;
use crate::fabric::{connections, endpoint, join, landed, slot, specs};
use crate::proxy::{Fate, Proxy};
use bytes::Bytes;
use protocol::codec::{self, Limits};
use protocol::message::DataHead;
use protocol::transport::quic::{
    Congestion, IDLE_TIMEOUT, KEEP_ALIVE, QuicEndpoint, QuicError, QuicLink, peer_identity,
};
use protocol::transport::{Hangup, Link, LinkError, OPEN_DEADLINE};
use protocol::{Call, Epoch, Rank, Site};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

const SIZES: [usize; 2] = [64, 4096];

/// Longer than anything takes here that happens at all.
const LONG: Duration = Duration::from_secs(20);

/// A link of rank 1, and the bare connection of its peer.
async fn link_and_peer() -> (QuicLink, quinn::Connection) {
    let [near, far] = connections().await;
    let [_, spec] = specs(&SIZES, [0, 0]);
    (QuicLink::start(far, &spec, &Hangup::default()), near)
}

/// Writes `bytes` on a new stream.
async fn write(peer: &quinn::Connection, bytes: &[u8]) -> quinn::SendStream {
    let mut stream = peer.open_uni().await.expect("opened");
    stream.write_all(bytes).await.expect("written");
    stream
}

fn frame(site: u16, call: u32, bytes: usize) -> Vec<u8> {
    let head = DataHead { epoch: Epoch(0), site: Site(site), call: Call(call) };
    codec::encode(&head, &vec![1; bytes], &Limits::data(1 << 20)).expect("encodes").to_vec()
}

async fn broken(link: &mut QuicLink, with: &str) {
    let error = landed(link).await.expect_err(with);
    assert!(matches!(error, LinkError::Protocol { peer: Rank(0), .. }), "{error:?}");
    assert!(error.to_string().contains(with), "{error} does not say: {with}");
}

#[tokio::test]
async fn garbage_breaks_the_link() {
    let over = [255; 64];
    let wrong_length = frame(0, 0, 8);
    let unknown = frame(7, 0, 64);
    let no_head = [&[3, 0, 0, 0, 64, 0, 0, 0][..], &[255; 67]].concat();
    for (bytes, cause) in [
        (&over[..], "over the limit"),
        (&wrong_length, "has 64 bytes, not 8"),
        (&unknown, "not in the slot table"),
        (&no_head, "not a DataHead"),
        (b"GET / HTTP/1.1\r\n\r\n", "over the limit"),
    ] {
        let (mut link, peer) = link_and_peer().await;
        let _stream = write(&peer, bytes).await;
        broken(&mut link, cause).await;
        let closed = timeout(LONG, peer.closed()).await.expect("closed on the peer");
        assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed}");
    }
}

#[tokio::test]
async fn l1_a_value_cut_anywhere_does_not_land() {
    let whole = frame(1, 0, 4096);
    for cut in [1, 7, 8, 10, 11, 12, 2000, whole.len() - 1] {
        let (mut link, peer) = link_and_peer().await;
        write(&peer, &whole[..cut]).await.finish().expect("open");
        let error = landed(&mut link).await.expect_err("nothing may land");
        let LinkError::Closed { peer: Rank(0), cause } = error else { panic!("{error:?}") };
        assert!(cause.contains("inside a value"), "{cause}");
    }
}

#[tokio::test]
async fn a_slot_keeps_to_its_stream_and_a_stream_to_its_slot() {
    let (mut link, peer) = link_and_peer().await;
    let _streams = [write(&peer, &frame(0, 0, 64)).await, write(&peer, &frame(0, 1, 64)).await];
    landed(&mut link).await.expect("the first");
    broken(&mut link, "site 0 of rank 0 came on a second stream").await;

    let (mut link, peer) = link_and_peer().await;
    let _stream = write(&peer, &[frame(0, 0, 64), frame(1, 0, 4096)].concat()).await;
    landed(&mut link).await.expect("the first");
    broken(&mut link, "site 1 of rank 0 came on another slot's stream").await;
}

#[tokio::test]
async fn l2_l3_a_version_lands_once_and_never_after_a_newer_one() {
    for second in [5, 4] {
        let (mut link, peer) = link_and_peer().await;
        let _stream = write(&peer, &[frame(0, 5, 64), frame(0, second, 64)].concat()).await;
        assert_eq!(landed(&mut link).await.expect("the first").call, Call(5));
        broken(&mut link, "came after call 5").await;
    }
}

#[tokio::test]
async fn streams_are_as_many_as_slots_and_none_before_the_hello_nor_after_the_end() {
    let [near, far] = connections().await;
    let more = |connection: quinn::Connection| async move {
        timeout(Duration::from_millis(200), connection.open_uni()).await
    };
    more(near.clone()).await.expect_err("no stream for a stranger");
    let [_, spec] = specs(&SIZES, [0, 0]);
    let mut link = QuicLink::start(far, &spec, &Hangup::default());
    let mut streams = Vec::new();
    for _ in 0..=SIZES.len() {
        streams.push(near.open_uni().await.expect("one for each slot, one for the end"));
    }
    more(near.clone()).await.expect_err("no more than those");
    for stream in &mut streams[1..] {
        stream.finish().expect("open");
    }
    streams[0].write_all(&frame(0, 0, 64)).await.expect("written");
    let _late = write(&near, &frame(1, 0, 4096)).await;
    let ended = loop {
        if let Err(error) = landed(&mut link).await {
            break error;
        }
    };
    assert!(ended.to_string().contains("it went on after its end"), "{ended}");
}

#[tokio::test]
async fn a_hangup_closes_both_ends_at_once_though_they_are_held() {
    let [near, far] = connections().await;
    let [one, other] = specs(&SIZES, [0, 0]);
    let hangup = Hangup::default();
    let mut near = QuicLink::start(near, &one, &hangup);
    let mut far = QuicLink::start(far, &other, &Hangup::default());
    hangup.now();
    for (link, cause) in [(&mut near, "aborted here"), (&mut far, "its run was aborted")] {
        let ended = landed(link).await;
        assert!(matches!(ended, Err(LinkError::Closed { .. })), "{ended:?}");
        let ended = ended.expect_err("closed").to_string();
        assert!(ended.contains(cause), "{ended}");
    }
}

/// Two links through a network that decides the fate of each packet.
async fn links_over(
    fate: impl FnMut(bool, &[u8]) -> Fate + Send + 'static,
) -> ([QuicLink; 2], Proxy) {
    let authority = Authority::new();
    let (caller, called) = (endpoint(&authority).await, endpoint(&authority).await);
    let proxy = Proxy::start(called.address(), fate).await;
    let [near, far] = join(&caller, &called, proxy.address).await;
    let [one, other] = specs(&SIZES, [0, 0]);
    let links = [
        QuicLink::start(near, &one, &Hangup::default()),
        QuicLink::start(far, &other, &Hangup::default()),
    ];
    (links, proxy)
}

/// As when it is killed: over UDP the system says nothing in the place of a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_noticed() {
    let dead = Arc::new(AtomicBool::new(false));
    let died = Arc::clone(&dead);
    let ([mut near, mut far], _proxy) =
        links_over(move |_, _| match died.load(Ordering::Relaxed) {
            true => Fate::IsLost,
            false => Fate::Passes,
        })
        .await;
    near.post(slot(0, 0), Call(0), Bytes::from_static(&[1; 64])).expect("posted");
    landed(&mut far).await.expect("landed");
    sleep(IDLE_TIMEOUT + 2 * KEEP_ALIVE).await;
    far.post(slot(1, 0), Call(0), Bytes::from_static(&[1; 64])).expect("posted");
    landed(&mut near).await.expect("a quiet link stays open");
    dead.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let ended = landed(&mut far).await.expect_err("nobody is there");
    assert!(ended.to_string().contains("nothing came from it for 2500 ms"), "{ended}");
    assert!(start.elapsed() < IDLE_TIMEOUT + 2 * KEEP_ALIVE, "{:?}", start.elapsed());
}

/// Several rounds, since a late packet may carry the other slot's value, too, when it is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_that_is_missing_holds_back_its_own_slot_only() {
    const LATE: Duration = Duration::from_millis(400);
    const LARGE: usize = 1000;
    let armed = Arc::new(AtomicBool::new(false));
    let late = Arc::new(AtomicUsize::new(0));
    let (arms, counts) = (Arc::clone(&armed), Arc::clone(&late));
    let ([mut near, mut far], _proxy) = links_over(move |forth, packet| {
        if forth && packet.len() >= LARGE && arms.load(Ordering::SeqCst) {
            counts.fetch_add(1, Ordering::SeqCst);
            return Fate::IsLate(LATE);
        }
        Fate::Passes
    })
    .await;
    let mut overtook = false;
    for call in 0..5 {
        sleep(LATE).await; // path discovery, which sends large packets, too, and the last round
        late.store(0, Ordering::SeqCst);
        armed.store(true, Ordering::SeqCst);
        near.post(slot(0, 1), Call(call), vec![1; SIZES[1]].into()).expect("posted");
        while late.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        near.post(slot(0, 0), Call(call), vec![0; SIZES[0]].into()).expect("posted");
        let first = landed(&mut far).await.expect("one of the two");
        armed.store(false, Ordering::SeqCst);
        let second = landed(&mut far).await.expect("the other");
        assert_eq!([first.call, second.call], [Call(call); 2]);
        overtook = first.slot.site == Site(0);
        if overtook {
            assert_eq!(second.bytes, vec![1; SIZES[1]], "it still lands whole");
            break;
        }
    }
    assert!(overtook, "the small slot waited for the large one's packet in every round");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_land_whole_and_in_order_though_one_packet_of_ten_is_lost() {
    let mut state = 20_240_219_u64;
    let lossy = move |_, _: &[u8]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if (state >> 33).is_multiple_of(10) { Fate::IsLost } else { Fate::Passes }
    };
    let ([mut near, mut far], _proxy) = links_over(lossy).await;
    for call in 0..60 {
        for (site, bytes) in (0..).zip(SIZES) {
            let byte = u8::try_from(call).expect("small");
            near.post(slot(0, site), Call(call), vec![byte; bytes].into()).expect("posted");
        }
        let mut left: Vec<_> = (0..2).map(Site).collect();
        while !left.is_empty() {
            let value = timeout(LONG, landed(&mut far)).await.expect("soon").expect("landed");
            assert_eq!(value.call, Call(call));
            assert!(value.bytes.iter().all(|byte| u32::from(*byte) == call), "{value:?}");
            left.retain(|site| *site != value.slot.site);
        }
    }
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_hung_up_on() {
    let authority = Authority::new();
    let (caller, called) = (endpoint(&authority).await, endpoint(&authority).await);
    let (connection, _unused) = caller.connect(called.address(), "worker").await.expect("called");
    let start = Instant::now();
    let met = async { called.accept().await.is_some() };
    let hung_up = async { connection.closed().await };
    tokio::select! {
        _ = met => panic!("it never said hello"),
        error = hung_up => assert!(matches!(error, quinn::ConnectionError::ApplicationClosed(_)), "{error}"),
    }
    assert!(start.elapsed() + Duration::from_secs(1) > OPEN_DEADLINE, "{:?}", start.elapsed());
}

async fn bound(authority: &Authority, trusted: &Authority) -> QuicEndpoint {
    let (server, client) = authority.member(trusted);
    let address = "127.0.0.1:0".parse().expect("an address");
    QuicEndpoint::bind(address, &server, &client, Congestion::default()).await.expect("bound")
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_on_either_side() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let called = bound(&ours, &ours).await;
    let refusing = bound(&theirs, &theirs).await;
    let error = refusing.connect(called.address(), "worker").await.expect_err("not theirs");
    assert!(matches!(error, QuicError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("certificates of the same cluster"), "{error}");

    // The caller trusts the called one, which does not trust it.
    let refused = bound(&theirs, &ours).await;
    let called_back = async {
        let (_, mut hello) = refused.connect(called.address(), "worker").await?;
        hello.writing.write_all(b"hello").await.ok(); // maybe refused by now
        let mut answer = [0];
        match hello.reading.read_exact(&mut answer).await {
            Ok(_) => panic!("nobody may answer"),
            Err(error) => {
                assert!(error.to_string().contains("same cluster"), "{error}");
                Ok::<_, QuicError>(())
            }
        }
    };
    tokio::select! {
        _ = called.accept() => panic!("nobody may be let in"),
        refused = called_back => refused.expect("its own check passes"),
    }
}

#[tokio::test]
async fn both_sides_see_whose_certificate_the_other_holds() {
    let [near, far] = connections().await;
    for connection in [&near, &far] {
        let shown = peer_identity(connection).expect("certificates on both sides");
        assert_eq!(shown.len(), 1);
    }
    assert_ne!(peer_identity(&near), peer_identity(&far));
}

#[tokio::test]
async fn nobody_there_and_a_port_in_use_are_named_with_a_way_out() {
    let authority = Authority::new();
    let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = mute.local_addr().expect("bound");
    let start = Instant::now();
    let error = endpoint(&authority).await.connect(address, "worker").await.expect_err("mute");
    assert!(matches!(error, QuicError::Silent { .. }), "{error:?}");
    for part in [&address.to_string(), "blocks UDP", "--fabric tcp"] {
        assert!(error.to_string().contains(part), "{error} does not say: {part}");
    }
    assert!(start.elapsed() <= OPEN_DEADLINE, "{:?}", start.elapsed());

    let (server, client) = authority.member(&authority);
    let bound = QuicEndpoint::bind(address, &server, &client, Congestion::default()).await;
    let error = bound.expect_err("in use").to_string();
    for part in [&address.to_string(), "in use", "--fabric tcp"] {
        assert!(error.contains(part), "{error} does not say: {part}");
    }
}

/// An endpoint that is dropped keeps its links, and a process can wait until they have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_can_wait_until_its_links_have_ended() {
    let authority = Authority::new();
    let (caller, called) = (endpoint(&authority).await, endpoint(&authority).await);
    let [near, far] = join(&caller, &called, called.address()).await;
    drop(called);
    let [one, other] = specs(&SIZES, [0, 0]);
    let mut near = QuicLink::start(near, &one, &Hangup::default());
    let mut far = QuicLink::start(far, &other, &Hangup::default());
    near.post(slot(0, 1), Call(0), vec![3; SIZES[1]].into()).expect("posted");
    drop(near);
    timeout(LONG, caller.wait_idle()).await.expect("idle once all was received");
    landed(&mut far).await.expect("received before");
    let ended = poll_fn(|cx| Poll::Ready(far.poll_landed(cx))).await;
    assert!(matches!(ended, Poll::Ready(Err(LinkError::Closed { .. }))), "{ended:?}");
}
