//! The promises L-1 to L-4 and the ends of links, for every fabric.

use crate::fabric::{Fabric, Memory, Quic, Shm, Tcp, Tls, landed, slot, specs};
use bytes::Bytes;
use protocol::transport::LinkError;
use protocol::{Call, Rank};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

const SIZES: [usize; 4] = [8, 256, 40_000, 3 << 20];

/// Bytes that say which value they are all of.
fn value(site: u16, call: u32, bytes: usize) -> Bytes {
    let seed = usize::from(site) * 31 + usize::try_from(call).expect("small") * 7;
    (0..bytes).map(|at| u8::try_from((seed + at * 13 + at / 251) % 251).expect("small")).collect()
}

async fn l1_values_land_whole_and_l3_in_order_within_a_slot(fabric: impl Fabric) {
    let [mut one, mut other] = fabric.pair(&specs(&SIZES, [0, 0])).await;
    let mut newest = BTreeMap::new();
    for call in 0..20 {
        for (site, bytes) in (0..).zip(SIZES) {
            one.post(slot(0, site), Call(call), value(site, call, bytes)).expect("posted");
            other.post(slot(1, site), Call(call), value(site, call, bytes)).expect("posted");
        }
        for _ in SIZES {
            for (link, from) in [(&mut one, 1), (&mut other, 0)] {
                let landed = landed(link.as_mut()).await.expect("landed");
                assert_eq!(landed.slot.from, Rank(from));
                let site = landed.slot.site.0;
                let bytes = SIZES[usize::from(site)];
                assert_eq!(landed.bytes, value(site, landed.call.0, bytes));
                let before = newest.insert((from, site), landed.call);
                assert!(before < Some(landed.call), "{landed:?} after {before:?}");
            }
        }
    }
    assert!(newest.values().all(|call| *call == Call(19)), "{newest:?}");
}

async fn posts_that_the_link_does_not_carry_are_refused(fabric: impl Fabric) {
    let [mut one, mut other] = fabric.pair(&specs(&SIZES, [0, 0])).await;
    let mut refused = |slot, call, bytes: usize, cause: &str| {
        let error = one.post(slot, Call(call), vec![0; bytes].into()).expect_err(cause);
        assert!(matches!(error, LinkError::Unposted { peer: Rank(1), .. }), "{error:?}");
        assert!(error.to_string().contains(cause), "{error} does not say: {cause}");
    };
    refused(slot(0, 9), 0, 8, "not in the slot table");
    refused(slot(1, 0), 0, 8, "not one of rank 0's");
    refused(slot(0, 0), 0, 16, "has 8 bytes, not 16");
    one.post(slot(0, 0), Call(4), Bytes::from_static(&[1; 8])).expect("posted");
    let mut refused = |call, cause: &str| {
        let posted = one.post(slot(0, 0), Call(call), Bytes::from_static(&[0; 8]));
        assert!(posted.as_ref().is_err_and(|e| e.to_string().contains(cause)), "{posted:?}");
    };
    refused(4, "call 4 of site 0 of rank 0 came after call 4");
    refused(3, "came after call 4");
    let only = landed(other.as_mut()).await.expect("landed");
    assert_eq!((only.call, &only.bytes[..]), (Call(4), &[1; 8][..]));
}

async fn l4_older_epochs_never_land(fabric: impl Fabric) {
    let [mut old, mut new] = fabric.pair(&specs(&SIZES, [3, 4])).await;
    for (site, bytes) in (0..).zip(SIZES) {
        old.post(slot(0, site), Call(0), vec![0; bytes].into()).expect("posted");
    }
    new.post(slot(1, 0), Call(0), Bytes::from_static(&[0; 8])).expect("posted");
    let broken = landed(old.as_mut()).await;
    assert!(matches!(broken, Err(LinkError::Protocol { peer: Rank(1), .. })), "{broken:?}");
    drop(old);
    let ended = landed(new.as_mut()).await;
    assert!(matches!(ended, Err(LinkError::Closed { peer: Rank(0), .. })), "{ended:?}");
}

