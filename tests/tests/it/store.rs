//! Jobs kept in Postgres: a real server, which is killed.

use coordinator::job::store::{Asked, Keep, Store, StoreError, StoredCheckpoint, StoredRun};
use coordinator::planner::cost::preset;
use coordinator::planner::settle;
use protocol::job::{JobRequest, Priority};
use protocol::message::{Event, JobStage};
use protocol::{Epoch, Fault, FaultKind, JobId, RunId};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use tests::postgres::Postgres;

fn connect(server: &Postgres) -> Result<Store, StoreError> {
    Store::connect(&server.url(), |taken| panic!("{taken}"))
}

fn accept(store: &mut Store, prompt: &str) -> Result<JobId, StoreError> {
    store.accept(&Asked::new(JobRequest::new(prompt), 7), 100)
}

fn begun(epoch: u32, model: &str) -> StoredRun {
    let card = preset::card("emoji-xl").unwrap();
    let spec = settle(&JobRequest::new("an apple"), &card, 1).unwrap();
    StoredRun { epoch: Epoch(epoch), model: model.to_owned(), spec, plan: None }
}

fn run(job: JobId, epoch: u32) -> RunId {
    RunId { job, epoch: Epoch(epoch) }
}

fn cancelled() -> [Event; 1] {
    [Event::Failed { fault: Fault::new(FaultKind::Cancelled, "enough") }]
}

/// What `done` says once it says anything but that the server is out of reach.
fn once_there<T>(mut done: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match done() {
            Err(StoreError::Unreachable { .. } | StoreError::Unanswered { .. })
                if Instant::now() < until =>
            {
                thread::sleep(Duration::from_millis(100));
            }
            said => return said,
        }
    }
}

#[test]
fn postgres_keeps_what_a_folder_keeps() {
    let Some(server) = Postgres::start() else { return };
    let mut store = connect(&server).unwrap();
    assert!(store.is_kept());
    let named = Asked {
        owner: "ann".to_owned(),
        priority: Priority::High,
        idempotency_key: Some("once".to_owned()),
        ..Asked::new(JobRequest::new("named"), u64::MAX)
    };
    assert_eq!(accept(&mut store, "first").unwrap(), JobId(1));
    assert_eq!(store.accept(&named, 101).unwrap(), JobId(2));
    assert!(store.accept(&named, 102).is_err(), "one job a key");
    assert_eq!(store.known("ann", "once").unwrap(), Some((JobId(2), named.clone())));
    assert_eq!(store.known("bob", "once").unwrap(), None);
    // K-2 and K-3.
    store.started(JobId(1), &begun(0, "digest"), 150).unwrap();
    store.checkpoint(run(JobId(1), 0), 1, 4, b"older").unwrap();
    store.checkpoint(run(JobId(1), 0), 2, 4, &[9; 3_000_000]).unwrap();
    let again = store.started(JobId(1), &begun(0, "digest"), 150).unwrap_err();
    assert!(matches!(again, StoreError::OutOfOrder { last: Some(Epoch(0)), .. }), "{again}");
    let early = store.checkpoint(run(JobId(1), 4), 1, 4, b"early").unwrap_err();
    assert!(matches!(early, StoreError::OutOfOrder { .. }), "{early}");
    store.started(JobId(1), &begun(1, "digest"), 151).unwrap();
    drop(store);
    let mut store = connect(&server).unwrap();
    let jobs = store.unfinished().unwrap().jobs;
    assert_eq!((jobs.len(), &jobs[1].asked), (2, &named));
    let first = &jobs[0];
    assert_eq!((first.started, first.accepted, first.asked.seed), (Some(150), 100, 7));
    assert_eq!(first.run, Some(begun(1, "digest")));
    let bytes = vec![9; 3_000_000].into();
    assert_eq!(first.checkpoint, Some(StoredCheckpoint { calls: 2, of: 4, bytes }));
    store.started(JobId(1), &begun(2, "other"), 152).unwrap();
    assert_eq!(store.unfinished().unwrap().jobs[0].checkpoint, None);
    // Ends, and what is forgotten of them.
    store.finish(JobId(1), &cancelled(), &[1, 2, 3], 200).unwrap();
    store.finish(JobId(2), &cancelled(), &[4; 10], 201).unwrap();
    let twice = store.finish(JobId(2), &cancelled(), &[], 202).unwrap_err();
    assert!(matches!(twice, StoreError::NotUnfinished(JobId(2))), "{twice}");
    assert_eq!(store.outcome(JobId(1)).unwrap().unwrap().image, [1, 2, 3].as_slice());
    assert_eq!(store.outcome(JobId(9)).unwrap(), None);
    let ended = |store: &Store, before| {
        let ended = store.ended_jobs(before, &[JobStage::Cancelled, JobStage::Failed], 9).unwrap();
        ended.iter().map(|ended| ended.job.0).collect::<Vec<_>>()
    };
    assert_eq!(ended(&store, None), [2, 1]);
    assert_eq!(ended(&store, Some(JobId(2))), [1]);
    assert_eq!(store.ended_job(JobId(2)).unwrap().unwrap().asked, named);
    assert_eq!(store.forget(0, 12).unwrap(), 1, "the one that ended first");
    assert_eq!(store.forget(202, u64::MAX).unwrap(), 1);
    assert_eq!(server.query("SELECT count(*) FROM checkpoints"), "0");
    let after = accept(&mut store, "after").unwrap();
    assert!(after > JobId(2), "{after}");
}

