//! The store of jobs under `kill -9`.

use coordinator::job::store::{Asked, Keep, Store, StoredCheckpoint, StoredRun};
use coordinator::planner::cost::preset;
use coordinator::planner::settle;
use protocol::job::{JobRequest, JobSpec, Warmup};
use protocol::message::Event;
use protocol::{Epoch, Fault, FaultKind, JobId, RunId};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// Tells a child of this test which folder to use.
const FOLDER: &str = "TESSERA_STORE_FOLDER";

/// How often the child is killed: enough to hit every call of the loop, most of whose time is spent
/// in one of them.
const ROUNDS: u64 = 30;

/// How long a child writes at most, in milliseconds: some jobs' time.
const LIFE_MS_MAX: u64 = 80;

/// Bytes of the child's checkpoints: some pages of the database.
const CHECKPOINT_BYTES: usize = 100_000;

fn request() -> JobRequest {
    JobRequest { warmup: Warmup::Auto, ..JobRequest::new("an apple") }
}

fn spec() -> JobSpec {
    let card = preset::card("emoji-xl").expect("a model of ours");
    settle(&request(), &card, 1).expect("a request that can be rendered")
}

fn begun() -> StoredRun {
    StoredRun { epoch: Epoch(0), model: "digest".to_owned(), spec: spec(), plan: None }
}

fn ended() -> [Event; 1] {
    [Event::Failed { fault: Fault::new(FaultKind::Cancelled, "the end") }]
}

fn run(job: JobId, epoch: u32) -> RunId {
    RunId { job, epoch: Epoch(epoch) }
}

/// The bytes of the checkpoint after `calls`.
fn bytes(calls: u32) -> Vec<u8> {
    calls.to_le_bytes().repeat(CHECKPOINT_BYTES / 4)
}

/// The child: writes, and says what was written, until it is killed. Leaves every third job unfinished.
#[test]
fn writes_until_killed() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let mut store = Store::open(Path::new(&folder)).expect("the former child is gone");
    let say = |what: &str, job: JobId, calls: u32| {
        writeln!(io::stdout().lock(), "\n{what} {} {calls}", job.0).expect("the parent reads");
    };
    loop {
        let job = store.accept(&Asked::new(request(), 1), 1).expect("room");
        say("accepted", job, 0);
        store.started(job, &begun(), 1).expect("room");
        for calls in 1..=4 {
            store.checkpoint(run(job, 0), calls, 4, &bytes(calls)).expect("room");
            say("checkpoint", job, calls);
        }
        if !job.0.is_multiple_of(3) {
            store.finish(job, &ended(), &bytes(4), 2).expect("room");
            say("ended", job, 0);
        }
    }
}

/// What children said.
#[derive(Debug, Default)]
struct Said {
    accepted: BTreeSet<u64>,
    checkpoints: BTreeMap<u64, u32>,
    ended: BTreeSet<u64>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, job, calls] = words[..] else { return };
        let (Ok(job), Ok(calls)) = (job.parse(), calls.parse()) else { return };
        match what {
            "accepted" => assert!(self.accepted.insert(job), "K-2: job {job} twice"),
            "checkpoint" => drop(self.checkpoints.insert(job, calls)),
            "ended" => drop(self.ended.insert(job)),
            _ => {}
        }
    }

    /// Checks that what was said is so.
    fn check(&self, store: &Store) {
        let unfinished = store.unfinished().expect("readable");
        assert!(unfinished.unreadable.is_empty());
        let numbers: Vec<u64> = unfinished.jobs.iter().map(|job| job.job.0).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        for job in &self.accepted {
            let outcome = store.outcome(JobId(*job)).expect("readable");
            assert_ne!(outcome.is_some(), numbers.contains(job), "K-1: job {job}");
            assert!(outcome.is_some() || !self.ended.contains(job), "K-1: the end of {job}");
            if let Some(outcome) = outcome {
                assert_eq!((outcome.events, outcome.image.to_vec()), (ended().to_vec(), bytes(4)));
            }
        }
        for job in &unfinished.jobs {
            assert_eq!(job.asked.request, request());
            let said = self.checkpoints.get(&job.job.0).copied().unwrap_or(0);
            let calls = job.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.calls);
            assert!(calls >= said, "{}: call {calls}, but {said} was said", job.job);
            let whole = StoredCheckpoint { calls, of: 4, bytes: bytes(calls).into() };
            assert!(calls == 0 || job.checkpoint == Some(whole), "K-3: {}", job.job);
        }
    }
}

/// The lines of a child that lives for `life` after it began to write.
fn lines_of_child(folder: &Path, life: Duration) -> Vec<String> {
    let mut child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "writes_until_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let mut lines = out.lines().map_while(Result::ok);
    let first: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("acc")).collect();
    let rest = thread::spawn(move || lines.collect::<Vec<_>>());
    thread::sleep(life);
    child.kill().expect("it writes for ever");
    child.wait().expect("a child");
    [first, rest.join().expect("only reads")].concat()
}

#[test]
fn k1_k2_k3_hold_when_the_process_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut said = Said::default();
    for round in 0..ROUNDS {
        // Any spread will do: a fixed one, so that a failure comes again.
        let life = Duration::from_millis(round * 37 % LIFE_MS_MAX);
        lines_of_child(folder.path(), life).iter().for_each(|line| said.hear(line));
        said.check(&Store::open(folder.path()).expect("the child is gone"));
    }
    assert!(said.ended.len() > 10, "children did nothing: {said:?}");
}
