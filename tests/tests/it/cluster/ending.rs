//! However it ends: no process is left, no partial file, and the exit code tells.

use super::{files, within};
use std::path::Path;
use tests::cluster::{Process, alive, children, eventually, signal};

/// A local run that would take minutes, once it is rendering, and its workers' numbers.
fn long_run(folder: &Path) -> (Process, Vec<u32>) {
    let (out, latents) = (within(folder, "apple.png"), within(folder, "latents"));
    let arguments = ["submit", "red apple", "--steps", "500", "--local", "2", "--out", &out];
    let process = Process::start(
        "coordinator",
        &[&arguments[..], &["--save-latents", &latents, "--width", "512", "--json"]].concat(),
    );
    process.wait_for(r#""event":"step""#);
    let workers = children(process.id());
    assert_eq!(workers.len(), 2, "{}", process.output());
    (process, workers)
}

fn assert_gone(workers: &[u32], folder: &Path) {
    for worker in workers {
        assert!(eventually(|| !alive(*worker)), "worker {worker} is still there");
    }
    assert!(files(folder).is_empty(), "left behind: {:?}", files(folder));
}

#[test]
fn ctrl_c_leaves_nothing() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let (mut process, workers) = long_run(folder.path());
        process.signal(name);
        assert_eq!(process.wait(), Some(code), "{}", process.output());
        // They are waited for, so they are gone when the command is.
        assert!(workers.iter().all(|worker| !alive(*worker)), "SIG{name} leaves workers");
        assert_gone(&workers, folder.path());
    }
}

/// Of one that something killed the other takes the work over; the last one's death is the end.
#[test]
fn the_last_worker_killed_ends_the_run_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, workers) = long_run(folder.path());
    signal(workers[0], "KILL");
    process.wait_for(r#""event":"resumed""#);
    signal(workers[1], "KILL");
    assert_eq!(process.wait(), Some(1), "{}", process.output());
    let named = format!("process {}", workers[1]);
    assert!(process.output().contains(&named), "{named}? {}", process.output());
    assert!(workers.iter().all(|worker| !alive(*worker)), "a worker is left");
    assert_gone(&workers, folder.path());
}

#[test]
fn a_killed_coordinator_takes_its_workers_along() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, workers) = long_run(folder.path());
    process.signal("KILL");
    assert_eq!(process.wait(), None);
    assert_gone(&workers, folder.path());
}

#[test]
fn an_error_before_the_first_step_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let arguments = ["submit", "red apple", "--width", "250", "--local", "2", "--out", &out];
    let mut process = Process::start("coordinator", &arguments);
    assert_eq!(process.wait(), Some(1));
    assert!(process.output().contains("224 and 256"), "{}", process.output());
    assert!(files(folder.path()).is_empty());
}