#[test]
fn a_postgres_database_is_one_coordinators() {
    let Some(server) = Postgres::start() else { return };
    let store = connect(&server).unwrap();
    let held = connect(&server).unwrap_err();
    assert!(matches!(held, StoreError::Held { .. }), "{held}");
    assert!(held.to_string().contains("from 127.0.0.1"), "{held}");
    // Schemas are databases of their own.
    let url = format!("{}?options=-csearch_path%3Dsecond", server.url());
    let missing = Store::connect(&url, drop).unwrap_err().to_string();
    assert!(missing.contains("CREATE SCHEMA"), "{missing}");
    server.query("CREATE SCHEMA second");
    let mut second = Store::connect(&url, drop).unwrap();
    assert_eq!(accept(&mut second, "another's").unwrap(), JobId(1));
    assert!(store.unfinished().unwrap().jobs.is_empty());
    drop(store);
    drop(connect(&server).unwrap());
    server.query("UPDATE tessera SET schema = 99");
    let newer = connect(&server).unwrap_err();
    assert!(matches!(newer, StoreError::Newer { found: 99, .. }), "{newer}");
    let nobody = Store::connect("postgres://tessera@127.0.0.1:1/postgres", drop).unwrap_err();
    assert!(matches!(nobody, StoreError::Unreachable { .. }), "{nobody}");
    let wrong = Store::connect("postgres://tessera@127.0.0.1:x/postgres", drop).unwrap_err();
    assert!(matches!(wrong, StoreError::Url(_)), "{wrong}");
    // Nothing is sent in the clear to another machine unless that is asked for.
    let place = Store::connect("postgres://ann:secret@192.0.2.1/images", drop).unwrap_err();
    assert!(!place.to_string().contains("secret"), "{place}");
}

#[test]
fn a_server_that_is_killed_loses_nothing_and_is_gone_on_with() {
    let Some(mut server) = Postgres::start() else { return };
    let mut store = connect(&server).unwrap();
    let job = accept(&mut store, "first").unwrap();
    store.started(job, &begun(0, "digest"), 150).unwrap();
    server.kill();
    let refused = accept(&mut store, "while it is away").unwrap_err();
    assert!(matches!(refused, StoreError::Unreachable { .. }), "{refused}");
    let since = Instant::now();
    assert!(store.outcome(job).is_err() && since.elapsed() < Duration::from_secs(1));
    server.go_on();
    once_there(|| store.finish(job, &cancelled(), &[1], 200)).unwrap();
    let second = once_there(|| accept(&mut store, "second")).unwrap();
    let jobs = store.unfinished().unwrap().jobs;
    assert_eq!(jobs.iter().map(|job| job.job).collect::<Vec<_>>(), [second]);
}

