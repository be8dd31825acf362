//! Which files jobs are rendered with, and which workers hold them.
//!
//! - **F-1 there**: a job is accepted only once all its files are there, and they stay until it has ended.
//!   Then they are idle: they stay for a while, so that they need not be sent again.
//! - **F-2 held**: nobody is given a part of a run before it has said that it holds the job's files.

use super::{ClientId, Director, Effect};
use crate::job::queue::Waiting;
use crate::planner::Candidate;
use bytes::Bytes;
use protocol::job::{Field, FileDigest, JOB_FILES_BYTES_MAX, JobRequest, PICTURE_BYTES_MAX};
use protocol::message::Event;
use protocol::{Fault, FaultKind, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long an idle file stays: as long as jobs that ended are kept, if nobody says how long that is.
const IDLE_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// The most bytes of idle files: those of the largest job, which come one by one before it does.
const IDLE_BYTES_MAX: u64 = JOB_FILES_BYTES_MAX;
/// The most idle files: a quarter of all that there may be, so that jobs find room for theirs.
const IDLE_FILES_MAX: usize = 1024;

/// What is there, and where else.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    files: BTreeMap<FileDigest, Shelved>,
    holds: BTreeMap<WorkerId, BTreeSet<FileDigest>>,
    sending: BTreeSet<(WorkerId, FileDigest)>,
    /// What workers could not hold, and why.
    unheld: BTreeMap<(WorkerId, FileDigest), Fault>,
    /// Jobs wait for another release, whose files are not known.
    keeps_all: bool,
}

#[derive(Debug, Default)]
struct Shelved {
    bytes: u64,
    /// Those who may submit a job with it.
    clients: BTreeSet<ClientId>,
    /// When someone last had a use for it.
    used: Duration,
}

impl Shelf {
    /// A worker is gone.
    pub(super) fn lose(&mut self, worker: WorkerId) {
        self.holds.remove(&worker);
        self.sending.retain(|(each, _)| *each != worker);
        self.unheld.retain(|(each, _), _| *each != worker);
    }

    /// A client is gone.
    pub(super) fn leave(&mut self, client: ClientId) {
        for shelved in self.files.values_mut() {
            shelved.clients.remove(&client);
        }
    }

    /// Keeps all that is there: what it is for cannot be read.
    pub(super) fn keep_all(&mut self) {
        self.keeps_all = true;
    }

    fn has(&self, worker: WorkerId, request: &JobRequest) -> bool {
        let held = self.holds.get(&worker);
        request.files().all(|file| held.is_some_and(|held| held.contains(&file)))
    }

    fn is_sent(&self, worker: WorkerId, request: &JobRequest) -> bool {
        request.files().any(|file| self.sending.contains(&(worker, file)))
    }

    fn fault(&self, worker: WorkerId, request: &JobRequest) -> Option<&Fault> {
        request.files().find_map(|file| self.unheld.get(&(worker, file)))
    }
}

impl Director {
    /// The files that are there as the coordinator starts: idle from now on, but for those of jobs. A job whose files are not
    /// there cannot go on.
    pub fn files_found(&mut self, files: Vec<(FileDigest, u64)>) {
        for (file, bytes) in files {
            let shelved = Shelved { bytes, clients: BTreeSet::new(), used: self.now };
            self.shelf.files.insert(file, shelved);
        }
        let all: Vec<Waiting> = self.queue.drain().collect();
        for waiting in all {
            match self.check_files(&waiting.request) {
                Ok(()) => drop(self.queue.push(waiting)),
                Err(fault) => self.end(waiting.job, vec![Event::Failed { fault }], Bytes::new()),
            }
        }
    }

    /// A client wants to submit a job with this file. Says whether it is there; then it stays for as long as the
    /// client does, and then as an idle file.
    pub fn wants_file(&mut self, client: ClientId, file: FileDigest) -> bool {
        let Some(shelved) = self.shelf.files.get_mut(&file) else { return false };
        shelved.clients.insert(client);
        shelved.used = self.now;
        true
    }

    /// A file came from a client.
    pub fn file_came(&mut self, client: ClientId, file: FileDigest, bytes: u64) {
        let shelved = self.shelf.files.entry(file).or_default();
        (shelved.bytes, shelved.used) = (bytes, self.now);
        shelved.clients.insert(client);
    }

    /// A file could not be sent to a worker, or held by it.
    pub fn file_failed(&mut self, worker: WorkerId, file: FileDigest, fault: Fault, now: Duration) {
        self.now = now;
        self.unheld(worker, file, fault);
    }

