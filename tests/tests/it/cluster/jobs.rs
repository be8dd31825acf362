//! Jobs that are left to the coordinator: listed, shown, followed, cancelled, fetched and traced by their numbers.

use super::restart::{JOB, cluster, serve};
use super::within;
use serde_json::Value;
use std::fs;
use std::process::Output;
use tests::cluster::{Cluster, Process, command, eventually, text};

/// Runs a command that asks this cluster's coordinator.
fn ask(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut ask = command("coordinator");
    ask.args(arguments).args(["--coordinator", &cluster.address]).args(&cluster.identity);
    ask.output().expect("the coordinator starts")
}

fn asked(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = ask(cluster, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let printed = asked(cluster, &[arguments, &["--json"]].concat());
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"))
}

/// Why it was refused.
fn refused(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = ask(cluster, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Submits a job and leaves it; gives its number.
fn detach(cluster: &Cluster, arguments: &[&str]) -> String {
    let printed = asked(cluster, &[&["submit", "--detach", "--quiet"], arguments].concat());
    printed.trim().to_owned()
}

fn state(cluster: &Cluster, job: &str) -> String {
    json(cluster, &["show", job])["state"].as_str().unwrap_or_default().to_owned()
}

/// The job of [`JOB`], of so many steps.
fn job(steps: &'static str) -> Vec<&'static str> {
    JOB.into_iter()
        .map(|option| if option.starts_with("--steps") { steps } else { option })
        .collect()
}

fn without_json(mut options: Vec<&'static str>) -> Vec<&'static str> {
    options.retain(|option| *option != "--json");
    options
}

#[test]
fn jobs_that_are_left_are_rendered_in_their_order_cancelled_and_fetched_even_from_the_next_coordinator()
 {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    let (quick, long) = (without_json(job("--steps=8")), without_json(job("--steps=900")));
    // Whatever else the machine does, it is not done when it is looked at.
    let long = [&long[..], &["--height=512"]].concat();
    let attached = within(folder.path(), "attached.png");
    let mut submit = cluster.submit(&[&quick[..], &["--out", &attached]].concat());
    assert_eq!(submit.wait(), Some(0), "{}", submit.output());

    let running = detach(&cluster, &long);
    let told = asked(&cluster, &[&["submit", "--detach"], &quick[..]].concat());
    let waits = told.split_whitespace().next().unwrap().trim_start_matches("job-").to_owned();
    for words in
        ["is accepted, and waits behind 1 others", "logs 3 --follow --coordinator", "fetch 3"]
    {
        assert!(told.contains(words), "{words:?} is missing in:\n{told}");
    }
    let low = detach(&cluster, &[&quick[..], &["--priority", "low"]].concat());
    let named = [&quick[..], &["--priority=high", "--idempotency-key=mine"]].concat();
    let high = detach(&cluster, &named);
    assert_eq!(detach(&cluster, &named), high, "the same key is the same job");
    let other = ["submit", "another", "--detach", "--idempotency-key=mine"];
    assert!(refused(&cluster, &other).contains("asks for something else"));

    let listed = json(&cluster, &["jobs"]);
    let of = |key: &str| -> Vec<&Value> {
        listed["jobs"].as_array().unwrap().iter().map(|job| &job[key]).collect()
    };
    assert_eq!(of("id"), [5, 4, 3, 2, 1]);
    assert_eq!(of("state"), ["queued", "queued", "queued", "running", "finished"]);
    assert_eq!(of("ahead")[..3], [1, 3, 2], "high before normal before low");
    assert_eq!(listed["next"], Value::Null);
    let page = json(&cluster, &["jobs", "--limit", "2", "--before", "job-4"]);
    assert_eq!((&page["jobs"][0]["id"], &page["jobs"][1]["id"]), (&3.into(), &2.into()));
    assert_eq!(page["next"], 2);
    let queued = json(&cluster, &["jobs", "--state", "queued,failed"]);
    assert_eq!(queued["jobs"].as_array().map(Vec::len), Some(3));

    let fetched = within(folder.path(), "fetched.png");
    let why = refused(&cluster, &["fetch", &waits, "--out", &fetched]);
    assert!(why.contains("job-3 has no image yet: it waits for its turn"), "{why}");
    assert!(why.contains("coordinator logs 3 --follow"), "{why}");
    let mut followed = command("coordinator");
    followed.args(["logs", &running, "--follow", "--json", "--coordinator", &cluster.address]);
    let mut followed = Process::spawn(followed.args(&cluster.identity));
    followed.wait_for(r#""event":"step""#);
    followed.signal("INT");
    followed.wait();
    assert_eq!(state(&cluster, &running), "running", "who follows it does not own it");
    assert!(refused(&cluster, &["fetch", &running]).contains("has no image yet"));

    cluster.coordinator.signal("KILL");
    cluster.coordinator.wait();
    cluster.coordinator = serve(&cluster.address, folder.path());
    let printed = asked(&cluster, &["cancel", &low, &format!("job-{running}")]);
    assert_eq!(printed, "job-4 is cancelled\njob-2 is cancelled\n");
    for job in [&low, &running] {
        assert_eq!(state(&cluster, job), "cancelled");
        let why = refused(&cluster, &["fetch", job]);
        assert!(why.contains("as it was cancelled; submit it again"), "{why}");
    }
    let why = refused(&cluster, &["cancel", &low, "99"]);
    assert!(why.contains("job-4 has ended: it is cancelled"), "{why}");
    assert!(why.contains("job-99 is not known here"), "{why}");
    let mut followed = command("coordinator");
    followed.args(["logs", &low, "--follow", "--coordinator", &cluster.address]);
    assert_eq!(Process::spawn(followed.args(&cluster.identity)).wait(), Some(1));

    let heard = asked(&cluster, &["logs", &waits, "--follow"]);
    assert!(heard.contains("step 8/8") || heard.contains("finished: "), "{heard}");
    assert!(eventually(|| state(&cluster, &high) == "finished"));
    for job in [&waits, &high] {
        asked(&cluster, &["fetch", job, "--out", &fetched]);
        assert!(fs::read(&fetched).unwrap() == fs::read(&attached).unwrap(), "job {job}");
    }
    let events = asked(&cluster, &["logs", &waits, "--json"]);
    let names: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].take())
        .collect();
    assert_eq!(names, ["started", "finished"]);
    let shown = asked(&cluster, &["show", &format!("job-{waits}")]);
    for words in ["state      finished", "red apple", "rank 1: rows 128-255", "coordinator fetch 3"]
    {
        assert!(shown.contains(words), "{words:?} is missing in:\n{shown}");
    }
}

#[test]
fn a_trace_has_a_track_for_each_worker_and_of_a_profiled_job_one_for_each_way_of_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster(folder.path());
    let out = within(folder.path(), "trace.json");
    let trace = |cluster: &Cluster, job: &str| -> Value {
        asked(cluster, &["trace", job, "--out", &out]);
        serde_json::from_slice(&fs::read(&out).unwrap()).unwrap()
    };
    let plain = detach(&cluster, &without_json(job("--steps=8")));
    let profiled = detach(&cluster, &[&without_json(job("--steps=8"))[..], &["--trace"]].concat());
    let running = detach(&cluster, &without_json(job("--steps=900")));
    asked(&cluster, &["logs", &profiled, "--follow"]);
    assert!(eventually(
        || json(&cluster, &["show", &running])["progress"]["call"].as_u64() > Some(2)
    ));
    let slices = |trace: &Value, group: u64, track: u64| -> Vec<String> {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let of =
            |event: &&Value| event["ph"] == "X" && event["pid"] == group && event["tid"] == track;
        events.filter(of).map(|event| event["name"].as_str().unwrap().to_owned()).collect()
    };
    let so_far = slices(&trace(&cluster, &running), 0, 1);
    assert!(so_far.len() > 2 && so_far[..2] == ["prompt", "call 0"], "{so_far:?}");

    cluster.coordinator.signal("KILL"); // what ended is kept with its trace
    cluster.coordinator.wait();
    cluster.coordinator = serve(&cluster.address, folder.path());
    let told = trace(&cluster, &plain);
    for rank in 0..2 {
        let slices = slices(&told, 0, rank);
        assert_eq!((slices.len(), &*slices[0], &*slices[9]), (10, "prompt", "decode"));
        assert_eq!(slices[8], "call 7");
    }
    assert_eq!(slices(&told, 1, 0).len(), 0, "links are in profiles only");
    let told = trace(&cluster, &profiled);
    for rank in 0..2 {
        let calls = slices(&told, 0, rank);
        assert!(calls.iter().any(|name| name == "attention"), "{calls:?}");
        assert!(!slices(&told, 1, rank).is_empty(), "rank {rank} waited at its link");
    }
    let events = told["traceEvents"].as_array().unwrap();
    let posted = events.iter().find(|event| event["name"] == "bytes, rank 0 to rank 1").unwrap();
    assert!(posted["args"]["value"].as_u64() > Some(1000), "{posted}");
    assert!(events.iter().any(|event| {
        event["args"]["name"].as_str().is_some_and(|name| name.ends_with(" over shm"))
    }));
}

/// Runs what its arguments say on a terminal of so many columns.
const ON_TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
child, terminal = pty.fork()
if child == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[1]), 0, 0))
    os.execv(sys.argv[2], sys.argv[2:])
