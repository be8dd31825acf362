//! What commands are to shells and other programs: completions, JSON, logs.

use super::within;
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;
use tests::cluster::{Process, command, free_address, succeed, text};

#[test]
fn shells_get_completions_that_they_can_read() {
    for (name, word) in [("coordinator", "netcheck"), ("worker", "--device")] {
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let output = command(name).args(["completions", shell]).output().unwrap();
            let script = text(&output.stdout);
            assert!(
                output.status.success() && script.contains(word.trim_start_matches('-')),
                "{shell}"
            );
            if shell == "bash" {
                let mut check = std::process::Command::new("bash");
                check.arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped());
                let mut check = check.spawn().expect("bash is there");
                check.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                let read = check.wait_with_output().unwrap();
                assert!(read.status.success() && read.stderr.is_empty(), "{}", text(&read.stderr));
            }
        }
    }
}

fn json(arguments: &[&str]) -> Value {
    let printed = succeed(arguments);
    serde_json::from_str(&printed)
        .unwrap_or_else(|error| panic!("{arguments:?}: {printed}: {error}"))
}

#[test]
fn commands_about_members_and_models_print_json() {
    let folder = tempfile::tempdir().unwrap();
    let place = ["--json", "--identity", &*within(folder.path(), "cluster")].map(str::to_owned);
    let of = |arguments: &[&str]| {
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        json(&[arguments, &place].concat())
    };
    let made = of(&["init"]);
    assert_eq!((&made["new"], made["cluster"].is_string()), (&true.into(), true), "{made}");
    assert_eq!(of(&["init", "--keep"])["cluster"], made["cluster"]);
    let token = of(&["token", "--uses", "3"]);
    assert_eq!((&token["role"], &token["uses"]), (&"worker".into(), &3.into()), "{token}");
    assert!(token["token"].as_str().unwrap().contains(token["id"].as_str().unwrap()), "{token}");
    let file = within(folder.path(), "token");
    let kept = of(&["token", "--out", &file]);
    assert_eq!((&kept["file"], &kept["token"]), (&file.as_str().into(), &Value::Null));
    assert_eq!(of(&["token", "revoke", kept["id"].as_str().unwrap()])["revoked"], kept["id"]);
    let listed = of(&["token", "list"]);
    let states: Vec<&Value> =
        listed["tokens"].as_array().unwrap().iter().map(|token| &token["state"]).collect();
    assert_eq!(states, ["good", "revoked"]);
    let client = listed["members"].as_array().unwrap().last().unwrap();
    let fingerprint = client["fingerprint"].as_str().unwrap();
    assert_eq!(of(&["revoke", fingerprint])["revoked"][0]["fingerprint"], fingerprint);
    let told = command("worker").args(["info", "--json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["model"]["name"], "emoji-xl");
}

#[test]
fn logs_are_json_with_job_rank_and_call_if_asked() {
    let address = free_address().to_string();
    let serve = ["serve", "--insecure", "--listen", &address, "--log-format", "json", "--verbose"];
    let mut coordinator = Process::start("coordinator", &serve);
    coordinator.wait_for("listening on");
    let join = ["join", "--insecure", "--coordinator", &address, "--threads", "1"];
    let mut worker = Process::start("worker", &[&join[..], &["--log-format", "json"]].concat());
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let to = ["--insecure", "--coordinator", &address, "--out", &out];
    let _ended = succeed(&[&["submit", "red apple", "--steps", "3"][..], &to].concat());
    worker.signal("TERM");
    worker.wait();
    coordinator.signal("TERM");
    coordinator.wait();
    let lines = |process: &Process| -> Vec<Value> {
        let line =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        process.output().lines().map(line).collect()
    };
    let said = lines(&coordinator);
    let calls: Vec<u64> = said.iter().filter_map(|line| line["call"].as_u64()).collect();
    assert_eq!(calls, [0, 1, 2], "{said:?}");
    assert!(said.iter().any(|line| line["job"] == 1 && line["message"] == "finished"), "{said:?}");
    let said = lines(&worker);
    assert!(said.iter().any(|line| line["job"] == 1 && line["rank"] == 0), "{said:?}");
}

#[test]
fn how_much_is_kept_is_checked_when_a_coordinator_starts() {
    let folder = tempfile::tempdir().unwrap();
    let data = within(folder.path(), "data");
    let serve = |arguments: &[&str], code| {
        let serve = ["serve", "--insecure", "--listen", "127.0.0.1:0", "--http=off"];
        let output = tests::cluster::coordinator(&[&serve[..], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        text(&output.stderr)
    };
    let why = serve(&["--keep-days", "0", "--data", &data], 2);
    assert!(why.contains("--keep-days <N>") && why.contains("0 is not in 1..="), "{why}");
    let why = serve(&["--keep-gib", "much", "--data", &data], 2);
    assert!(why.contains("--keep-gib <N>") && why.contains("invalid digit"), "{why}");
    for option in ["--keep-days", "--keep-gib"] {
        let why = serve(&[option, "3"], 1);
        assert!(why.contains("give --data DIR or --database URL"), "{why}");
    }
}
