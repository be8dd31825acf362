//! Machines that cannot use RDMA, or no longer.

use super::{device, is_closed, needs_device, options, pair};
use crate::fabric::{landed, over, slot, sockets, specs};
use protocol::transport::rdma::{Device, RdmaError, RdmaOptions, establish};
use protocol::transport::{Hangup, Link, LinkError};
use protocol::{Call, Rank};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// What [`unprivileged_process`] is to find, in that process.
const FINDS: &str = "TESSERA_RDMA_FINDS";

/// Someone who may do nothing in particular.
const NOBODY: u32 = 65_534;

/// The network interface below a soft-RoCE device that a test may take down.
const INTERFACE: &str = "RXE_NETDEV";

#[test]
fn what_was_asked_for_and_is_not_there_is_named() {
    let asked = RdmaOptions { device: Some("hal9000".to_owned()), ..RdmaOptions::default() };
    let said = Device::open(&asked).expect_err("no such device").to_string();
    assert!(said.contains("no RDMA device hal9000: this machine has"), "{said}");
    needs_device!();
    let asked = RdmaOptions { port: Some(9), ..options() };
    let said = Device::open(&asked).expect_err("no such port").to_string();
    assert!(said.contains("no port 9"), "{said}");
    let asked = RdmaOptions { gid_index: Some(250), ..options() };
    let said = Device::open(&asked).expect_err("no such GID").to_string();
    assert!(said.contains("no RoCEv2 GID 250"), "{said}");
}

#[test]
fn an_ipv4_address_is_chosen_by_itself() {
    needs_device!();
    let Ok(address) = std::env::var("RXE_IP") else { return };
    let said = device().to_string();
    assert!(said.ends_with(&format!("::ffff:{address}")), "{said}");
}

/// Runs [`unprivileged_process`] as a user who may lock that many KiB of memory.
fn unprivileged(finds: &str, locked_kib: u32) {
    let tests = std::env::current_exe().expect("a program");
    let ended = Command::new("sh")
        .args(["-c", &format!("ulimit -l {locked_kib} && exec \"$0\" \"$@\"")])
        .arg(tests)
        .args(["rdma::machine::unprivileged_process", "--exact", "--nocapture"])
        .env(FINDS, finds)
        .current_dir("/")
        .uid(NOBODY)
        .status()
        .expect("started");
    assert!(ended.success(), "{ended}");
}

fn let_all_open_devices(mode: u32) {
    for entry in fs::read_dir("/dev/infiniband").expect("devices") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().contains("uverbs") {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("this is root's");
        }
    }
}

/// These become another user, and change who may open devices: for a machine of no other use.
#[test]
fn permissions_and_limits_are_named() {
    needs_device!();
    if std::env::var_os(INTERFACE).is_none() {
        println!("skipped: {INTERFACE} does not say that this machine is there for tests");
        return;
    }
    let_all_open_devices(0o600);
    unprivileged("no permission", 64);
    let_all_open_devices(0o666);
    unprivileged("memlock", 64);
}

/// What a user who is not root finds, in a process of its own.
#[tokio::test]
async fn unprivileged_process() {
    let Ok(finds) = std::env::var(FINDS) else { return };
    let device = match Device::open(&options()) {
        Err(error @ RdmaError::Forbidden { .. }) => {
            assert_eq!(finds, "no permission", "{error}");
            println!("{error}");
            return;
        }
        opened => opened.expect("may be opened"),
    };
    let [one, other] = sockets().await;
    let [spec, peer] = specs(&[3 << 20], [0, 0]);
    let hangup = Hangup::default();
    let (refused, told) = tokio::join!(
        establish(over(one), &device, &spec, &hangup),
        establish(over(other), &device, &peer, &hangup)
    );
    for (refused, peer) in [(refused, 1), (told, 0)] {
        let Err(LinkError::Refused { peer: refuser, fault }) = refused else {
            panic!("{refused:?}")
        };
        println!("{fault}");
        assert_eq!(refuser, Rank(peer));
        assert!(fault.cause.contains("6291456 bytes"), "{fault}");
        assert!(fault.cause.contains("allows this process 65536 bytes"), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_goes_down_ends_its_links() {
    needs_device!();
    let Ok(interface) = std::env::var(INTERFACE) else {
        println!("skipped: {INTERFACE} names no interface that may be taken down");
        return;
    };
    let [mut one, mut other] = pair(&specs(&[64], [0, 0]), &Default::default()).await;
    one.post(slot(0, 0), Call(0), vec![1; 64].into()).expect("posted");
    landed(&mut other).await.expect("landed");
    let link = |state: &str| {
        let set = Command::new("ip").args(["link", "set", &interface, state]).status();
        assert!(set.expect("ip runs").success(), "ip link set {interface} {state}");
    };
    let start = Instant::now();
    link("down");
    let ended = [landed(&mut one).await, landed(&mut other).await];
    let noticed = start.elapsed();
    let down = Device::open(&options()).map(|device| device.to_string());
    link("up");
    println!("a port that went down, after {noticed:?}: {ended:?}");
    // The end that notices first hangs up on the other, which may hear of that before it has noticed itself.
    assert!(ended.iter().all(|end| is_closed(end, "")), "{ended:?}");
    assert!(ended.iter().any(|end| is_closed(end, "port")), "{ended:?}");
    assert!(matches!(down, Err(RdmaError::PortDown { .. })), "{down:?}");
    while let Err(error) = Device::open(&options()) {
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