    pub(super) fn unheld(&mut self, worker: WorkerId, file: FileDigest, fault: Fault) {
        if self.registry.has(worker) {
            tracing::warn!("{worker} cannot hold a file: {fault}");
            self.shelf.sending.remove(&(worker, file));
            self.shelf.unheld.insert((worker, file), fault);
        }
        self.go_on();
    }

    /// What a worker holds.
    pub(super) fn holds(&mut self, worker: WorkerId, files: Vec<FileDigest>) {
        for file in &files {
            self.shelf.sending.remove(&(worker, *file));
            self.shelf.unheld.remove(&(worker, *file));
        }
        self.shelf.holds.insert(worker, files.into_iter().collect());
        self.go_on();
    }

    /// Whether all files of a request are there (F-1).
    pub(super) fn check_files(&self, request: &JobRequest) -> Result<(), Fault> {
        let invalid = |cause: String| Fault::new(FaultKind::InvalidRequest, cause);
        let loras = request.loras.iter().map(|lora| (lora.file, Field::Loras));
        let init = request.init.iter().map(|init| (init.file, Field::Init));
        let mut all = 0;
        for (file, field) in loras.chain(init) {
            let Some(shelved) = self.shelf.files.get(&file) else {
                let cause = format!("the file {file} is not there: it must be sent before the job");
                return Err(invalid(cause).about(field));
            };
            if field == Field::Init && shelved.bytes > PICTURE_BYTES_MAX {
                let cause = format!(
                    "the picture to begin with has {} bytes; at most {PICTURE_BYTES_MAX} are taken",
                    shelved.bytes
                );
                return Err(invalid(cause).about(field));
            }
            all += shelved.bytes;
        }
        if all > JOB_FILES_BYTES_MAX {
            return Err(invalid(format!(
                "the job's files have {all} bytes together; at most {JOB_FILES_BYTES_MAX} are taken"
            )));
        }
        Ok(())
    }

    /// Those of `workers` that hold the files of `request` (F-2).
    pub(super) fn holding(
        &self,
        mut workers: Vec<Candidate>,
        request: &JobRequest,
    ) -> Vec<Candidate> {
        workers.retain(|each| self.shelf.has(each.worker, request));
        workers
    }

    /// Whether nothing is known that keeps a worker from holding the files of `request`.
    pub(super) fn can_hold(&self, worker: WorkerId, request: &JobRequest) -> bool {
        self.shelf.fault(worker, request).is_none()
    }

    /// Sends the next job's files, or those of one that broke off or could take others in, to those who lack them.
    pub(super) fn provide(&mut self) {
        let active = self.active.as_ref().map(|active| &active.asked.request);
        let Some(request) = active.or_else(|| self.queue.next().map(|next| &next.request)) else {
            return;
        };
        if self.shutting_down || request.files().next().is_none() {
            return;
        }
        let idle = self.receivers(request);
        for worker in idle {
            for file in request.files() {
                let held = self.shelf.holds.get(&worker).is_some_and(|held| held.contains(&file));
                if !held && self.shelf.sending.insert((worker, file)) {
                    self.effects.push(Effect::Provide { worker, file });
                }
            }
        }
    }

    /// The workers that `request` may be rendered on, but for those that cannot hold its files; no more than it wants.
    fn receivers(&self, request: &JobRequest) -> Vec<WorkerId> {
        let idle = self.registry.idle().into_iter().map(|each| each.worker);
        let able = idle.filter(|worker| self.can_hold(*worker, request));
        able.take(request.workers.map_or(usize::MAX, usize::from)).collect()
    }

    /// Whether nobody is still being sent files of `request`, and somebody holds them.
    ///
    /// # Errors
    /// `NoWorkers` while the job has to wait; what kept them from it, if no worker can hold them.
    pub(super) fn check_held(&self, request: &JobRequest) -> Result<(), Fault> {
        if request.files().next().is_none() {
            return Ok(());
        }
        let receivers = self.receivers(request);
        let waits = |cause: &str| Err(Fault::new(FaultKind::NoWorkers, cause));
        if receivers.iter().any(|worker| self.shelf.is_sent(*worker, request)) {
            return waits("workers are being sent the job's files");
        }
        if receivers.iter().any(|worker| self.shelf.has(*worker, request)) {
            return Ok(());
        }
        let idle = self.registry.idle();
        let mut faults = idle.iter().filter_map(|each| self.shelf.fault(each.worker, request));
        match faults.next() {
            Some(fault) if receivers.is_empty() && idle.len() == self.registry.staying() => {
                Err(fault.clone())
            }
            _ => waits("no worker holds the job's files yet"),
        }
    }

