//! What only links over RDMA can do wrong. A device is needed: soft-RoCE serves, and
//! `tests/tools/run-rxe.sh` runs a program beside one. Elsewhere the tests say that they are skipped.

mod fault;
mod machine;

use crate::fabric::{Fabric, landed, over, slot, sockets, specs};
use bytes::Bytes;
use protocol::codec::Limits;
use protocol::transport::rdma::{Agreement, Device, Offer, RdmaLink, RdmaOptions, establish};
use protocol::transport::stream::{FrameReader, FrameWriter};
use protocol::transport::{Hangup, Link, LinkError, LinkSpec};
use protocol::{Call, FaultKind, Rank};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// The device that a test is to use, where there is one.
const DEVICE: &str = "RXE_DEV";

pub(crate) struct Rdma;

impl Fabric for Rdma {
    fn large_values(&self) -> u32 {
        150 // software under emulation moves 14 to 23 MiB/s
    }

    fn missing(&self) -> Option<String> {
        missing()
    }

    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2] {
        let hangups = [Hangup::default(), Hangup::default()];
        pair(specs, &hangups).await.map(|link| Box::new(link) as Box<dyn Link>)
    }
}

/// Why there is nothing to try here.
fn missing() -> Option<String> {
    match std::env::var_os(DEVICE) {
        Some(_) => None,
        None => Some(format!("{DEVICE} names no RDMA device; run it with tests/tools/run-rxe.sh")),
    }
}

/// Leaves a test that needs a device, loudly, where there is none.
macro_rules! needs_device {
    () => {
        if let Some(why) = crate::rdma::missing() {
            println!("skipped: {why}");
            return;
        }
    };
}
use needs_device;

fn options() -> RdmaOptions {
    RdmaOptions { device: std::env::var(DEVICE).ok(), ..RdmaOptions::default() }
}

fn device() -> Device {
    Device::open(&options()).expect("a device")
}

async fn pair(specs: &[LinkSpec; 2], hangups: &[Hangup; 2]) -> [RdmaLink; 2] {
    let [one, other] = sockets().await;
    join([one, other], specs, hangups).await.map(|link| link.expect("linked"))
}

/// Both ends of a link over two sockets that lead to each other.
async fn join(
    [one, other]: [TcpStream; 2],
    specs: &[LinkSpec; 2],
    hangups: &[Hangup; 2],
) -> [Result<RdmaLink, LinkError>; 2] {
    let device = device();
    let one = establish(over(one), &device, &specs[0], &hangups[0]);
    let other = establish(over(other), &device, &specs[1], &hangups[1]);
    let (one, other) = tokio::join!(one, other);
    [one, other]
}

/// Two sockets that lead to each other by way of this test, which alters the offers of the second
/// for the first, and keeps either open when the other ends.
async fn by_way_of(alter: fn(&mut Offer)) -> [TcpStream; 2] {
    let ([one, near], [far, other]) = (sockets().await, sockets().await);
    let ((near_reads, near_writes), (far_reads, far_writes)) =
        (near.into_split(), far.into_split());
    tokio::spawn(async move {
        let mut reads = FrameReader::new(near_reads, Limits::GREETING);
        let mut writes = FrameWriter::new(far_writes, Limits::GREETING);
        while let Ok(Some((message, _))) = reads.next::<Agreement>().await {
            writes.send(&message, &[]).await.expect("passed on");
        }
        std::future::pending::<()>().await;
    });
    tokio::spawn(async move {
        let mut reads = FrameReader::new(far_reads, Limits::GREETING);
        let mut writes = FrameWriter::new(near_writes, Limits::GREETING);
        while let Ok(Some((mut message, _))) = reads.next::<Agreement>().await {
            if let Agreement::Offer(offer) = &mut message {
                alter(offer);
            }
            writes.send(&message, &[]).await.expect("passed on");
        }
        std::future::pending::<()>().await;
    });
    [one, other]
}

