//! Coordinators that are killed and started again: what they accepted is gone on with.

use super::{files, within};
use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::cluster::{Cluster, Process, coordinator, eventually, free_address, join, text};

/// Synchronous, so that its bits do not depend on where it was broken off.
pub(super) const JOB: [&str; 9] = [
    "red apple",
    "--json",
    "--seed=1",
    "--steps=40",
    "--cfg-split=off",
    "--mode=full-sync",
    "--bands=even",
    "--workers=2",
    "--width=256",
];

/// A coordinator that keeps its jobs in `folder`.
pub(super) fn serve(address: &str, folder: &Path) -> Process {
    let data = folder.join("data").display().to_string();
    let arguments = ["serve", "--insecure", "--http=off", "--listen", address, "--data", &data];
    let process = Process::start("coordinator", &arguments);
    process.wait_for("listening on");
    process
}

pub(super) fn cluster(folder: &Path) -> Cluster {
    let address = free_address().to_string();
    let coordinator = serve(&address, folder);
    let workers = vec![join(&address), join(&address)];
    let cluster =
        Cluster { address, coordinator, workers, identity: vec!["--insecure".to_owned()] };
    cluster.wait_for_workers(2);
    cluster
}

/// The events of a job that is followed to its end.
fn events(job: &mut Process) -> Vec<Value> {
    assert_eq!(job.wait(), Some(0), "{}", job.output());
    job.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn finished(events: &[Value]) -> &Value {
    let finished: Vec<&Value> = events.iter().filter(|each| each["event"] == "finished").collect();
    assert_eq!(finished.len(), 1, "{events:?}");
    finished[0]
}

#[test]
fn a_killed_coordinators_jobs_go_on_where_they_were_and_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    let submit = |cluster: &Cluster, name: &str| {
        cluster.submit(&[&JOB[..], &["--out", &within(folder.path(), name)]].concat())
    };
    let undisturbed = finished(&events(&mut submit(&cluster, "undisturbed.png")))["latent"].clone();
    let mut first = submit(&cluster, "first.png");
    first.wait_for(r#""event":"accepted""#);
    let mut second = submit(&cluster, "second.png");
    second.wait_for(r#""event":"accepted""#);
    first.wait_for(r#""call":12"#);

    cluster.coordinator.signal("KILL");
    cluster.coordinator.wait();
    let since = Instant::now();
    cluster.coordinator = serve(&cluster.address, folder.path());
    let heard = events(&mut first);
    let resumed = heard.iter().find(|event| event["event"] == "resumed").expect("it goes on");
    let from = resumed["recovery"]["resumed_at"].as_u64().unwrap();
    assert!(from >= 12, "{resumed}");
    assert_eq!(finished(&heard)["latent"], undisturbed, "after call {from}");
    let heard = events(&mut second);
    assert_eq!(finished(&heard)["latent"], undisturbed);
    assert_eq!(finished(&heard)["recoveries"].as_array().map(Vec::len), Some(0));
    writeln!(
        std::io::stderr(),
        "a coordinator was killed, and its jobs were done {:.1} s later: one from call {from}, one from \
         its place in the queue",
        since.elapsed().as_secs_f64()
    )
    .unwrap();
    let mut there = files(folder.path());
    there.sort();
    assert_eq!(there, ["data", "first.png", "second.png", "undisturbed.png"]);
}

/// A polite end leaves kept jobs to the next coordinator, too; a job whose client left is nobody's.
#[test]
fn a_coordinator_that_is_stopped_leaves_its_jobs_to_the_next_but_not_cancelled_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    let out = within(folder.path(), "first.png");
    let mut first = cluster.submit(&[&JOB[..], &["--out", &out]].concat());
    first.wait_for(r#""call":3"#);
    let out = within(folder.path(), "cancelled.png");
    let mut cancelled = cluster.submit(&[&JOB[..], &["--out", &out]].concat());
    cancelled.wait_for(r#""event":"accepted""#);
    cancelled.signal("INT");
    assert_eq!(cancelled.wait(), Some(130));
    assert!(eventually(|| cluster.status()["jobs"].as_array().map(Vec::len) == Some(1)));
    cluster.coordinator.signal("TERM");
    assert_eq!(cluster.coordinator.wait(), Some(0), "{}", cluster.coordinator.output());
    cluster.coordinator = serve(&cluster.address, folder.path());
    assert_eq!(cluster.status()["jobs"].as_array().map(Vec::len), Some(1));
    let heard = events(&mut first);
    assert!(heard.iter().any(|event| event["event"] == "resumed"), "{}", first.output());
}

#[test]
fn without_data_a_killed_coordinators_job_ends_with_an_error() {
    let mut cluster = Cluster::start(1);
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let arguments = ["red apple", "--steps", "500", "--json", "--out", &out];
    let mut job = cluster.submit(&arguments);
    job.wait_for(r#""event":"step""#);
    cluster.coordinator.signal("KILL");
    assert_eq!(job.wait(), Some(1));
    assert!(job.output().contains("lost the coordinator"), "{}", job.output());
    cluster.coordinator.wait();
}

#[test]
fn a_folder_is_for_one_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let first = serve(&free_address().to_string(), folder.path());
    let data = within(folder.path(), "data");
    let listen = ["serve", "--insecure", "--http=off", "--listen", "127.0.0.1:0"];
    let second = coordinator(&[&listen[..], &["--data", &data]].concat());
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains("another coordinator uses") && said.contains(&data), "{said}");
    drop(first);
}

/// Stops the threads of a process that compute, and those alone, until its standard input is closed: its sockets are served
/// on, as if one operation never came back.
const STOP_COMPUTING: &str = r#"
import ctypes, os, sys
libc, process = ctypes.CDLL(None, use_errno=True), sys.argv[1]
for thread in os.listdir(f"/proc/{process}/task"):
    name = open(f"/proc/{process}/task/{thread}/comm").read()
    if name.startswith(("compute", "engine")):
        for request in (0x4206, 0x4207):  # PTRACE_SEIZE, PTRACE_INTERRUPT
            if libc.ptrace(request, int(thread), 0, 0) != 0:
                sys.exit(f"cannot stop {name}: {os.strerror(ctypes.get_errno())}")
print("stopped", flush=True)
sys.stdin.read()
"#;

#[test]
fn a_computation_that_hangs_is_found_though_its_process_says_that_it_is_alive() {
    let cluster = Cluster::start(3);
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let mut job = cluster.submit(&[
        "red apple",
        "--json",
        "--steps",
        "60",
        "--cfg-split",
        "off",
        "--out",
        &out,
    ]);
    job.wait_for(r#""call":10"#);
    let mut stopping = Command::new("python3");
    stopping.args(["-c", STOP_COMPUTING, &cluster.workers[1].id().to_string()]);
    stopping.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let stopper = Process::spawn(&mut stopping);
    if !eventually(|| !stopper.output().is_empty()) || !stopper.output().contains("stopped") {
        let why = stopper.output();
        writeln!(std::io::stderr(), "skipped: a thread cannot be stopped here: {why}").unwrap();
        return;
    }
    let since = Instant::now();
    assert_eq!(job.wait(), Some(0), "{}", job.output());
    let said = job.output();
    // Its thread may have been stopped while it waited for a peer: then it is what its neighbours see.
    let found = ["its computation hangs", "no longer reach each other"];
    assert!(found.iter().any(|words| said.contains(words)), "{said}");
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    writeln!(
        std::io::stderr(),
        "a computation hung: the image was there {:.1} s later",
        since.elapsed().as_secs_f64()
    )
    .unwrap();
    drop(stopper); // what it stopped goes on, and joins again
    cluster.wait_for_workers(3);
}
