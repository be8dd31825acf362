//! Too little memory is said, and costs no more than it must.

use super::within;
use std::process::{Command, Stdio};
use tests::cluster::{Cluster, Process, binaries, command, text};

/// KiB of address space: enough to load the built-in model, and for small images.
const LIMIT: &str = "3000000";

#[test]
fn an_image_that_does_not_fit_fails_and_its_worker_renders_the_next() {
    let cluster = Cluster::start(0);
    let script = format!("ulimit -v {LIMIT}; exec \"$@\"");
    let mut shell = Command::new("sh");
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    shell.args(["-c", &script, "sh"]).arg(binaries().join("worker"));
    shell.args(["join", "--insecure", "--threads", "1", "--coordinator", &cluster.address]);
    let _worker = Process::spawn(&mut shell);
    cluster.wait_for_workers(1);
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let large = ["--width", "4096", "--height", "4096", "--decode", "whole"];
    let mut submit =
        cluster.submit(&[&["red apple", "--steps", "1", "--out", &out], &large[..]].concat());
    assert_eq!(submit.wait(), Some(1), "{}", submit.output());
    let said = submit.output();
    for part in ["MiB for the activations of this image cannot be had", "--decode tiled"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let mut submit = cluster.submit(&["red apple", "--steps", "1", "--out", &out]);
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
}

#[test]
fn a_worker_says_what_it_takes_and_refuses_what_is_less() {
    let cluster = Cluster::start(0);
    let arguments =
        ["join", "--insecure", "--coordinator", &cluster.address, "--threads", "1", "--memory"];
    let refused = command("worker").args(arguments).arg("1MiB").output().unwrap();
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("--memory 1 MiB"), "{said}");
    let wrong = command("worker").args(arguments).arg("12").output().unwrap();
    let said = text(&wrong.stderr);
    assert!(!wrong.status.success() && said.contains("such as 12GiB"), "{said}");
}