fn is_closed(ended: &Result<protocol::transport::Landed, LinkError>, cause: &str) -> bool {
    matches!(ended, Err(LinkError::Closed { cause: said, .. }) if said.contains(cause))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buffer_that_is_being_read_is_not_written_to() {
    needs_device!();
    let [mut one, mut other] = pair(&specs(&[4096], [0, 0]), &Default::default()).await;
    let value = |call: u8| Bytes::from(vec![call; 4096]);
    let mut held = Vec::new();
    for call in 0..2 {
        one.post(slot(0, 0), Call(call.into()), value(call)).expect("posted");
        held.push(landed(&mut other).await.expect("landed"));
    }
    for call in 2..4 {
        one.post(slot(0, 0), Call(call.into()), value(call)).expect("posted");
    }
    let early = tokio::time::timeout(Duration::from_millis(500), landed(&mut other)).await;
    assert!(early.is_err(), "{early:?} landed while both buffers were held");
    assert_eq!((&held[0].bytes, &held[1].bytes), (&value(0), &value(1)));
    drop(held.remove(1)); // the second is free, but no value overtakes another
    let early = tokio::time::timeout(Duration::from_millis(500), landed(&mut other)).await;
    assert!(early.is_err(), "{early:?} overtook another");
    drop(held);
    for call in 2..4 {
        let landed = landed(&mut other).await.expect("landed");
        assert_eq!((landed.call, landed.bytes), (Call(call.into()), value(call)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_may_be_left_out() {
    needs_device!();
    let [mut one, mut other] = pair(&specs(&[64], [0, 0]), &Default::default()).await;
    let mut before = None;
    for call in (0..20).step_by(2) {
        let value = Bytes::from(vec![u8::try_from(call).expect("small"); 64]);
        one.post(slot(0, 0), Call(call), value.clone()).expect("posted");
        let landed = landed(&mut other).await.expect("landed");
        assert_eq!((landed.call, &landed.bytes), (Call(call), &value));
        before = Some(landed); // held until the next has landed
    }
    assert!(before.is_some());
    let late = one.post(slot(0, 0), Call(1 << 16), vec![0; 64].into()).expect_err("too late");
    assert!(late.to_string().contains("call 65536 is over 65535"), "{late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_outlive_their_link() {
    needs_device!();
    let hangups = [Hangup::default(), Hangup::default()];
    let [mut one, mut other] = pair(&specs(&[40_000], [0, 0]), &hangups).await;
    one.post(slot(0, 0), Call(0), vec![9; 40_000].into()).expect("posted");
    let value = landed(&mut other).await.expect("landed").bytes;
    hangups[1].now();
    let ended = landed(&mut other).await;
    assert!(is_closed(&ended, "the run was aborted here"), "{ended:?}");
    let ended = landed(&mut one).await;
    assert!(is_closed(&ended, "its process or its run ended"), "{ended:?}");
    drop((one, other));
    assert!(value.iter().all(|byte| *byte == 9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_that_mean_other_slots_refuse_each_other() {
    needs_device!();
    let [_, larger] = specs(&[16], [0, 0]);
    let [spec, _] = specs(&[4096], [0, 0]);
    let ends = join(sockets().await, &[spec, larger], &Default::default()).await;
    for end in ends {
        let Err(LinkError::Refused { fault, .. }) = end else { panic!("{end:?}") };
        assert_eq!(fault.kind, FaultKind::PeerLost);
        assert!(fault.cause.contains("bytes for slots of"), "{fault}");
    }
}

/// How long this machine's processors have been busy, in all; most of soft-RoCE is the kernel's.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let counts = stat.lines().next().expect("a line for all processors").split_whitespace().skip(1);
    let counts: Vec<u32> = counts.map(|count| count.parse().expect("a number")).collect();
    let busy = [0, 1, 2, 5, 6].map(|at| counts[at]); // user, nice, system, interrupts hard and soft
    f64::from(busy.iter().sum::<u32>()) / 100.0 // in the kernel's units
}

/// Moves values of 1 MiB and says how fast, for a comparison with other programs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_of_large_values() {
    needs_device!();
    const BYTES: usize = 1 << 20;
    const COUNT: u32 = 48;
    let [mut one, mut other] = pair(&specs(&[BYTES], [0, 0]), &Default::default()).await;
    let value = Bytes::from(vec![7; BYTES]);
    let (start, busy) = (Instant::now(), busy_seconds());
    for call in 0..COUNT {
        one.post(slot(0, 0), Call(call), value.clone()).expect("posted");
        if call > 0 {
            assert_eq!(landed(&mut other).await.expect("landed").call, Call(call - 1));
        }
    }
    assert_eq!(landed(&mut other).await.expect("landed").call, Call(COUNT - 1));
    let seconds = start.elapsed().as_secs_f64();
    let (rate, busy) = (f64::from(COUNT) / seconds, busy_seconds() - busy);
    println!(
        "link: {COUNT} values of 1 MiB: {rate:.2} MiB/s, {:.0} s of processors per GiB",
        busy * 1024.0 / f64::from(COUNT)
    );
    assert_eq!(one.post(slot(0, 0), Call(COUNT), value), Ok(()));
    let last = landed(&mut other).await.expect("landed");
    assert_eq!((last.slot.from, last.bytes.len()), (Rank(0), BYTES));
}
