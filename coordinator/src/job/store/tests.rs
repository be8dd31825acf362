use super::*;
use crate::planner::settle;
use crate::planner::tests::{card, request};
use protocol::FaultKind;
use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Stdio};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn asked(prompt: &str) -> JobRequest {
    JobRequest { prompt: prompt.to_owned(), ..request() }
}

fn accept(
    store: &mut Store,
    request: &JobRequest,
    seed: u64,
    now: u64,
) -> Result<JobId, StoreError> {
    store.accept(&Asked::new(request.clone(), seed), now)
}

fn spec(steps: u32) -> JobSpec {
    let request = JobRequest { steps: Some(steps), ..request() };
    settle(&request, &card(), 1).unwrap()
}

fn start(store: &mut Store, run: RunId, model: &str, spec: JobSpec) -> Result<(), StoreError> {
    let (model, plan) = (model.to_owned(), None);
    store.started(run.job, &StoredRun { epoch: run.epoch, model, spec, plan }, 150)
}

/// Has the database do what no coordinator does.
fn alter(store: &mut Store, sql: &str) -> i64 {
    let statements = sql.split(';').filter(|sql| !sql.trim().is_empty());
    let statements = statements.map(|sql| Statement::new(sql, Vec::new())).collect();
    store.database.change(Durable::Now, &"a test's", statements).unwrap().pop().unwrap()
}

fn run(job: JobId, epoch: u32) -> RunId {
    RunId { job, epoch: Epoch(epoch) }
}

fn finished() -> [Event; 2] {
    let notice = Event::Notice { text: "the prompt is long".to_owned() };
    let (latent, waits, recoveries) = ("ab".to_owned(), Vec::new(), Vec::new());
    let (seconds_per_step, seconds, displaced_calls) = (0.5, 2.0, 3);
    [
        notice,
        Event::Finished { seconds_per_step, seconds, waits, latent, displaced_calls, recoveries },
    ]
}

fn failed(cause: &str) -> [Event; 1] {
    [Event::Failed { fault: Fault::new(FaultKind::Cancelled, cause) }]
}

/// With two jobs accepted, of which the first has started a run.
fn with_jobs(mut store: Store) -> Store {
    assert_eq!(accept(&mut store, &asked("first"), u64::MAX, 100).unwrap(), JobId(1));
    assert_eq!(accept(&mut store, &asked("second"), 7, 101).unwrap(), JobId(2));
    start(&mut store, run(JobId(1), 0), "digest", spec(4)).unwrap();
    store
}

fn store(folder: &Path) -> Store {
    with_jobs(Store::open(folder).unwrap())
}

fn checkpoint(store: &Store) -> Option<StoredCheckpoint> {
    store.unfinished().unwrap().jobs[0].checkpoint.clone()
}

#[test]
fn k1_jobs_come_back_in_order_each_with_its_last_run_and_checkpoint() {
    let folder = folder();
    let mut store = store(folder.path());
    store.checkpoint(run(JobId(1), 0), 1, 4, b"older").unwrap();
    store.checkpoint(run(JobId(1), 0), 2, 4, b"newer").unwrap();
    drop(store);
    let unfinished = Store::open(folder.path()).unwrap().unfinished().unwrap();
    let first = StoredJob {
        job: JobId(1),
        accepted: 100,
        started: Some(150),
        asked: Asked::new(asked("first"), u64::MAX),
        run: Some(StoredRun {
            epoch: Epoch(0),
            model: "digest".to_owned(),
            spec: spec(4),
            plan: None,
        }),
        checkpoint: Some(StoredCheckpoint { calls: 2, of: 4, bytes: "newer".into() }),
    };
    let second = StoredJob {
        job: JobId(2),
        accepted: 101,
        started: None,
        asked: Asked::new(asked("second"), 7),
        run: None,
        checkpoint: None,
    };
    let unreadable = Vec::new();
    assert_eq!(unfinished, Unfinished { jobs: vec![first, second], unreadable });
}

