//! Bad input: a clear error that names the thing, the value and what to do.

use super::{files, within};
use bytes::BytesMut;
use protocol::codec::{self, Limits};
use protocol::message::{Greeting, Role};
use protocol::{Fault, FaultKind, Version, handshake};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tests::cluster::{Cluster, Process, command, coordinator, free_address, serve, text};
use tests::fixture;

/// Runs `submit --local 2` with these arguments, which must fail, and gives what it says.
fn refused(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "image.png");
    let base = ["submit", "red apple", "--local", "2"];
    let out = if arguments[0] == "--out" { &[][..] } else { &["--out", &out] };
    let output = coordinator(&[&base[..], out, arguments].concat());
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    assert!(files(folder.path()).is_empty(), "{arguments:?} left {:?}", files(folder.path()));
    said
}

fn assert_names(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

#[test]
fn values_that_cannot_be_rendered() {
    for (arguments, words) in [
        (&["--width", "250"][..], &["width 250", "224 and 256"][..]),
        (&["--height", "9000"], &["height 9000", "8192"]),
        (&["--height", "0"], &["height 0", "smallest"]),
        (&["--height", "16"], &["height 16", "2"]),
        (&["--steps", "0"], &["0 steps", "1 to 1000"]),
        (&["--guidance", "-1"], &["guidance"]),
        (&["--guidance", "NaN"], &["guidance NaN"]),
        (&["--scheduler", "dpm++"], &["dpm++", "ddim euler"]),
        (&["--mode", "fast"], &["fast", "full-sync"]),
        (&["--dtype", "int4"], &["int4", "bf16"]),
        (&["--seed", "x"], &["--seed", "x"]),
        (&["--workers", "2"], &["--workers"]),
        (&["--model", "/nowhere"], &["/nowhere"]),
        (&["--out", "/nowhere/a.png"], &["/nowhere/a.png"]),
        (&["--out", "a.jpg"], &["a.jpg", ".png"]),
        (&["--out", "a.png", "--save-latents", "a.png"], &["--save-latents", "a.png"]),
        (&["--save-latents", "/nowhere/latents"], &["/nowhere/latents"]),
    ] {
        assert_names(&refused(arguments), words);
    }
}

#[test]
fn a_damaged_checkpoint_names_file_and_tensor() {
    let scratch = tempfile::tempdir().unwrap();
    let model = fixture::variant(&fixture::golden("models/tiny-sdxl"), scratch.path());
    let weights = model.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let model = model.display().to_string();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert_names(&refused(&["--model", &model]), &["diffusion_pytorch_model.safetensors"]);
    let renamed = String::from_utf8_lossy(&bytes[..4096]).contains("conv_in.weight");
    assert!(renamed, "the header of the fixture moved");
    let at = bytes.windows(14).position(|name| name == b"conv_in.weight").unwrap();
    let mut damaged = bytes;
    damaged[at..at + 14].copy_from_slice(b"conv_im.weight");
    std::fs::write(&weights, damaged).unwrap();
    assert_names(&refused(&["--model", &model]), &["conv_in.weight"]);
    std::fs::remove_file(&weights).unwrap();
    assert_names(&refused(&["--model", &model]), &["unet"]);
}

#[test]
fn an_absent_coordinator_is_told_within_seconds() {
    let address = free_address().to_string();
    for command in [&["submit", "red apple"][..], &["status"]] {
        let since = Instant::now();
        let output = coordinator(&[command, &["--insecure", "--coordinator", &address]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        assert_names(&text(&output.stderr), &[&address, "coordinator serve"]);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let address = free_address().to_string();
    let _first = serve(&address);
    let output = coordinator(&["serve", "--insecure", "--http=off", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert_names(&text(&output.stderr), &[&address, "in use", "--listen"]);
    let arguments = ["join", "--insecure", "--coordinator", "127.0.0.1:1", "--listen", &address];
    let mut worker = Process::start("worker", &arguments);
    assert_eq!(worker.wait(), Some(1));
    assert_names(&worker.output(), &[&address, "in use", "--listen"]);
}

#[test]
fn a_worker_with_another_model_is_refused_with_both_named() {
    let cluster = Cluster::start(1);
    let model = fixture::golden("models/tiny-sdxl").display().to_string();
    let arguments = [
        "join",
        "--insecure",
        "--coordinator",
        &cluster.address,
        "--threads",
        "1",
        "--model",
        &model,
    ];
    let mut worker = Process::start("worker", &arguments);
    assert_eq!(worker.wait(), Some(1));
    assert_names(&worker.output(), &["tiny-sdxl", "emoji-xl", "--model"]);
    cluster.wait_for_workers(1);
    let output = coordinator(&[
        "submit",
        "a",
        "--insecure",
        "--coordinator",
        &cluster.address,
        "--model",
        &model,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_names(&text(&output.stderr), &["tiny-sdxl", "emoji-xl"]);
}

#[test]
fn a_worker_without_a_core_of_its_own_says_how_to_share_one() {
    // Claims of this test's own: other tests' workers have cores, too.
    let claims = tempfile::tempdir().unwrap();
    let join = |more: &[&str]| {
        let mut worker = command("worker");
        worker.args(["join", "--insecure", "--coordinator", "127.0.0.1:1"]).args(more);
        Process::spawn(worker.env("TMPDIR", claims.path()))
    };
    let mut first = join(&[]);
    first.wait_for("compute threads: ");
    if !first.output().contains("pinned to core") {
        eprintln!("skipped: nothing is pinned here: {}", first.output());
        return;
    }
    let mut second = join(&[]);
    assert_eq!(second.wait(), Some(1));
    assert_names(&second.output(), &["taken by other workers", "--threads"]);
    let third = join(&["--threads", "1"]);
    third.wait_for("compute threads: 1, not pinned: 0 of this machine's");
    first.signal("KILL");
    first.wait();
    join(&["--threads", "1"]).wait_for("pinned to core");
}

/// Says `frame` to `address` and gives all that is answered until the connection closes.
fn say(address: &str, frame: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(frame).ok(); // it may have hung up already
    stream.shutdown(std::net::Shutdown::Write).ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok(); // a reset is an end, too
    answer
}

fn refusal(answer: &[u8]) -> Fault {
    let mut bytes = BytesMut::from(answer);
    match codec::decode::<Greeting>(&mut bytes, &Limits::GREETING).unwrap() {
        Some((Greeting::Refused(fault), _)) => fault,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn another_release_is_refused_with_both_named() {
    let cluster = Cluster::start(0);
    let mut hello = handshake::hello(Version::newest(), Role::Client);
    hello.wire = 999;
    hello.release = "9.9.9".to_owned();
    let frame = codec::encode(&hello, &[], &Limits::GREETING).unwrap();
    let fault = refusal(&say(&cluster.address, &frame));
    assert_eq!(fault.kind, FaultKind::VersionMismatch);
    assert_names(&fault.cause, &["9.9.9", protocol::RELEASE]);
}

#[test]
fn garbage_closes_that_session_and_nothing_else() {
    let cluster = Cluster::start(2);
    let status = cluster.status();
    let workers = status["workers"].as_array().unwrap();
    let links = workers.iter().map(|worker| worker["address"].as_str().unwrap().to_owned());
    let client =
        codec::encode(&handshake::hello(Version::newest(), Role::Client), &[], &Limits::GREETING)
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let mut submit = cluster.submit(&["red apple", "--steps", "60", "--json", "--out", &out]);
    submit.wait_for(r#""event":"step""#);
    for address in links.chain([cluster.address.clone()]) {
        say(&address, b"");
        say(&address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        say(&address, &[0xff; 4096]);
        say(&address, &client[..client.len() - 1]);
        say(&address, &[&client[..], &[0xff; 64]].concat());
        say(&address, &[&client[..], &[9, 0, 0, 0, 0, 0, 0, 0, 0xfe], &[0xee; 8]].concat());
    }
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());
    cluster.wait_for_workers(2);
}
