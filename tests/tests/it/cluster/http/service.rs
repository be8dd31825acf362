//! `serve --http`: where it listens, and where it refuses to.

use tests::cluster::{Process, coordinator, text};
use tests::http::{self, Http};

fn refused(arguments: &[&str]) -> String {
    let own = ["serve", "--insecure", "--listen", "127.0.0.1:0"];
    let output = coordinator(&[&own[..], arguments].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stderr)
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let (_first, http) = http::serve("127.0.0.1:0", &[]);
    let said = refused(&["--http", http.authority()]);
    for words in [http.authority(), "HTTP", "--http off", "--http ADDR:PORT", "in use"] {
        assert!(said.contains(words), "{words:?} is missing in {said}");
    }
}

#[test]
fn what_asks_for_no_key_stays_on_this_machine_unless_it_is_said_to_be_open() {
    let said = refused(&["--http", "0.0.0.0:0"]);
    for words in ["--http 0.0.0.0:0", "coordinator key new", "--api-keys FILE", "--http-open"] {
        assert!(said.contains(words), "{words:?} is missing in {said}");
    }
    let own =
        ["serve", "--insecure", "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0", "--http-open"];
    let process = Process::start("coordinator", &own);
    process.wait_for("listening on");
    assert!(process.output().contains("open: for everyone"), "{}", process.output());
    let mut http = Http::of(&process);
    http.url = http.url.replace("0.0.0.0", "127.0.0.1");
    assert_eq!(http.with("Host", "render.example").get("/v1/jobs").status, 200);
    assert_eq!(http.with("Origin", "https://evil.example").get("/v1/jobs").status, 403);
}

#[test]
fn keys_that_are_not_there_are_named() {
    let said = refused(&["--http", "127.0.0.1:0", "--api-keys", "/nowhere/keys"]);
    assert!(said.contains("/nowhere/keys"), "{said}");
    assert!(refused(&["--http", "nowhere"]).contains("nowhere"));
}

#[test]
fn http_is_off_if_it_is_said_so() {
    let own = ["serve", "--insecure", "--listen", "127.0.0.1:0", "--http=off"];
    let process = Process::start("coordinator", &own);
    process.wait_for("listening on");
    assert!(!process.output().contains("HTTP"), "{}", process.output());
}