#[test]
fn what_is_in_doubt_is_settled() {
    let Some(server) = Postgres::start() else { return };
    let mut store = connect(&server).unwrap();
    let first = accept(&mut store, "first").unwrap();
    // Whatever is written to a job waits for the test, for longer than the store does.
    let held = |sql: &str| {
        let (url, sql) = (server.url(), format!("BEGIN; {sql}; SELECT pg_sleep(3.5); COMMIT"));
        let held = thread::spawn(move || {
            let mut holding = postgres_client(&url);
            holding.args(["--command", &sql]).output().unwrap()
        });
        thread::sleep(Duration::from_millis(500));
        held
    };
    let lock = held("LOCK TABLE jobs IN SHARE MODE");
    let doubtful = accept(&mut store, "in doubt").unwrap_err();
    assert!(matches!(doubtful, StoreError::Unanswered { .. }), "{doubtful}");
    let meanwhile = Instant::now();
    assert!(accept(&mut store, "meanwhile").is_err());
    assert!(meanwhile.elapsed() < Duration::from_millis(500), "nobody waits for it twice");
    lock.join().unwrap();
    let second = once_there(|| accept(&mut store, "second")).unwrap();
    let prompts = |store: &Store| {
        let jobs = store.unfinished().unwrap().jobs;
        jobs.into_iter().map(|job| job.asked.request.prompt).collect::<Vec<_>>()
    };
    assert_eq!(prompts(&store), ["first", "second"], "a refused job is not there");
    let lock = held("LOCK TABLE jobs IN SHARE MODE");
    let start = store.started(first, &begun(0, "digest"), 150).unwrap_err();
    assert!(matches!(start, StoreError::Unanswered { .. }), "{start}");
    lock.join().unwrap();
    once_there(|| store.started(first, &begun(0, "digest"), 150)).unwrap();
    let lock = held("LOCK TABLE jobs IN SHARE MODE");
    let end = store.finish(second, &cancelled(), &[1], 200).unwrap_err();
    assert!(matches!(end, StoreError::Unanswered { .. }), "{end}");
    lock.join().unwrap();
    once_there(|| store.finish(second, &cancelled(), &[1], 200)).unwrap();
    let twice = store.finish(second, &cancelled(), &[1], 200).unwrap_err();
    assert!(matches!(twice, StoreError::NotUnfinished(_)), "{twice}");
    assert_eq!(prompts(&store), ["first"]);
}

fn postgres_client(url: &str) -> std::process::Command {
    let mut client = std::process::Command::new("psql");
    client.args(["--no-psqlrc", url]);
    client
}

#[test]
fn whoever_lost_its_jobs_to_another_says_so() {
    let Some(server) = Postgres::start() else { return };
    let (say, taken): (_, Receiver<StoreError>) = channel();
    let mut store = Store::connect(&server.url(), move |error| say.send(error).unwrap()).unwrap();
    accept(&mut store, "first").unwrap();
    let before = server.query("SELECT pid FROM pg_locks WHERE locktype = 'advisory'");
    // The server lost the connection, and another coordinator was there first.
    server.query(&format!(
        "UPDATE tessera SET tenure = tenure + 1; SELECT pg_terminate_backend({before})"
    ));
    let lost = once_there(|| accept(&mut store, "second")).unwrap_err();
    assert!(matches!(lost, StoreError::Taken(_)), "{lost}");
    let said = taken.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(said.to_string().contains("this one ends"), "{said}");
    assert_eq!(server.query("SELECT count(*) FROM jobs"), "1");
}