while True:
    try:
        said = os.read(terminal, 4096)
    except OSError:
        break
    if not said:
        break
    os.write(1, said)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

#[test]
fn a_table_of_jobs_fits_a_small_terminal_and_is_whole_in_a_pipe() {
    let cluster = Cluster::start(0);
    let nothing = asked(&cluster, &["jobs"]);
    assert!(nothing.contains("submit one with `coordinator submit`"), "{nothing}");
    let prompt = "a lighthouse at dusk, \u{1b}[2Jseen from a small boat in the rain";
    detach(&cluster, &[prompt]);
    detach(&cluster, &[&[prompt][..], &["--priority=high"]].concat());
    let whole = asked(&cluster, &["jobs"]);
    assert!(
        whole.contains("a lighthouse at dusk,  [2Jseen from a small boat in the rain"),
        "{whole}"
    );
    assert_eq!(whole.lines().count(), 3, "{whole}");
    for width in [24, 40, 60] {
        let mut table = std::process::Command::new("python3");
        table.args(["-c", ON_TERMINAL, &width.to_string()]);
        table.arg(tests::cluster::binaries().join("coordinator")).arg("jobs");
        table.args(["--coordinator", &cluster.address]).args(&cluster.identity);
        let output = table.output().expect("python3 is there");
        let table = text(&output.stdout).replace('\r', "");
        assert!(output.status.success(), "{table}{}", text(&output.stderr));
        assert!(table.lines().all(|line| line.chars().count() <= width), "{width}:\n{table}");
        assert!(table.contains("queued") && table.contains("..."), "{width}:\n{table}");
        assert_eq!(table.lines().count(), 3, "{width}:\n{table}");
    }
    let why = refused(&cluster, &["trace", "1", "--out", "/tmp/none.json"]);
    assert!(why.contains("no worker was given a part of it"), "{why}");
}

