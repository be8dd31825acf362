//! Workers on hosts: starts them, hears of their ends, ends them.

use super::admission::{Admission, AdmissionError};
use super::call::{self, Call};
use super::failure::{Ending, Failure, FailureKind};
use super::hosts::{Host, Place};
use super::roll::{Roll, Terms, Verdict};
use super::script::{self, Binary, Joining, Reach, Said};
use crate::actor::Coordinator;
use bytes::Bytes;
use protocol::identity::Token;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// How often the coordinator is asked who is there.
const LOOK: Duration = Duration::from_millis(200);

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The hosts.
    pub(crate) hosts: Vec<Host>,
    /// Workers that others start: what they are called.
    pub(crate) elsewhere: Vec<String>,
    /// A shell's command, such as `ssh -i key`.
    pub(crate) ssh: String,
    /// This machine's worker.
    pub(crate) binary: PathBuf,
    /// If it goes along, its bytes.
    pub(crate) copy: Option<Bytes>,
    /// How workers on this machine reach the coordinator.
    pub(crate) here: Reach,
    /// How those on others do.
    pub(crate) there: Reach,
    /// When it is a success.
    pub(crate) terms: Terms,
    /// Whether logs are JSON.
    pub(crate) json: bool,
}

/// Why a fleet ends by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FleetError {
    /// Too few came.
    #[error(
        "{here} of {asked} workers came, {wanted} are needed (--min-workers N takes fewer):\n{table}"
    )]
    TooFew {
        /// How many came.
        here: usize,
        /// How many were asked to.
        asked: usize,
        /// How many are needed.
        wanted: usize,
        /// What is known of each host.
        table: String,
    },
    /// The last one is gone.
    #[error("no worker is left:\n{0}")]
    Deserted(String),
    /// They cannot be let in.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

/// A host, and what its workers share.
struct Site {
    host: Host,
    order: Arc<Order>,
    /// The worker binary there.
    binary: OnceCell<Result<String, Failure>>,
    /// Held while a connection is made: an ssh server takes few that are not through with that.
    door: Mutex<()>,
}

/// A worker of a fleet.
#[derive(Clone)]
struct Post {
    site: Arc<Site>,
    slot: u16,
    name: String,
}

/// What a task has come to.
enum Done {
    /// The worker's process ended.
    Ended(usize, Ending),
    /// It is time to start it again.
    Rested(usize),
}

/// The workers that a launch has started.
pub(crate) struct Fleet {
    order: Arc<Order>,
    posts: Vec<Post>,
    roll: Roll,
    tasks: JoinSet<Done>,
    stop: watch::Sender<bool>,
    start: Instant,
}

impl Fleet {
    /// Starts the workers.
    ///
    /// # Errors
    /// If no token can be made for them.
    pub(crate) fn start(order: Order, admission: &mut Admission) -> Result<Self, FleetError> {
        let order = Arc::new(order);
        let (mut posts, mut roll) = (Vec::new(), Roll::new(order.terms));
        for host in &order.hosts {
            let site = Arc::new(Site {
                host: host.clone(),
                order: Arc::clone(&order),
                binary: OnceCell::new(),
                door: Mutex::default(),
            });
            for slot in 0..host.slots.get() {
                let name = match host.slots.get() {
                    1 => host.name.clone(),
                    _ => format!("{}/{slot}", host.name),
                };
                roll.ask(&name, &host.name);
                posts.push(Post { site: Arc::clone(&site), slot, name });
            }
        }
        for name in &order.elsewhere {
            roll.ask(name, name);
        }
        let token = admission.token(posts.len())?;
        let stop = watch::Sender::new(false);
        let mut fleet =
            Self { order, posts, roll, tasks: JoinSet::new(), stop, start: Instant::now() };
        for worker in 0..fleet.posts.len() {
            fleet.begin(worker, token.clone());
        }
        Ok(fleet)
    }

    fn begin(&mut self, worker: usize, token: Option<Token>) {
        let (post, stop) = (self.posts[worker].clone(), self.stop.subscribe());
        self.tasks.spawn(async move { Done::Ended(worker, post.work(token, stop).await) });
    }

