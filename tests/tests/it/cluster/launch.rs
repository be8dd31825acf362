//! `coordinator launch`: over a real ssh server on loopback addresses, which are as many hosts; and without one.

use super::{files, within};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::cluster::{
    Cluster, Process, alive, children, command, eventually, free_address, signal, succeed, text,
};

/// Where Debian and others have it.
const SSHD: &str = "/usr/sbin/sshd";

/// An ssh server with keys of its own, which knows this user.
struct Hosts {
    folder: tempfile::TempDir,
    port: u16,
    _server: Process,
}

impl Hosts {
    /// Starts it; None, with the reason printed, where there is none.
    fn start() -> Option<Self> {
        if !Path::new(SSHD).exists() {
            println!("skipped: there is no {SSHD}: install openssh-server");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| within(folder.path(), name);
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &place(key)]);
            assert!(keygen.status().unwrap().success());
        }
        fs::copy(place("user.pub"), place("authorized")).unwrap();
        let port = free_address().port();
        let key = fs::read_to_string(place("host.pub")).unwrap();
        // The third host's key is unknown.
        fs::write(place("known"), format!("[127.0.0.1]:{port},[127.0.0.2]:{port} {key}")).unwrap();
        let mut settings = format!("Port {port}\nHostKey {}\n", place("host"));
        for host in 1..=3 {
            writeln!(settings, "ListenAddress 127.0.0.{host}").unwrap();
        }
        let authorized = format!("AuthorizedKeysFile {}\n", place("authorized"));
        let cache = format!("SetEnv XDG_CACHE_HOME={}\n", place("cache"));
        let rest = "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n";
        fs::write(place("config"), settings + &authorized + &cache + rest).unwrap();
        // It wants the folder that it locks itself into to be there, if it is root's.
        fs::create_dir_all("/run/sshd").ok();
        let mut server = Command::new(SSHD);
        server.args(["-D", "-e", "-f", &place("config")]);
        server.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let server = Process::spawn(&mut server);
        server.wait_for("Server listening on 127.0.0.3");
        Some(Self { folder, port, _server: server })
    }

    /// Starts `launch` with this file of hosts.
    fn launch(&self, hosts: &str, arguments: &[&str]) -> Process {
        let place = |name: &str| within(self.folder.path(), name);
        fs::write(place("hosts"), hosts).unwrap();
        let ssh = format!(
            "ssh -F none -i {} -o UserKnownHostsFile={} -o GlobalKnownHostsFile=none",
            place("user"),
            place("known")
        );
        let mut launch = command("coordinator");
        launch.args(["launch", "--hosts", &place("hosts"), "--listen", "0.0.0.0:0"]);
        launch.args(["--http=off", "--identity", &place("identity"), "--ssh", &ssh]);
        Process::spawn(launch.args(arguments))
    }

    /// The workers that run from copies of this server's.
    fn workers(&self) -> Vec<u32> {
        let cache = self.folder.path().join("cache");
        let program = |process: &u32| fs::read_link(format!("/proc/{process}/exe"));
        let ours = |process: &u32| program(process).is_ok_and(|path| path.starts_with(&cache));
        let all = fs::read_dir("/proc").unwrap();
        let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        all.filter(|process| ours(process) && alive(*process)).collect()
    }
}

/// The cluster that a launch made, once it is ready.
fn ready(launch: Process, folder: &Path) -> Cluster {
    launch.wait_for("ready, ");
    let printed = launch.output();
    let port = printed.split("listening on ").nth(1).unwrap().split(';').next().unwrap();
    let address = format!("127.0.0.1:{}", port.rsplit(':').next().unwrap());
    let identity = vec!["--identity".to_owned(), within(folder, "identity")];
    Cluster { address, coordinator: launch, workers: Vec::new(), identity }
}

fn renders(cluster: &Cluster, folder: &Path, workers: usize) {
    let out = within(folder, "apple.png");
    let workers = workers.to_string();
    let mut submit =
        cluster.submit(&["red apple", "--steps", "2", "--workers", &workers, "--out", &out]);
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
    assert!(files(folder).contains(&"apple.png".to_owned()));
}