#[test]
fn an_end_is_kept_for_clients_that_come_back() {
    let folder = folder();
    let mut store = store(folder.path());
    store.checkpoint(run(JobId(1), 0), 1, 4, b"dropped").unwrap();
    assert_eq!(store.outcome(JobId(1)).unwrap(), None);
    store.finish(JobId(1), &finished(), &[1, 2, 3], 200).unwrap();
    store.finish(JobId(2), &failed("enough"), &[], 201).unwrap();
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.unfinished().unwrap(), Unfinished::default());
    let (events, image) = (finished().to_vec(), Bytes::from_static(&[1, 2, 3]));
    assert_eq!(store.outcome(JobId(1)).unwrap(), Some(Outcome { ended: 200, events, image }));
    let (events, image) = (failed("enough").to_vec(), Bytes::new());
    assert_eq!(store.outcome(JobId(2)).unwrap(), Some(Outcome { ended: 201, events, image }));
    for unknown in [0, 3, u64::MAX] {
        assert_eq!(store.outcome(JobId(unknown)).unwrap(), None);
    }
    assert_eq!(alter(&mut store, "SELECT count(*) FROM checkpoints"), 0);
}

#[test]
fn k2_numbers_are_not_given_again_after_their_jobs_are_forgotten() {
    let folder = folder();
    let mut store = store(folder.path());
    store.finish(JobId(2), &finished(), &[], 200).unwrap();
    assert_eq!(store.forget(200, u64::MAX).unwrap(), 0);
    assert_eq!(store.forget(201, u64::MAX).unwrap(), 1);
    assert_eq!(store.outcome(JobId(2)).unwrap(), None);
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(accept(&mut store, &request(), 1, 300).unwrap(), JobId(3));
    assert_eq!(store.forget(u64::MAX, u64::MAX).unwrap(), 0, "unfinished jobs are not forgotten");
}

#[test]
fn k2_epochs_only_rise_and_only_the_last_run_has_checkpoints() {
    let mut store = with_jobs(Store::in_memory());
    let job = JobId(1);
    start(&mut store, run(job, 3), "digest", spec(4)).unwrap();
    let refused = [
        start(&mut store, run(job, 3), "digest", spec(4)).unwrap_err(),
        start(&mut store, run(job, 2), "digest", spec(4)).unwrap_err(),
        store.checkpoint(run(job, 0), 1, 4, b"late").unwrap_err(),
        store.checkpoint(run(job, 4), 1, 4, b"early").unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, StoreError::OutOfOrder { last: Some(Epoch(3)), .. }), "{error}");
    }
    let unstarted = store.checkpoint(run(JobId(2), 0), 1, 4, b"early").unwrap_err().to_string();
    assert_eq!(unstarted, "job-2 epoch 0 is out of order: the last run of its job is none");
    assert_eq!(checkpoint(&store), None);
}

#[test]
fn what_has_ended_stays_ended() {
    let mut store = with_jobs(Store::in_memory());
    let job = JobId(1);
    store.finish(job, &finished(), &[1], 200).unwrap();
    let refused = [
        store.finish(job, &failed("late"), &[], 201).unwrap_err(),
        store.checkpoint(run(job, 0), 1, 4, b"late").unwrap_err(),
        start(&mut store, run(job, 9), "digest", spec(4)).unwrap_err(),
        store.finish(JobId(99), &failed("never was"), &[], 201).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, StoreError::NotUnfinished(_)), "{error}");
    }
    assert_eq!(store.outcome(job).unwrap().unwrap().ended, 200);
}

#[test]
fn k3_a_checkpoint_outlives_a_new_run_but_not_another_spec_or_model() {
    let mut store = with_jobs(Store::in_memory());
    let job = JobId(1);
    store.checkpoint(run(job, 0), 1, 4, b"kept").unwrap();
    start(&mut store, run(job, 1), "digest", spec(4)).unwrap();
    assert_eq!(checkpoint(&store).unwrap().bytes, "kept");
    start(&mut store, run(job, 0), "other", spec(4)).unwrap_err();
    assert!(checkpoint(&store).is_some(), "a refused start changes nothing");
    start(&mut store, run(job, 2), "digest", spec(5)).unwrap();
    assert_eq!(checkpoint(&store), None);
    store.checkpoint(run(job, 2), 1, 5, b"new").unwrap();
    start(&mut store, run(job, 3), "other", spec(5)).unwrap();
    assert_eq!(checkpoint(&store), None);
}