    /// Lets go of files that have been idle for long, and of those that were needed last the longest ago where idle ones
    /// are too many.
    pub(super) fn tidy_shelf(&mut self) {
        if self.shelf.files.is_empty() || self.shelf.keeps_all || self.shutting_down {
            return;
        }
        let waiting = self.queue.iter().map(|waiting| &waiting.request);
        let active = self.active.iter().map(|active| &active.asked.request);
        let needed: BTreeSet<FileDigest> =
            waiting.chain(active).flat_map(JobRequest::files).collect();
        let mut idle = Vec::new();
        for (file, shelved) in &mut self.shelf.files {
            if needed.contains(file) || !shelved.clients.is_empty() {
                shelved.used = self.now;
            } else {
                idle.push((shelved.used, *file, shelved.bytes));
            }
        }
        idle.sort_unstable();
        let mut all = 0;
        for (count, (used, file, bytes)) in idle.into_iter().rev().enumerate() {
            all += bytes;
            let old = self.now.saturating_sub(used) >= IDLE_PATIENCE;
            if old || all > IDLE_BYTES_MAX || count >= IDLE_FILES_MAX {
                self.shelf.files.remove(&file);
                self.effects.push(Effect::Forget(file));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::registry::tests::join;
    use crate::director::{GATHER_PATIENCE, Standing};
    use crate::planner::tests::request;
    use protocol::RunId;
    use protocol::job::{Lora, Terms};
    use protocol::message::{Join, ToClient, ToCoordinator, ToWorker};
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    const CLIENT: ClientId = 1;
    const START: Duration = Duration::from_secs(1);
    const FILE: FileDigest = FileDigest([7; 32]);

    fn admit(director: &mut Director, number: u16) -> WorkerId {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 5000 + number));
        let join = Join { listen, ..join(&format!("w{number}")) };
        director.admit(join, IpAddr::from(Ipv4Addr::LOCALHOST), None, START).unwrap()
    }

    fn asked() -> JobRequest {
        let lora = Lora { file: FILE, name: "ink".to_owned(), scale: 1.0 };
        JobRequest { loras: vec![lora], ..request() }
    }

    fn says(director: &mut Director, worker: WorkerId, message: ToCoordinator) {
        director.worker_said(worker, message, Bytes::new(), START);
    }

    fn holds(director: &mut Director, worker: WorkerId) {
        says(director, worker, ToCoordinator::Holds { files: vec![FILE] });
    }

    fn cannot(director: &mut Director, worker: WorkerId) {
        let fault = Fault::new(FaultKind::Storage, "no room");
        says(director, worker, ToCoordinator::Unheld { file: FILE, fault });
    }

    /// Who is sent the file, and who is given a part of a run.
    fn orders(director: &mut Director) -> (Vec<WorkerId>, Vec<(WorkerId, RunId)>) {
        let (mut provided, mut started) = (Vec::new(), Vec::new());
        for effect in director.effects() {
            match effect {
                Effect::Provide { worker, file } => {
                    assert_eq!(file, FILE);
                    provided.push(worker);
                }
                Effect::Order { worker, order, .. } => {
                    if let ToWorker::Start { plan, .. } = *order {
                        started.push((worker, plan.run));
                    }
                }
                _ => {}
            }
        }
        (provided, started)
    }

    fn fault(director: &mut Director) -> Option<Fault> {
        director.effects().into_iter().find_map(|effect| match effect {
            Effect::Tell { message, .. } => match *message {
                ToClient::Event { event: Event::Failed { fault }, .. } => Some(fault),
                ToClient::Refused(fault) => Some(fault),
                _ => None,
            },
            _ => None,
        })
    }

    /// Until those who come back after all were lost are no longer waited for.
    fn wait(director: &mut Director, workers: &[WorkerId]) {
        let now = START + GATHER_PATIENCE;
        workers.iter().for_each(|worker| director.worker_heard(*worker, now));
        director.tick(now);
    }

    fn forgotten(director: &mut Director) -> bool {
        let after = director.now + IDLE_PATIENCE;
        director.tick(after);
        director.effects().contains(&Effect::Forget(FILE))
    }

    fn submit(director: &mut Director, request: JobRequest) {
        let standing = Standing::of("me");
        director.submit((CLIENT, &standing), (request, Terms::default()), 7, START);
    }

    #[test]
    fn f1_a_job_is_accepted_only_with_its_files_and_they_stay_until_it_ends() {
        let mut director = Director::default();
        assert!(!director.wants_file(CLIENT, FILE));
        submit(&mut director, asked());
        assert!(fault(&mut director).unwrap().cause.contains("is not there"));
        director.file_came(CLIENT, FILE, JOB_FILES_BYTES_MAX + 1);
        submit(&mut director, asked());
        assert!(fault(&mut director).unwrap().cause.contains("together"));
        director.file_came(CLIENT, FILE, 9);
        assert!(director.wants_file(CLIENT, FILE));
        submit(&mut director, asked());
        assert!(fault(&mut director).is_none() && !forgotten(&mut director));
        director.wants_file(2, FILE);
        director.client_left(CLIENT, START);
        assert!(fault(&mut director).is_some() && !forgotten(&mut director), "another client");
        director.client_left(2, director.now);
        director.tick(director.now);
        assert!(director.wants_file(CLIENT, FILE), "idle, and there");
        director.client_left(CLIENT, director.now);
        assert!(forgotten(&mut director));
        assert!(!director.wants_file(CLIENT, FILE));
    }

    #[test]
    fn of_too_many_idle_files_those_stay_that_were_needed_last() {
        let mut director = Director::default();
        let files = [1, 2, 3].map(|number| FileDigest([number; 32]));
        for (file, second) in files.into_iter().zip(1..) {
            let now = Duration::from_secs(second);
            director.file_came(CLIENT, file, IDLE_BYTES_MAX / 2);
            director.client_left(CLIENT, now);
            director.tick(now);
        }
        let there =
            |director: &Director| files.map(|file| director.shelf.files.contains_key(&file));
        assert_eq!(there(&director), [false, true, true]);
        director.wants_file(CLIENT, files[1]);
        director.tick(Duration::from_secs(4));
        director.client_left(CLIENT, Duration::from_secs(4));
        director.file_came(2, files[0], IDLE_BYTES_MAX / 2);
        director.tick(Duration::from_secs(5));
        assert_eq!(there(&director), [true; 3], "a client is there");
        director.client_left(2, Duration::from_secs(5));
        director.tick(Duration::from_secs(5));
        assert_eq!(there(&director), [true, true, false]);
    }

    #[test]
    fn f2_nobody_starts_before_all_who_take_part_hold_the_files() {
        let mut director = Director::default();
        let workers = [0, 1].map(|number| admit(&mut director, number));
        director.file_came(CLIENT, FILE, 9);
        submit(&mut director, asked());
        assert_eq!(orders(&mut director), (workers.to_vec(), Vec::new()));
        holds(&mut director, workers[0]);
        assert_eq!(orders(&mut director), (Vec::new(), Vec::new()));
        holds(&mut director, workers[1]);
        let (provided, started) = orders(&mut director);
        assert_eq!((provided.len(), started.len()), (0, 2));

        // One is lost; another comes, which never had them.
        let run = started[0].1;
        director.worker_left(workers[1], "", START);
        says(&mut director, workers[0], ToCoordinator::Aborted { run });
        let (provided, started) = orders(&mut director);
        assert_eq!((provided.len(), started.len()), (0, 1), "those that are left go on at once");
        let run = started[0].1;
        let another = admit(&mut director, 2);
        director.worker_left(workers[0], "", START);
        assert_eq!(orders(&mut director), (vec![another], Vec::new()));
        holds(&mut director, another);
        wait(&mut director, &[another]);
        let (_, started) = orders(&mut director);
        assert!(started.iter().any(|(worker, next)| *worker == another && *next > run));
    }

    #[test]
    fn a_worker_that_cannot_hold_a_file_is_done_without_and_if_none_can_the_job_fails() {
        let mut director = Director::default();
        let workers = [0, 1].map(|number| admit(&mut director, number));
        director.file_came(CLIENT, FILE, 9);
        submit(&mut director, asked());
        cannot(&mut director, workers[0]);
        assert!(orders(&mut director).1.is_empty());
        holds(&mut director, workers[1]);
        let (_, started) = orders(&mut director);
        assert_eq!(started.iter().map(|(worker, _)| *worker).collect::<Vec<_>>(), [workers[1]]);
        director.worker_left(workers[1], "", START);
        wait(&mut director, &workers[..1]);
        assert!(fault(&mut director).unwrap().cause.contains("no room"));
        submit(&mut director, asked());
        assert!(fault(&mut director).unwrap().cause.contains("no room"));
        // A job without files is not its concern.
        submit(&mut director, request());
        assert_eq!(orders(&mut director).1.len(), 1);
    }

    #[test]
    fn what_is_found_at_the_start_and_needed_by_nobody_is_idle() {
        let mut director = Director::default();
        director.files_found(vec![(FILE, 9)]);
        director.tick(START);
        assert!(director.effects().is_empty());
        assert!(forgotten(&mut director));
        director.files_found(vec![(FILE, 9)]);
        director.shelf.keep_all();
        assert!(!forgotten(&mut director));
    }
}