/// Whether `word` is among what everybody can read of this machine's processes.
fn shown_by_ps(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| text(&line).contains(word))
}

#[test]
fn hosts_over_ssh_are_a_cluster_though_one_is_unreachable() {
    let Some(hosts) = Hosts::start() else { return };
    let (folder, port, closed) = (hosts.folder.path(), hosts.port, free_address().port());
    let three = format!(
        "# two that are there\n127.0.0.1:{port} threads=1\n127.0.0.2:{port} threads=1 # and\n127.0.0.1:{closed}\n"
    );
    let options = ["--copy", "--min-workers", "2"];
    let launch = hosts.launch(&three, &options);
    let mut cluster = ready(launch, folder);
    let printed = cluster.coordinator.output();
    for words in [
        "ready, 2 of 3 workers: coordinator submit --coordinator 127.0.0.1:",
        &format!("127.0.0.1:{closed}  0 of 1   unreachable    ssh: connect to host"),
        "Connection refused; look at",
        &format!("127.0.0.2:{port}  1 of 1   ok"),
        "made a cluster's identity in",
        "copying the worker, ",
        &format!("[127.0.0.2:{port}] "),
    ] {
        assert!(printed.contains(words), "{words:?}? {printed}");
    }
    assert!(!shown_by_ps("tessera1."), "a token is on a command line");
    assert_eq!(hosts.workers().len(), 2);
    renders(&cluster, folder, 2);
    cluster.coordinator.signal("INT");
    assert_eq!(cluster.coordinator.wait(), Some(130), "{}", cluster.coordinator.output());
    assert!(hosts.workers().is_empty(), "Ctrl-C leaves workers");
    let kept = succeed(&["token", "list", &cluster.identity[0], &cluster.identity[1]]);
    assert!(kept.contains("revoked") && !kept.contains("good for"), "{kept}");
    let (_, members) = kept.split_once("MEMBER").unwrap();
    assert!(!members.contains("worker"), "their keys are gone: {members}");

    // Again, and killed: nobody is left to end them.
    let cluster = ready(hosts.launch(&three, &options), folder);
    assert!(!cluster.coordinator.output().contains("copying"), "they are there");
    assert_eq!(hosts.workers().len(), 2);
    cluster.coordinator.signal("KILL");
    assert!(eventually(|| hosts.workers().is_empty()), "a killed launch leaves workers");
}