#[test]
fn k1_a_copy_of_the_files_of_a_running_coordinator_has_all() {
    let (folder, copy) = (folder(), folder());
    let mut store = store(folder.path());
    store.checkpoint(run(JobId(1), 0), 1, 4, &[9; 100_000]).unwrap();
    for file in ["tessera.db", "tessera.db-wal"] {
        fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
    }
    let copied = Store::open(copy.path()).unwrap();
    assert_eq!(copied.unfinished().unwrap(), store.unfinished().unwrap());
    assert_eq!(checkpoint(&copied).unwrap().bytes.len(), 100_000);
}

#[test]
fn a_folder_is_one_coordinators_and_its_users_alone() {
    let scratch = folder();
    let folder = scratch.path().join("a/b");
    let store = Store::open(&folder).unwrap();
    let refused = Store::open(&folder).unwrap_err();
    assert!(matches!(refused, StoreError::InUse(_)));
    let refused = refused.to_string();
    let expected = format!("another coordinator uses {}", folder.display());
    assert!(refused.starts_with(&expected), "{refused}");
    for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    drop(store);
    Store::open(&folder).unwrap();
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let scratch = folder();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = Store::open(&file.join("data")).unwrap_err();
    assert!(matches!(refused, StoreError::Folder { .. }));
    assert!(refused.to_string().contains("file/data"), "{refused}");
}

#[test]
fn a_later_releases_database_is_left_alone() {
    let folder = folder();
    let mut store = store(folder.path());
    alter(&mut store, "PRAGMA user_version = 99");
    drop(store);
    let before = fs::read(folder.path().join("tessera.db")).unwrap();
    let refused = Store::open(folder.path()).unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 99, known: 3, .. }));
    let refused = refused.to_string();
    assert!(refused.contains("tessera.db has schema 99, this release reads up to 3"), "{refused}");
    assert_eq!(fs::read(folder.path().join("tessera.db")).unwrap(), before);
}

#[test]
fn k1_what_another_release_wrote_is_not_misread_nor_lost() {
    let folder = folder();
    let mut store = store(folder.path());
    let third = accept(&mut store, &request(), 1, 102).unwrap();
    store.finish(JobId(2), &finished(), &[1], 200).unwrap();
    let others = "UPDATE jobs SET wire = 1, release = '0.0.7' WHERE id < 3";
    alter(&mut store, others);
    let unfinished = store.unfinished().unwrap();
    assert_eq!(unfinished.jobs.iter().map(|job| job.job).collect::<Vec<_>>(), [third]);
    let (job, fault) = &unfinished.unreadable[0];
    assert_eq!((*job, fault.kind), (JobId(1), FaultKind::VersionMismatch));
    let expected = format!(
        "job-1 was accepted by release 0.0.7 and cannot be read by {RELEASE}: its wire version is 1"
    );
    assert!(fault.cause.starts_with(&expected), "{fault}");
    let told = |job, ended| Outcome { ended, events: vec![job], image: Bytes::new() };
    let event = Event::Failed { fault: fault.clone() };
    assert_eq!(store.outcome(JobId(1)).unwrap(), Some(told(event, 100)));
    let ended = store.outcome(JobId(2)).unwrap().unwrap();
    let Event::Failed { fault } = &ended.events[0] else { panic!("{ended:?}") };
    assert!(fault.cause.starts_with("job-2 was ended by release 0.0.7"), "{fault}");
    // The other release goes on with them.
    let newest = Version::newest();
    alter(&mut store, &format!("UPDATE jobs SET wire = {newest}"));
    assert_eq!(store.unfinished().unwrap().jobs.len(), 2);
    alter(&mut store, others);
    assert_eq!(store.forget(101, u64::MAX).unwrap(), 1, "nor are they kept for ever");
    assert_eq!(store.forget(201, u64::MAX).unwrap(), 1);
}

#[test]
fn a_job_that_makes_no_sense_does_not_hide_the_others() {
    let mut store = with_jobs(Store::in_memory());
    alter(&mut store, "UPDATE jobs SET request = x'ff' WHERE id = 1");
    let unfinished = store.unfinished().unwrap();
    assert_eq!(unfinished.jobs[0].job, JobId(2));
    assert!(unfinished.unreadable[0].1.cause.contains("not a JobRequest"), "{unfinished:?}");
}