#[test]
fn what_is_no_job_is_refused_with_what_to_do() {
    let cluster = Cluster::start(0);
    for command in ["show", "fetch", "logs", "trace", "cancel"] {
        let why = refused(&cluster, &[command, "99"]);
        assert!(why.contains("job-99 is not known here"), "{command}: {why}");
        let wrong = ask(&cluster, &[command, "nonsense"]);
        let why = text(&wrong.stderr);
        assert_eq!(wrong.status.code(), Some(2), "{command}: {why}");
        assert!(
            why.contains("'nonsense'") && why.contains("such as 12 or job-12"),
            "{command}: {why}"
        );
    }
    let wrong: [(&[&str], &str); 9] = [
        (&["jobs", "--state", "walking"], "[possible values: queued, running, "),
        (&["jobs", "--limit", "0"], "--limit <N>"),
        (&["cancel"], "<JOB>..."),
        (&["submit", "x", "--detach", "--local", "1"], "--local <N>"),
        (&["submit", "x", "--detach", "--out", "x.png"], "--out <FILE.png>"),
        (&["submit", "x", "--detach", "--profile", "x.json"], "--profile <FILE.json>"),
        (&["submit", "x", "--priority", "urgent"], "[possible values: low, normal, high]"),
        (&["submit", "x", "--idempotency-key", ""], "1 to 200 characters"),
        (&["fetch", "1", "--out"], "--out <FILE.png>"),
    ];
    for (arguments, words) in wrong {
        let output = ask(&cluster, arguments);
        let why = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {why}");
        assert!(why.contains(words), "{arguments:?}: {words:?} is missing in:\n{why}");
    }
    let why = refused(&cluster, &["fetch", "1", "--out", "x.jpg"]);
    assert!(why.contains("ends in .png"), "{why}");
}