#[test]
fn a_launch_that_needs_all_says_of_each_host_what_is_wrong_and_leaves_nothing() {
    let Some(hosts) = Hosts::start() else { return };
    let (folder, port) = (hosts.folder.path(), hosts.port);
    let other = folder.join("other");
    fs::write(&other, "#!/bin/sh\necho worker 0.0.1\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let user = "nobody-of-tessera";
    let list = format!(
        "127.0.0.1:{port} threads=1\n127.0.0.3:{port}\n{user}@127.0.0.1:{port}\nlocalhost:{port}\n\
         [127.0.0.1]:{port} worker=/none\n[127.0.0.2]:{port} worker={}\n",
        other.display()
    );
    let mut launch = hosts.launch(&list, &["--copy"]);
    assert_eq!(launch.wait(), Some(1), "{}", launch.output());
    let printed = launch.output();
    let row = |host: &str, words: &str| {
        let found = printed.lines().any(|line| line.starts_with(host) && line.contains(words));
        assert!(found, "{host}: {words}? {printed}");
    };
    row(&format!("127.0.0.1:{port}"), "1 of 1   ok");
    row(&format!("127.0.0.3:{port}"), "unknown key    Host key verification failed.; call it once");
    row(&format!("{user}@127.0.0.1:{port}"), "access denied");
    row(&format!("[127.0.0.1]:{port}"), "no worker      there is none at /none; name it");
    row(&format!("[127.0.0.2]:{port}"), "other release  release 0.0.1 there, ");
    assert!(printed.contains("1 of 6 workers came, 6 are needed"), "{printed}");
    assert!(hosts.workers().is_empty(), "a launch that failed leaves workers");
}

#[test]
fn a_file_of_hosts_that_makes_no_sense_is_refused_with_its_line() {
    let scratch = tempfile::tempdir().unwrap();
    let file = within(scratch.path(), "hosts");
    fs::write(&file, "node1\nnode2 max_slots=2\n").unwrap();
    let identity = within(scratch.path(), "identity");
    let launch = |arguments: &[&str]| {
        let arguments = [&["launch", "--http=off", "--identity", &identity], arguments].concat();
        let mut launch = Process::start("coordinator", &arguments);
        assert_eq!(launch.wait(), Some(1));
        launch.output()
    };
    let said = launch(&["--hosts", &file]);
    assert!(said.contains(&file) && said.contains("line 2: \"max_slots=2\""), "{said}");
    assert!(launch(&[]).contains("--local N"));
    let said = launch(&["--local", "1", "--min-workers", "2", "--listen", "127.0.0.1:0"]);
    assert!(said.contains("--min-workers 2: only 1"), "{said}");
}

#[test]
fn workers_of_this_machine_stay_until_the_launch_ends_and_one_that_dies_comes_back() {
    let scratch = tempfile::tempdir().unwrap();
    let identity = within(scratch.path(), "identity");
    let options = ["launch", "--local", "2", "--threads", "1", "--listen", "127.0.0.1:0"];
    let launch = |ending: &str| {
        let launch = Process::start(
            "coordinator",
            &[&options[..], &["--http=off", "--identity", &identity]].concat(),
        );
        let cluster = ready(launch, scratch.path());
        cluster.wait_for_workers(2);
        let workers = children(cluster.coordinator.id());
        assert_eq!(workers.len(), 2, "{}", cluster.coordinator.output());
        if ending == "TERM" {
            renders(&cluster, scratch.path(), 2);
            signal(workers[0], "KILL");
            cluster.coordinator.wait_for("it starts again in 1 s");
            cluster.wait_for_workers(2);
        }
        let workers = children(cluster.coordinator.id());
        (cluster, workers)
    };
    let (mut cluster, workers) = launch("TERM");
    cluster.coordinator.signal("TERM");
    assert_eq!(cluster.coordinator.wait(), Some(143), "{}", cluster.coordinator.output());
    assert!(workers.iter().all(|worker| !alive(*worker)), "SIGTERM leaves workers");
    let (cluster, workers) = launch("KILL");
    cluster.coordinator.signal("KILL");
    assert!(eventually(|| workers.iter().all(|worker| !alive(*worker))));
}

#[test]
fn ranks_that_mpirun_or_slurm_start_find_each_other_in_a_shared_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| within(scratch.path(), name);
    let rank = |rank: &str, names: [&str; 2], share: &str| {
        let mut launch = command("coordinator");
        launch.args(["launch", "--environment", "--share", share, "--threads", "1"]);
        launch.args(["--http=off", "--address", "127.0.0.1", "--identity", &place("identity")]);
        launch.env(names[0], rank).env(names[1], "2").env("CUDA_VISIBLE_DEVICES", "");
        Process::spawn(&mut launch)
    };
    for names in
        [["SLURM_PROCID", "SLURM_NTASKS"], ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]]
    {
        let share = place(names[0]);
        // It may be there first.
        let mut second = rank("1", names, &share);
        let mut cluster = ready(rank("0", names, &share), scratch.path());
        assert!(cluster.coordinator.output().contains("ready, 2 of 2"));
        renders(&cluster, scratch.path(), 2);
        cluster.coordinator.signal("TERM");
        assert_eq!(cluster.coordinator.wait(), Some(143), "{}", cluster.coordinator.output());
        assert_eq!(second.wait(), Some(0), "{}", second.output());
        assert!(second.output().contains("rank 0 ended"), "{}", second.output());
        assert_eq!(files(&PathBuf::from(&share)), [] as [&str; 0], "something is left");
    }
    let output = command("coordinator")
        .args(["launch", "--environment", "--share", &place("share")])
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("SLURM_PROCID"), "{}", text(&output.stderr));
}