#[test]
fn a_damaged_database_says_so() {
    let folder = folder();
    drop(store(folder.path()));
    let path = folder.path().join("tessera.db");
    let whole = fs::read(&path).unwrap();
    let mut garbage = whole.clone();
    garbage[..100].fill(7);
    let mut page = whole.clone();
    page[16384..].fill(7);
    for bytes in [garbage.as_slice(), &page, &whole[..whole.len() / 2]] {
        fs::write(&path, bytes).unwrap();
        let read = Store::open(folder.path()).and_then(|store| store.unfinished());
        let error = read.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains("tessera.db is damaged"), "{error}");
    }
    fs::write(&path, whole).unwrap();
    assert_eq!(Store::open(folder.path()).unwrap().unfinished().unwrap().jobs.len(), 2);
}

/// What is refused for want of room is not there, what was there is, and with room it goes on.
fn check_full(
    store: &mut Store,
    fill: impl FnOnce(&mut Store),
    make_room: impl FnOnce(&mut Store),
) {
    let first = run(JobId(1), 0);
    store.checkpoint(first, 1, 4, &[1; 100_000]).unwrap();
    fill(store);
    let before = store.unfinished().unwrap();
    let large = vec![2; 4 << 20];
    let prompt = "x".repeat(1 << 20);
    let refused = [
        ("the checkpoint of job-1 epoch 0 after call 2", store.checkpoint(first, 2, 4, &large)),
        ("the end of job-1", store.finish(JobId(1), &finished(), &large, 200)),
        ("a new job", accept(store, &asked(&prompt), 1, 200).map(drop)),
    ];
    for (what, refused) in refused {
        let error = refused.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(what) && error.contains(store.place()), "{error}");
    }
    assert_eq!(store.unfinished().unwrap(), before);
    make_room(store);
    store.checkpoint(first, 2, 4, &large).unwrap();
    assert_eq!(checkpoint(store).unwrap().bytes, large);
    store.finish(JobId(1), &finished(), &large, 200).unwrap();
    assert_eq!(accept(store, &asked(&prompt), 1, 200).unwrap(), JobId(3));
}

#[test]
fn a_full_database_loses_nothing() {
    let folder = folder();
    let limit = |pages: u32| {
        move |store: &mut Store| {
            alter(store, &format!("PRAGMA max_page_count = {pages}"));
        }
    };
    check_full(&mut store(folder.path()), limit(30), limit(u32::MAX - 1));
    let unfinished = Store::open(folder.path()).unwrap().unfinished().unwrap();
    assert_eq!(unfinished.jobs.iter().map(|job| job.job.0).collect::<Vec<_>>(), [2, 3]);
}

