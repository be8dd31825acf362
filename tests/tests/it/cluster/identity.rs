//! A cluster with identities: members work, strangers are refused, each with its reason in one line.

use super::{files, within};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::cluster::{
    Cluster, Process, command, coordinator, free_address, join_as, succeed, text,
};

/// Exact, so that its latent is the same whoever else knocks.
const JOB: [&str; 9] =
    ["red apple", "--steps", "40", "--seed", "7", "--mode", "full-sync", "--json", "--out"];

fn submit(cluster: &Cluster, out: &str) -> Process {
    cluster.submit(&[&JOB[..], &[out, "--workers", "2", "--bands", "even"]].concat())
}

/// The latent's hash, from the events of a job that has ended well.
fn latent(mut submit: Process) -> String {
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
    let printed = submit.output();
    let finished = printed.lines().find(|line| line.contains(r#""event":"finished""#));
    let finished: serde_json::Value = serde_json::from_str(finished.unwrap()).unwrap();
    finished["latent"].as_str().unwrap().to_owned()
}

/// Writes `bytes` to `address` and waits for the end of what is answered.
fn knock(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).ok(); // it may have hung up already
    stream.shutdown(std::net::Shutdown::Write).ok();
    stream.read_to_end(&mut Vec::new()).ok(); // a reset is an end, too
}

/// Starts a worker that must be refused, and gives what it says.
fn refused(address: &str, folder: &Path, arguments: &[&str]) -> String {
    let mut worker = join_as(address, folder, arguments);
    assert_eq!(worker.wait(), Some(1), "{}", worker.output());
    worker.output()
}

fn assert_names(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

/// How many lines the process logged with these words.
fn logged(process: &Process, words: &str) -> usize {
    process.output().lines().filter(|line| line.contains(words)).count()
}

#[test]
fn strangers_are_refused_with_their_reason_and_a_job_is_rendered_unharmed() {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| scratch.path().join(name);
    let mut cluster = Cluster::secure(&place("ours"), 3);
    let out = within(scratch.path(), "apple.png");
    let undisturbed = latent(submit(&cluster, &out));

    // A worker that is revoked loses its session within a second or two, and is told.
    let status = cluster.status();
    let third = status["workers"][2]["identity"].as_str().unwrap().to_owned();
    let since = Instant::now();
    let said = succeed(&["revoke", &third[..8], &cluster.identity[0], &cluster.identity[1]]);
    assert_names(&said, &["revoked the worker", &third[..8]]);
    cluster.wait_for_workers(2);
    println!("a revoked worker was out after {:.1} s", since.elapsed().as_secs_f64());
    let mut revoked = cluster.workers.pop().unwrap();
    assert_eq!(revoked.wait(), Some(1));
    assert_names(&revoked.output(), &["was revoked", &third[..8]]);

    let spent = cluster.token(&[]);
    let void = cluster.token(&["--for", "1s"]);
    std::thread::sleep(Duration::from_millis(1100)); // until it has expired
    let client = cluster.token(&["--role", "client"]);
    let theirs = Cluster::secure(&place("theirs"), 0);
    let foreign = theirs.token(&[]);

    let running = submit(&cluster, &out);
    running.wait_for(r#""event":"step""#);
    let here = &*cluster.address;
    // A token is worth one worker.
    let joined = join_as(here, &place("fourth"), &["--token", &spent]);
    joined.wait_for("became a member");
    drop(joined);
    let said = refused(here, &place("replayed"), &["--token", &spent]);
    assert_names(&said, &["does not take the token", "used up"]);
    assert_names(&refused(here, &place("late"), &["--token", &void]), &["expired"]);
    assert_names(&refused(here, &place("role"), &["--token", &client]), &["a client's", "--role"]);
    assert_names(&refused(here, &place("foreign"), &["--token", &foreign]), &["not of"]);
    assert_names(&refused(here, &place("none"), &[]), &["needs a token", "coordinator token"]);
    // Who was revoked stays out though its certificate is valid.
    let worker = place("ours").join("worker-2");
    assert_names(&refused(here, &worker, &[]), &["was revoked"]);
    // Another cluster's client.
    let (option, folder) = (&*theirs.identity[0], &*theirs.identity[1]);
    let output = coordinator(&["status", "--coordinator", here, option, folder]);
    assert_eq!(output.status.code(), Some(1));
    assert_names(&text(&output.stderr), &["not of"]);
    // Plain text, on the coordinator's door and on the workers'.
    let output = coordinator(&["status", "--coordinator", here, "--insecure"]);
    assert_names(&text(&output.stderr), &["leave --insecure out"]);
    let doors = status["workers"].as_array().unwrap().iter().take(2);
    let doors = doors.map(|worker| worker["address"].as_str().unwrap().to_owned());
    for door in doors.chain([here.to_owned()]) {
        for _ in 0..20 {
            knock(&door, b"");
            knock(&door, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            knock(&door, &[0xff; 4096]);
        }
    }
    assert_eq!(latent(running), undisturbed);

    for reason in [
        "was revoked",
        "used up",
        "has expired",
        "not of its cluster's authority",
        "does not speak TLS: ",
        "hung up during the TLS handshake",
    ] {
        let printed = cluster.coordinator.output();
        let refusal = |line: &&str| line.contains("refused 127.0.0.1: ") && line.contains(reason);
        assert_eq!(printed.lines().filter(refusal).count(), 1, "{reason}: {printed}");
    }
    for worker in &cluster.workers {
        for reason in ["does not speak TLS: ", "hung up during the TLS handshake"] {
            assert_eq!(logged(worker, reason), 1, "{reason}: {}", worker.output());
        }
    }
    cluster.wait_for_workers(2);
    assert_eq!(latent(submit(&cluster, &out)), undisturbed);
}

#[test]
fn a_worker_comes_back_without_its_token_and_a_client_becomes_a_member_elsewhere() {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| scratch.path().join(name);
    let mut cluster = Cluster::secure(&place("ours"), 1);
    cluster.workers.clear();
    cluster.wait_for_workers(0);
    cluster.workers.push(join_as(&cluster.address, &place("ours").join("worker-0"), &[]));
    cluster.wait_for_workers(1);

    // By a token in the environment, which leaves nothing behind.
    let token = cluster.token(&["--uses", "2", "--for", "10m"]);
    let mut worker = command("worker");
    worker.args(["join", "--coordinator", &cluster.address, "--listen", "127.0.0.1:0"]);
    worker.args(["--threads", "1", "--identity", "memory"]).env("TESSERA_TOKEN", &token);
    cluster.workers.push(Process::spawn(&mut worker));
    cluster.wait_for_workers(2);

    let token = cluster.token(&["--role", "client"]);
    let elsewhere = place("elsewhere").display().to_string();
    let enroll =
        ["enroll", "--coordinator", &cluster.address, "--identity", &elsewhere, "--token", &token];
    assert_names(&succeed(&enroll), &["the client", "is a member"]);
    assert_names(&text(&coordinator(&enroll).stderr), &["is there already"]);
    let status = ["status", "--coordinator", &cluster.address, "--identity", &elsewhere];
    assert_names(&succeed(&status), &["IDENTITY", "idle"]);

    let list = succeed(&["token", "list", &cluster.identity[0], &cluster.identity[1]]);
    assert_names(&list, &["1 of 2", "used up", "worker", "client"]);
    let listed = list.lines().find(|line| line.contains("1 of 2")).unwrap();
    let id = listed.split_whitespace().next().unwrap();
    let said = succeed(&["token", "revoke", id, &cluster.identity[0], &cluster.identity[1]]);
    assert_names(&said, &["revoked the token", id]);
    let list = succeed(&["token", "list", &cluster.identity[0], &cluster.identity[1]]);
    assert!(list.lines().any(|line| line.contains(id) && line.contains("revoked")), "{list}");
}

#[test]
fn a_cluster_is_made_once_and_a_token_crosses_in_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    let identity = within(scratch.path(), "ours");
    let init = ["init", "--keep", "--identity", &identity];
    assert_names(&succeed(&init), &["made the cluster"]);
    let authority = || std::fs::read(Path::new(&identity).join("authority.pem")).unwrap();
    let made = authority();
    assert_names(&succeed(&init), &["kept the cluster"]);
    assert_eq!(authority(), made);
    assert_names(&text(&coordinator(&["init", "--identity", &identity]).stderr), &["already"]);

    let address = free_address().to_string();
    let serve = ["serve", "--http=off", "--listen", &address, "--identity", &identity];
    let coordinator = Process::start("coordinator", &serve);
    coordinator.wait_for("listening on");
    let (file, kept) = (within(scratch.path(), "token"), scratch.path().join("worker"));
    let join = || join_as(&address, &kept, &["--token-file", &file]);
    assert_names(&refused(&address, &kept, &["--token-file", &file]), &["cannot read", &file]);
    let said = succeed(&["token", "--identity", &identity, "--out", &file]);
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(said.contains(&file) && !said.contains(token.trim()), "{said}");
    join().wait_for("from now on it joins without a token");
    // What is a member needs it no more.
    std::fs::remove_file(&file).unwrap();
    join().wait_for("this is the worker");
}

#[test]
fn what_is_not_protected_stays_on_loopback_and_is_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let none = scratch.path().join("none").display().to_string();
    let address = free_address().to_string();
    let serve = |arguments: &[&str]| {
        let output = coordinator(&[&["serve", "--http=off"], arguments].concat());
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let said = serve(&["--listen", &address, "--identity", &none]);
    assert_names(&said, &["coordinator init", "--insecure", &none]);
    let said = serve(&["--listen", "0.0.0.0:0", "--insecure"]);
    assert_names(&said, &["0.0.0.0:0", "coordinator init"]);
    let submit = ["submit", "a", "--coordinator", &address, "--identity", &none];
    let said = text(&coordinator(&submit).stderr);
    assert_names(&said, &["coordinator enroll", "--insecure", &none]);
    let join = ["join", "--insecure", "--coordinator", &address, "--listen", "0.0.0.0:0"];
    let mut worker = Process::start("worker", &join);
    assert_eq!(worker.wait(), Some(1));
    assert_names(&worker.output(), &["0.0.0.0:0", "--token"]);

    let cluster = Cluster::start(0);
    assert_names(&cluster.coordinator.output(), &["WARN", "insecure"]);
    let ours = scratch.path().join("ours").display().to_string();
    assert_names(&succeed(&["init", "--identity", &ours]), &["coordinator token", "worker join"]);
    let again = coordinator(&["init", "--identity", &ours]);
    assert_eq!(again.status.code(), Some(1));
    assert_names(&text(&again.stderr), &["is there already"]);
    let status = ["status", "--coordinator", &cluster.address, "--identity", &ours];
    assert_names(&text(&coordinator(&status).stderr), &["started with --insecure?"]);
}

/// A cluster of one command has identities of its own, and the user's folder nothing of it.
#[test]
fn local_workers_leave_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let home = scratch.path().join("home");
    let out = within(scratch.path(), "apple.png");
    let mut submit = command("coordinator");
    submit.args(["submit", "red apple", "--steps", "2", "--local", "2", "--out", &out]);
    submit.env_remove("TESSERA_IDENTITY").env("HOME", &home);
    submit.env_remove("XDG_CONFIG_HOME").env_remove("XDG_STATE_HOME");
    let mut submit = Process::spawn(&mut submit);
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
    assert_eq!(files(scratch.path()), ["apple.png"]);
}
