//! Clusters of two releases: the one before is played by processes that speak its wire version (`TESSERA_WIRE`).

use super::restart::JOB;
use super::within;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::cluster::{Cluster, Process, command, free_address};

/// The release of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    Before,
    This,
}

impl Release {
    fn command(self, name: &str) -> Command {
        let mut command = command(name);
        if self == Self::Before {
            command.env("TESSERA_WIRE", protocol::WIRE_VERSION_OLDEST.to_string());
        }
        command
    }

    fn serve(self, address: &str, folder: &Path) -> Process {
        let mut serve = self.command("coordinator");
        serve.args(["serve", "--insecure", "--http=off", "--listen", address, "--data"]);
        let process = Process::spawn(serve.arg(folder.join("data")));
        process.wait_for("listening on");
        process
    }

    fn join(self, address: &str) -> Process {
        let mut join = self.command("worker");
        join.args(["join", "--coordinator", address, "--insecure", "--listen", "127.0.0.1:0"]);
        Process::spawn(join.args(["--threads", "1"]))
    }

    fn submit(self, address: &str, out: &str) -> Process {
        let mut submit = self.command("coordinator");
        submit.arg("submit").args(JOB);
        Process::spawn(submit.args(["--coordinator", address, "--insecure", "--out", out]))
    }
}

/// The latent of a job that is followed to its end.
fn latent(job: &mut Process) -> Value {
    assert_eq!(job.wait(), Some(0), "{}", job.output());
    let mut events = job
        .output()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect::<Vec<Value>>();
    events.retain(|event| event["event"] == "finished");
    events.pop().expect("it finished")["latent"].clone()
}

fn cluster(folder: &Path, coordinator: Release, workers: [Release; 2]) -> Cluster {
    let address = free_address().to_string();
    let coordinator = coordinator.serve(&address, folder);
    let workers = workers.map(|release| release.join(&address)).into();
    let cluster =
        Cluster { address, coordinator, workers, identity: vec!["--insecure".to_owned()] };
    cluster.wait_for_workers(2);
    cluster
}

#[test]
fn a_cluster_is_upgraded_one_process_at_a_time_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| within(folder.path(), name);
    let mut cluster = cluster(folder.path(), Release::Before, [Release::Before; 2]);
    let undisturbed =
        latent(&mut Release::Before.submit(&cluster.address, &out("undisturbed.png")));

    // The coordinator, while one job is rendered and another waits.
    let mut first = Release::Before.submit(&cluster.address, &out("first.png"));
    first.wait_for(r#""event":"accepted""#);
    let mut second = Release::Before.submit(&cluster.address, &out("second.png"));
    second.wait_for(r#""event":"accepted""#);
    first.wait_for(r#""call":8"#);
    cluster.coordinator.signal("TERM");
    assert_eq!(cluster.coordinator.wait(), Some(0), "{}", cluster.coordinator.output());
    cluster.coordinator = Release::This.serve(&cluster.address, folder.path());
    assert_eq!(latent(&mut first), undisturbed);
    let spoken = format!("wire {} is spoken", protocol::WIRE_VERSION_OLDEST);
    cluster.coordinator.wait_for(&spoken);

    // The workers, one after the other, while the second is rendered: first with one of each release.
    second.wait_for(r#""call":3"#);
    for leaves in 0..2 {
        cluster.workers.push(Release::This.join(&cluster.address));
        cluster.wait_for_workers(3);
        let leaving = &mut cluster.workers[leaves];
        leaving.signal("TERM");
        assert_eq!(leaving.wait(), Some(0), "{}", leaving.output());
    }
    assert_eq!(latent(&mut second), undisturbed);

    // Clients of both.
    for (release, name) in [(Release::Before, "before.png"), (Release::This, "this.png")] {
        assert_eq!(latent(&mut release.submit(&cluster.address, &out(name))), undisturbed);
    }
}

#[test]
fn workers_and_clients_may_be_newer_than_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path(), Release::Before, [Release::Before, Release::This]);
    let spoken = format!("wire {} is spoken", protocol::WIRE_VERSION_OLDEST);
    cluster.workers[1].wait_for(&spoken);
    let out = |name: &str| within(folder.path(), name);
    let older = latent(&mut Release::Before.submit(&cluster.address, &out("before.png")));
    assert_eq!(latent(&mut Release::This.submit(&cluster.address, &out("this.png"))), older);
}

#[test]
fn a_version_that_nobody_speaks_is_refused_at_once() {
    for (name, arguments) in [("coordinator", &["status"][..]), ("worker", &["info"])] {
        let output = command(name).env("TESSERA_WIRE", "3").args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains("TESSERA_WIRE") && told.contains("`3`"),
            "{told}"
        );
    }
}