/// A small file system of its own, which ends with the test.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount() -> Option<Self> {
        let disk = Self(folder());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(disk.0.path());
        mount.stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // There is nothing to unmount where it could not be mounted.
        Command::new("umount").arg(self.0.path()).stderr(Stdio::null()).status().ok();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let Some(Disk(folder)) = &Disk::mount() else {
        let why = "skipped: only root may mount the small disk that this fills";
        return writeln!(std::io::stderr(), "{why}").unwrap();
    };
    let filler = folder.path().join("filler");
    let fill = |_: &mut Store| {
        let file = File::create(&filler).unwrap();
        let mut at = 0;
        while let Ok(written) = file.write_at(&[0; 4096], at) {
            at += u64::try_from(written).unwrap();
        }
    };
    check_full(&mut store(folder.path()), fill, |_| fs::remove_file(&filler).unwrap());
    let unfinished = Store::open(folder.path()).unwrap().unfinished().unwrap();
    assert_eq!(unfinished.jobs.iter().map(|job| job.job.0).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn in_memory_it_is_the_same_but_kept_nowhere() {
    let mut store = Store::in_memory();
    let job = accept(&mut store, &request(), 1, 100).unwrap();
    start(&mut store, run(job, 0), "digest", spec(4)).unwrap();
    store.checkpoint(run(job, 0), 1, 4, b"one").unwrap();
    assert_eq!(checkpoint(&store).unwrap().bytes, "one");
    store.finish(job, &finished(), &[1], 200).unwrap();
    assert_eq!(store.outcome(job).unwrap().unwrap().image, [1].as_slice());
    assert_eq!(accept(&mut Store::in_memory(), &request(), 1, 100).unwrap(), job);
}

fn ids(jobs: &[EndedJob]) -> Vec<u64> {
    jobs.iter().map(|ended| ended.job.0).collect()
}

#[test]
fn jobs_that_ended_are_listed_by_stage_without_those_of_other_releases() {
    let mut store = with_jobs(Store::in_memory());
    for number in 3..6 {
        assert_eq!(accept(&mut store, &asked("more"), 1, 102).unwrap(), JobId(number));
    }
    store.finish(JobId(1), &finished(), &[1, 2, 3], 200).unwrap();
    store.finish(JobId(2), &failed("enough"), &[], 201).unwrap();
    store.finish(JobId(4), &finished(), &[1], 202).unwrap();
    store.finish(JobId(5), &finished(), &[1], 203).unwrap();
    let ends = [JobStage::Finished, JobStage::Cancelled];
    assert_eq!(ids(&store.ended_jobs(None, &ends, 9).unwrap()), [5, 4, 2, 1]);
    assert_eq!(ids(&store.ended_jobs(None, &ends[..1], 2).unwrap()), [5, 4]);
    assert_eq!(ids(&store.ended_jobs(Some(JobId(4)), &ends[..1], 2).unwrap()), [1]);
    assert!(store.ended_jobs(None, &[], 9).unwrap().is_empty());
    let first = EndedJob {
        job: JobId(1),
        asked: Asked::new(asked("first"), u64::MAX),
        accepted: 100,
        started: Some(150),
        ended: 200,
        events: finished().to_vec(),
    };
    assert_eq!(store.ended_job(JobId(1)).unwrap(), Some(first));
    assert_eq!(store.ended_job(JobId(3)).unwrap(), None);
    alter(&mut store, "UPDATE jobs SET wire = 1 WHERE id = 5");
    assert_eq!(ids(&store.ended_jobs(None, &ends, 2).unwrap()), [4, 2]);
    assert_eq!(store.ended_job(JobId(5)).unwrap(), None);
}

#[test]
fn images_are_forgotten_that_take_more_than_may_be_kept() {
    let mut store = with_jobs(Store::in_memory());
    let third = accept(&mut store, &asked("third"), 1, 102).unwrap();
    store.finish(JobId(2), &finished(), &[1; 60], 200).unwrap();
    store.finish(JobId(1), &finished(), &[1; 50], 201).unwrap();
    assert_eq!(store.forget(0, 110).unwrap(), 0);
    assert_eq!(store.forget(0, 109).unwrap(), 1, "the one that ended first");
    assert_eq!(store.outcome(JobId(2)).unwrap(), None);
    assert!(store.outcome(JobId(1)).unwrap().is_some());
    store.finish(third, &failed("no image"), &[], 300).unwrap();
    assert_eq!(store.forget(0, 50).unwrap(), 0, "one without an image takes no room");
}

#[test]
fn a_submission_is_known_by_its_owner_and_key() {
    let folder = folder();
    let mut store = store(folder.path());
    let asked = Asked {
        owner: "ann".to_owned(),
        priority: Priority::High,
        idempotency_key: Some("once".to_owned()),
        ..Asked::new(asked("third"), 3)
    };
    let job = store.accept(&asked, 102).unwrap();
    assert!(store.accept(&asked, 103).is_err(), "one job a key");
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.known("ann", "once").unwrap(), Some((job, asked.clone())));
    assert_eq!(store.known("bertha", "once").unwrap(), None);
    assert_eq!(store.known("ann", "twice").unwrap(), None);
    assert_eq!(store.unfinished().unwrap().jobs[2].asked, asked);
}

#[test]
fn a_database_of_the_first_schema_is_gone_on_with() {
    let folder = folder();
    let mut store = store(folder.path());
    let back = "DROP INDEX jobs_once; ALTER TABLE jobs DROP COLUMN owner; \
                ALTER TABLE jobs DROP COLUMN priority; ALTER TABLE jobs DROP COLUMN once; \
                ALTER TABLE jobs DROP COLUMN started; ALTER TABLE jobs DROP COLUMN stage; \
                ALTER TABLE jobs DROP COLUMN plan; PRAGMA user_version = 1;";
    alter(&mut store, back);
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    let jobs = store.unfinished().unwrap().jobs;
    assert_eq!((jobs.len(), jobs[1].asked.priority), (2, Priority::Normal));
    store.finish(JobId(1), &finished(), &[1], 200).unwrap();
    assert_eq!(ids(&store.ended_jobs(None, JobStage::ALL, 9).unwrap()), [1]);
}