async fn a_finished_rank_still_delivers_and_is_then_closed(fabric: impl Fabric) {
    let [mut one, mut other] = fabric.pair(&specs(&SIZES, [0, 0])).await;
    for call in 0..2 {
        for (site, bytes) in (0..).zip(SIZES) {
            one.post(slot(0, site), Call(call), value(site, call, bytes)).expect("posted");
        }
    }
    drop(one);
    for (site, bytes) in (0..).zip(SIZES) {
        let late = other.post(slot(1, site), Call(0), vec![0; bytes].into());
        assert_eq!(late, Ok(()), "a post to a rank that has finished is void");
    }
    for _ in 0..2 * SIZES.len() {
        let landed = landed(other.as_mut()).await.expect("landed before the end");
        let bytes = SIZES[usize::from(landed.slot.site.0)];
        assert_eq!(landed.bytes, value(landed.slot.site.0, landed.call.0, bytes));
    }
    for _ in 0..2 {
        let ended = landed(other.as_mut()).await;
        assert!(matches!(ended, Err(LinkError::Closed { peer: Rank(0), .. })), "{ended:?}");
    }
}

async fn thousands_of_large_values_pass(fabric: impl Fabric) {
    const BYTES: usize = 1 << 20;
    let [mut one, mut other] = fabric.pair(&specs(&[BYTES], [0, 0])).await;
    let mut bytes = vec![7; BYTES];
    for call in 0..fabric.large_values() {
        bytes[BYTES - 4..].copy_from_slice(&u32::to_le_bytes(call));
        one.post(slot(0, 0), Call(call), Bytes::copy_from_slice(&bytes)).expect("posted");
        if call > 0 {
            let landed = landed(other.as_mut()).await.expect("landed");
            assert_eq!(landed.call, Call(call - 1));
            assert_eq!(landed.bytes[BYTES - 4..], u32::to_le_bytes(call - 1));
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

async fn a_thread_outside_the_runtime_can_wait(fabric: impl Fabric) {
    let [mut one, mut other] = fabric.pair(&specs(&SIZES, [0, 0])).await;
    let compute = thread::spawn(move || {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        for call in 0..50 {
            let bytes = loop {
                match one.poll_landed(&mut Context::from_waker(&waker)) {
                    Poll::Ready(landed) => break landed.expect("landed").bytes,
                    Poll::Pending => thread::park(),
                }
            };
            one.post(slot(0, 2), Call(call), bytes).expect("posted");
        }
    });
    for call in 0..50 {
        let sent = value(2, call, SIZES[2]);
        other.post(slot(1, 2), Call(call), sent.clone()).expect("posted");
        assert_eq!(landed(other.as_mut()).await.expect("landed").bytes, sent);
    }
    compute.join().expect("the compute thread");
}

macro_rules! conforms {
    ($($(#[$only:meta])? $fabric:ident = $maker:expr),+ => $tests:tt) => {
        $($(#[$only])? mod $fabric {
            use super::{Fabric, Memory, Quic, Shm, Tcp, Tls};
            conforms!(@each $maker => $tests);
        })+
    };
    (@each $maker:expr => [$($test:ident),+ $(,)?]) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let _ = (Memory { seed: None }, Quic, Shm, Tcp, Tls);
            let fabric = $maker;
            match fabric.missing() {
                Some(why) => println!("skipped: {why}"),
                None => super::$test(fabric).await,
            }
        })+
    };
}

conforms!(
    memory = Memory { seed: None },
    shuffled = Memory { seed: Some(20_240_219) },
    tcp = Tcp,
    tls = Tls,
    shm = Shm,
    quic = Quic,
    #[cfg(feature = "rdma")]
    rdma = crate::rdma::Rdma
    => [
        l1_values_land_whole_and_l3_in_order_within_a_slot,
        posts_that_the_link_does_not_carry_are_refused,
        l4_older_epochs_never_land,
        a_finished_rank_still_delivers_and_is_then_closed,
        thousands_of_large_values_pass,
        a_thread_outside_the_runtime_can_wait,
    ]
);
