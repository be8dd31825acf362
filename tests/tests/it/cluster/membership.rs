//! Workers that come, go, hang and come back; jobs that wait.

use super::{files, within};
use tests::cluster::{Cluster, Process, eventually, free_address, join, serve};

/// One branch, so that all workers exchange with each other.
const QUICK: [&str; 7] = ["red apple", "--steps", "3", "--cfg-split", "off", "--mode", "corrected"];
/// Minutes of work.
const LONG: [&str; 8] =
    ["red apple", "--steps", "500", "--width", "512", "--cfg-split", "off", "--json"];

fn assert_renders(cluster: &Cluster, workers: usize) {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let mut submit = cluster.submit(&[&QUICK[..], &["--out", &out]].concat());
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
    let plural = if workers == 1 { "" } else { "s" };
    let said = format!("{workers} worker{plural}, corrected");
    assert!(submit.output().contains(&said), "{said}? {}", submit.output());
    assert_eq!(files(folder.path()), ["apple.png"]);
}

fn long_job(cluster: &Cluster, out: &str) -> Process {
    let submit = cluster.submit(&[&LONG[..], &["--out", out]].concat());
    submit.wait_for(r#""event":"step""#);
    submit
}

#[test]
fn workers_join_before_the_coordinator_starts_and_after_it_restarts() {
    let address = free_address().to_string();
    let workers = vec![join(&address), join(&address)];
    workers[0].wait_for("no coordinator answers");
    let coordinator = serve(&address);
    let identity = vec!["--insecure".to_owned()];
    let mut cluster = Cluster { address, coordinator, workers, identity };
    cluster.wait_for_workers(2);
    assert_renders(&cluster, 2);

    cluster.coordinator.signal("KILL");
    cluster.coordinator.wait();
    cluster.coordinator = serve(&cluster.address);
    cluster.wait_for_workers(2);
    assert_renders(&cluster, 2);

    // A polite end, while a job is running.
    let folder = tempfile::tempdir().unwrap();
    let mut submit = long_job(&cluster, &within(folder.path(), "apple.png"));
    cluster.coordinator.signal("TERM");
    assert_eq!(cluster.coordinator.wait(), Some(0));
    assert_eq!(submit.wait(), Some(1));
    assert!(submit.output().contains("shutting down"), "{}", submit.output());
    assert!(files(folder.path()).is_empty());
    cluster.coordinator = serve(&cluster.address);
    cluster.wait_for_workers(2);
    assert_renders(&cluster, 2);
}

#[test]
fn several_submits_queue_and_all_finish() {
    let cluster = Cluster::start(2);
    let folder = tempfile::tempdir().unwrap();
    let names = ["a.png", "b.png", "c.png"];
    let steps = ["red apple", "--steps", "30", "--json"];
    let mut submits = names.map(|name| {
        cluster.submit(&[&steps[..], &["--out", &within(folder.path(), name)]].concat())
    });
    let seen = eventually(|| {
        let status = cluster.status();
        let jobs = status["jobs"].as_array().map_or(0, Vec::len);
        jobs == 3 && status["workers"].as_array().unwrap().iter().all(|w| !w["busy"].is_null())
    });
    assert!(seen, "status never showed a running job and two that wait");
    for submit in &mut submits {
        assert_eq!(submit.wait(), Some(0), "{}", submit.output());
    }
    let waited = submits.iter().filter(|submit| submit.output().contains(r#""event":"queued""#));
    assert!(waited.count() >= 2);
    let mut there = files(folder.path());
    there.sort();
    assert_eq!(there, names);
}

#[test]
fn a_job_waits_for_the_first_worker() {
    let mut cluster = Cluster::start(0);
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let mut submit = cluster.submit(&[&QUICK[..], &["--out", &out]].concat());
    submit.wait_for("waiting for workers: 0 of 1");
    cluster.workers.push(join(&cluster.address));
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
}

/// Speeds are measured at join and corrected by a job; a running job's plan can be read.
#[test]
fn status_shows_speeds_and_who_renders_what_and_why() {
    let cluster = Cluster::start(2);
    let speeds = || -> Vec<u64> {
        let workers = cluster.status()["workers"].as_array().unwrap().clone();
        workers.iter().map(|worker| worker["speed"].as_u64().unwrap()).collect()
    };
    let measured = speeds();
    assert!(measured.iter().all(|speed| *speed > 100), "{measured:?} pixels a second");
    assert_renders(&cluster, 2);
    assert_ne!(speeds(), measured, "a job corrects what was measured at join");

    let folder = tempfile::tempdir().unwrap();
    let mut submit = long_job(&cluster, &within(folder.path(), "apple.png"));
    let job = &cluster.status()["jobs"][0];
    let rows: Vec<u64> = job["bands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|band| band["rows"].as_u64().unwrap())
        .collect();
    assert_eq!((rows.len(), rows.iter().sum()), (2, 256_u64), "{job}");
    assert!(job["reason"].as_str().unwrap().contains("--cfg-split off"), "{job}");
    submit.signal("INT");
    submit.wait();
}

#[test]
fn a_client_that_leaves_cancels_its_job() {
    let cluster = Cluster::start(2);
    let folder = tempfile::tempdir().unwrap();
    for name in ["INT", "KILL"] {
        let mut submit = long_job(&cluster, &within(folder.path(), "apple.png"));
        submit.signal(name);
        assert_eq!(submit.wait(), if name == "INT" { Some(130) } else { None });
        assert_renders(&cluster, 2);
    }
    assert!(files(folder.path()).is_empty());
}
