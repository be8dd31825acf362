//! Peers that die, vanish, or do what they may not.

use super::{by_way_of, device, is_closed, join, needs_device, pair};
use crate::fabric::{landed, over, slot, sockets, specs};
use bytes::Bytes;
use protocol::Call;
use protocol::transport::rdma::establish;
use protocol::transport::{Hangup, Link, LinkError};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// The address of the process whose peer this one is, in a process that [`peer_process`] is.
const PEER_OF: &str = "TESSERA_RDMA_PEER_OF";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_opens_nothing() {
    needs_device!();
    let specs = specs(&[4096], [0, 0]);
    let sockets = by_way_of(|offer| offer.key ^= 0x5500).await;
    let [mut one, mut other] =
        join(sockets, &specs, &Default::default()).await.map(|link| link.expect("linked"));
    one.post(slot(0, 0), Call(0), vec![1; 4096].into()).expect("posted");
    for end in [&mut one, &mut other] {
        let ended = landed(end).await;
        assert!(matches!(ended, Err(LinkError::Protocol { .. })), "{ended:?}");
        println!("a wrong key: {}", ended.expect_err("matched"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_outside_the_region_is_not_written_to() {
    needs_device!();
    let specs = specs(&[4096], [0, 0]);
    let sockets = by_way_of(|offer| offer.address += 4096).await;
    let [mut one, mut other] =
        join(sockets, &specs, &Default::default()).await.map(|link| link.expect("linked"));
    for call in 0..2 {
        one.post(slot(0, 0), Call(call), vec![1; 4096].into()).expect("posted");
    }
    let shifted = landed(&mut other).await.expect("within the region").bytes;
    assert!(shifted.iter().all(|byte| *byte == 0), "its buffer is the one before");
    let ended = landed(&mut one).await;
    assert!(matches!(ended, Err(LinkError::Protocol { .. })), "{ended:?}");
}

/// A late write of an aborted run: its receiver hangs up, but the sender does not hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_a_late_write_of_an_aborted_run_lands_nowhere() {
    needs_device!();
    let (old_specs, new_specs) = (specs(&[4096], [3, 3]), specs(&[4096], [4, 4]));
    let hangups = [Hangup::default(), Hangup::default()];
    let [mut old, mut aborted] =
        join(by_way_of(|_| {}).await, &old_specs, &hangups).await.map(|link| link.expect("linked"));
    old.post(slot(0, 0), Call(0), vec![1; 4096].into()).expect("posted");
    assert_eq!(landed(&mut aborted).await.expect("landed").bytes[0], 1);
    hangups[1].now();
    let ended = landed(&mut aborted).await;
    assert!(is_closed(&ended, "the run was aborted here"), "{ended:?}");
    drop(aborted);
    // From now on its device sends this value again and again.
    let start = Instant::now();
    old.post(slot(0, 0), Call(1), vec![3; 4096].into()).expect("the sender does not know yet");

    let [mut one, mut other] = pair(&new_specs, &Default::default()).await;
    one.post(slot(0, 0), Call(0), vec![2; 4096].into()).expect("posted");
    let held = landed(&mut other).await.expect("landed").bytes;
    let ended = landed(&mut old).await;
    println!("a late write, after {:?}: {ended:?}", start.elapsed());
    assert!(is_closed(&ended, "transport retry counter exceeded"), "{ended:?}");
    assert!(held.iter().all(|byte| *byte == 2), "a value of the new run changed");
    one.post(slot(0, 0), Call(1), vec![4; 4096].into()).expect("posted");
    let next = landed(&mut other).await.expect("landed");
    assert_eq!((next.call, next.bytes), (Call(1), Bytes::from(vec![4; 4096])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_vanishes_is_noticed_without_a_post() {
    needs_device!();
    let hangups = [Hangup::default(), Hangup::default()];
    let [mut one, other] = join(by_way_of(|_| {}).await, &specs(&[64], [0, 0]), &hangups)
        .await
        .map(|link| link.expect("linked"));
    hangups[1].now();
    let start = Instant::now();
    let ended = landed(&mut one).await;
    println!("a vanished machine, after {:?}: {ended:?}", start.elapsed());
    assert!(is_closed(&ended, "transport retry counter exceeded"), "{ended:?}");
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_is_noticed_by_the_connection() {
    needs_device!();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut peer = Command::new(std::env::current_exe().expect("a program"))
        .args(["rdma::fault::peer_process", "--exact"])
        .env(PEER_OF, address.to_string())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let (socket, _) = listener.accept().await.expect("called");
    let [spec, _] = specs(&[4096], [0, 0]);
    let (device, hangup) = (device(), Hangup::default());
    let mut link = establish(over(socket), &device, &spec, &hangup).await.expect("linked");
    let value = landed(&mut link).await.expect("landed");
    assert_eq!((value.call, value.bytes[0]), (Call(0), 5));
    let start = Instant::now();
    peer.kill().expect("killed");
    peer.wait().expect("dead");
    let ended = landed(&mut link).await;
    println!("a killed peer, after {:?}: {ended:?}", start.elapsed());
    assert!(is_closed(&ended, "its process or its run ended"), "{ended:?}");
    link.post(slot(0, 0), Call(0), vec![0; 4096].into()).expect("void, but no error");
    assert!(value.bytes.iter().all(|byte| *byte == 5));
}

/// The peer of [`a_killed_peer_is_noticed_by_the_connection`], in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_process() {
    let Ok(address) = std::env::var(PEER_OF) else { return };
    let address: SocketAddr = address.parse().expect("an address");
    let socket = TcpStream::connect(address).await.expect("connected");
    let [_, spec] = specs(&[4096], [0, 0]);
    let (device, hangup) = (device(), Hangup::default());
    let mut link = establish(over(socket), &device, &spec, &hangup).await.expect("linked");
    link.post(slot(1, 0), Call(0), vec![5; 4096].into()).expect("posted");
    let ended = landed(&mut link).await;
    panic!("to be killed before {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_connection_ends_the_link() {
    needs_device!();
    let [one, mut other] = sockets().await;
    let [spec, _] = specs(&[64], [0, 0]);
    let (device, hangup) = (device(), Hangup::default());
    other.write_all(&[255; 64]).await.expect("written");
    let refused = establish(over(one), &device, &spec, &hangup).await;
    assert!(matches!(refused, Err(LinkError::Protocol { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_hangs_up_while_agreeing_is_no_link() {
    needs_device!();
    let [one, other] = sockets().await;
    let [spec, _] = specs(&[64], [0, 0]);
    let (device, hangup) = (device(), Hangup::default());
    drop(other);
    let refused = establish(over(one), &device, &spec, &hangup).await;
    assert!(matches!(refused, Err(LinkError::Closed { .. })), "{refused:?}");
}