    /// Follows what becomes of the workers, for as long as some are there. `ready` is called once there are enough, with
    /// what is to be said of them.
    ///
    /// # Errors
    /// If there are too few, or none any more.
    pub(crate) async fn follow(
        &mut self,
        coordinator: &Coordinator,
        admission: &mut Admission,
        ready: impl FnOnce(&Roll),
    ) -> Result<(), FleetError> {
        let mut ready = Some(ready);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(Ok(done)) = self.tasks.join_next() => self.done(done, admission)?,
                _ = look.tick() => {
                    let Some((view, _)) = coordinator.gauge().await else { continue };
                    let names = view.workers.iter().map(|worker| worker.name.clone()).collect();
                    self.roll.present(&names, self.start.elapsed());
                    admission.seen(&view, |name| self.roll.asked_for(name));
                }
            }
            let (here, asked) = self.roll.count();
            match self.roll.verdict(self.start.elapsed()) {
                Verdict::Ready => {
                    if let Some(ready) = ready.take() {
                        ready(&self.roll);
                    }
                }
                Verdict::TooFew if ready.is_some() => {
                    let (wanted, table) = (self.order.terms.min_workers, self.roll.table());
                    return Err(FleetError::TooFew { here, asked, wanted, table });
                }
                Verdict::TooFew | Verdict::Wait => {}
            }
            if ready.is_none() && self.roll.deserted() {
                return Err(FleetError::Deserted(self.roll.table()));
            }
        }
    }

    fn done(&mut self, done: Done, admission: &mut Admission) -> Result<(), FleetError> {
        match done {
            Done::Rested(worker) => {
                let token = admission.token(1)?;
                self.roll.again(worker);
                self.begin(worker, token);
            }
            Done::Ended(worker, ending) => {
                let name = self.roll.name(worker).to_owned();
                let pause = self.roll.ended(worker, ending.clone(), self.start.elapsed());
                match (ending, pause) {
                    (Ending::Left, _) => tracing::info!("{name} left"),
                    (Ending::Failed(Failure { kind, words }), None) => {
                        tracing::warn!("{name}: {}: {words}", kind.name());
                    }
                    (Ending::Failed(Failure { kind, words }), Some(pause)) => {
                        let (kind, pause_s) = (kind.name(), pause.as_secs());
                        tracing::warn!("{name}: {kind}: {words}; it starts again in {pause_s} s");
                        let mut stop = self.stop.subscribe();
                        self.tasks.spawn(async move {
                            tokio::select! {
                                () = sleep(pause) => {}
                                _ = stop.changed() => {}
                            }
                            Done::Rested(worker)
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends all workers, and waits until they are gone.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(done) = self.tasks.join_next().await {
            // One that rests is not started again.
            drop(done);
        }
    }
}

impl Post {
    /// Is a worker until it ends, or is to.
    async fn work(self, token: Option<Token>, mut stop: watch::Receiver<bool>) -> Ending {
        let begun = tokio::select! {
            begun = self.begin(token.as_ref()) => begun,
            _ = stop.changed() => return Ending::Left,
        };
        let mut call = match begun {
            Ok(call) => call,
            Err(failure) => return Ending::Failed(failure),
        };
        let ended = tokio::select! {
            ended = call.wait() => Some(ended.ending()),
            _ = stop.changed() => None,
        };
        if let Some(ending) = ended {
            return ending;
        }
        call.stop().await;
        Ending::Left
    }

    async fn begin(&self, token: Option<&Token>) -> Result<Call, Failure> {
        let site = &*self.site;
        let worker = site.binary.get_or_init(|| site.find()).await.clone()?;
        let (place, order) = (&site.host.place, &site.order);
        let joining = Joining {
            worker: &worker,
            coordinator: match place {
                Place::Here => &order.here,
                Place::Ssh { .. } => &order.there,
            },
            token,
            name: &self.name,
            slot: self.slot,
            shared: site.host.slots.get(),
            settings: &site.host.settings,
        };
        let _door = site.door.lock().await;
        site.call(&script::join(&joining), &self.name).await
    }
}

impl Site {
    /// Calls the host, until the script runs there.
    async fn call(&self, script: &str, name: &str) -> Result<Call, Failure> {
        let speak = call::speak(name, self.order.json);
        let mut call = Call::start(&self.host.place, &self.order.ssh, script, speak).await?;
        match call.next(|said| said == Said::Here).await {
            Some(true) => Ok(call),
            _ => Err(call.wait().await.uncalled()),
        }
    }

    /// Finds the worker there, or takes this machine's along.
    async fn find(&self) -> Result<String, Failure> {
        let (given, own) = (self.host.settings.worker.as_deref(), &*self.order.binary);
        let digest = self.order.copy.as_ref().map(|bytes| blake3::hash(bytes).to_hex());
        let binary = match (given, &self.order.copy, &digest, &self.host.place) {
            (Some(path), ..) => Binary::Given(path),
            (None, Some(bytes), Some(digest), Place::Ssh { .. }) => {
                Binary::Copied { digest: &digest[..32], size: bytes.len() }
            }
            (None, ..) => Binary::Found(own),
        };
        let mut call = self.call(&script::find(&binary), &self.host.name).await?;
        loop {
            let answer = call.next(|said| match said {
                Said::Lacks => Ok(None),
                Said::Worker(path) => Ok(Some(path.to_owned())),
                Said::Missing(place) => Err(Some(Failure::new(
                    FailureKind::Missing,
                    format!("there is none at {place}"),
                ))),
                Said::Version(said) => Err(Failure::of_version(said)),
                Said::Here => Err(None),
            });
            match answer.await {
                Some(Ok(Some(path))) => return Ok(path),
                Some(Ok(None)) => {
                    let bytes = self.order.copy.as_ref().map_or(&[][..], |bytes| bytes);
                    tracing::info!(
                        "copying the worker, {} MiB, to {}",
                        bytes.len() >> 20,
                        self.host.name
                    );
                    call.give(bytes).await;
                }
                Some(Err(Some(failure))) => return Err(failure),
                Some(Err(None)) => {}
                None => return Err(call.wait().await.broken()),
            }
        }
    }
}

/// Reads the binary that goes along.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn copied(binary: &Path) -> std::io::Result<Bytes> {
    Ok(std::fs::read(binary)?.into())
}
