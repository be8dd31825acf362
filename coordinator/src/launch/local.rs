//! A coordinator in this process and workers beside it, for one image.

use crate::actor::Coordinator;
use crate::client::Destination;
use crate::director::Director;
use crate::identity::{Access, Keeper, now};
use protocol::identity::{Role, Terms, Token};
use protocol::job::Dtype;
use protocol::tls::Security;
use std::collections::VecDeque;
use std::fmt::Display;
use std::num::NonZeroU16;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Names the worker binary if it is not beside the coordinator's.
const WORKER_VARIABLE: &str = "TESSERA_WORKER";
/// Lines kept of what a worker logs: enough to see why it died.
const LOG_LINES_MAX: usize = 20;
/// How long workers may take to exit before they are killed: they have nothing to save.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);
/// How long workers have to become members, in seconds: they do at once, but a busy machine may take
/// its time to start them.
const TOKEN_SECONDS: u64 = 3600;
/// How often the workers are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What local workers are started with.
#[derive(Clone, Debug)]
pub struct LocalWorkers {
    /// How many.
    pub count: NonZeroU16,
    /// Compute threads of each; None shares this machine's cores out.
    pub threads: Option<NonZeroU16>,
    /// The checkpoint; None is the built-in one.
    pub model: Option<PathBuf>,
    /// The type weights are held in.
    pub dtype: Option<Dtype>,
    /// What they compute on.
    pub device: LocalDevice,
}

/// What local workers compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LocalDevice {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU each: the first worker on the first.
    Cuda,
    /// The processor, slowly, with what GPUs would be given: a test.
    Candle,
}

/// Why a local cluster does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// There is no worker binary.
    #[error(
        "no worker binary at {}: build it with `cargo build --release`, or name it in \
         {WORKER_VARIABLE}", .0.display()
    )]
    NoBinary(PathBuf),
    /// A process or a port cannot be had.
    #[error("cannot start {what}: {cause}")]
    Start {
        /// What was to be started.
        what: String,
        /// What the system said.
        cause: String,
    },
    /// A worker ended before the image was there.
    #[error("worker {number} (process {process}) ended unexpectedly: {status}{log}")]
    WorkerDied {
        /// Which of them.
        number: usize,
        /// Its process number.
        process: u32,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it logged.
        log: String,
    },
}

/// A coordinator and its workers. Workers end with this process however it ends: they watch their
/// standard input, which the system closes.
#[derive(Debug)]
pub struct LocalCluster {
    coordinator: Coordinator,
    /// What this process is to the coordinator.
    security: Security,
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    child: Child,
    process: u32,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl LocalCluster {
    /// Starts a coordinator on a free port and its workers: a cluster of its own, whose authority is in
    /// this process's memory and nowhere else.
    ///
    /// # Errors
    /// If there is no worker binary, or a process cannot be started.
    pub async fn start(options: &LocalWorkers) -> Result<Self, LaunchError> {
        let binary = worker_binary()?;
        let refused = |what: &str, error: &dyn Display| LaunchError::Start {
            what: what.to_owned(),
            cause: error.to_string(),
        };
        let what = "a coordinator";
        let keeper = Keeper::ephemeral().map_err(|error| refused(what, &error))?;
        let security = keeper.client().map_err(|error| refused(what, &error))?;
        let uses = options.count.get().into();
        let terms = Terms { role: Role::Worker, expires: now() + TOKEN_SECONDS, uses };
        let token = keeper.token(terms).map_err(|error| refused(what, &error))?;
        let access = Access::Members(Arc::new(keeper));
        let coordinator = Coordinator::start("127.0.0.1:0", access, Director::default()).await;
        let coordinator = coordinator.map_err(|error| refused(what, &error))?;
        let address = coordinator.address().to_string();
        let mut workers = Vec::new();
        for number in 0..options.count.get() {
            let to = (&*address, &token);
            let command = worker_command(&binary, to, options, number);
            let what = binary.display().to_string();
            workers.push(Worker::start(command).map_err(|error| refused(&what, &error))?);
        }
        Ok(Self { coordinator, security, workers })
    }

    /// The coordinator, and how this process calls it.
    #[must_use]
    pub fn destination(&self) -> Destination {
        let (address, security) = (self.coordinator.address().to_string(), self.security.clone());
        Destination { address, security }
    }

    /// Waits until a worker ends in a way that ends the cluster: by its own decision, before all had joined, or as
    /// the last one. Of one that something killed the others take the work over.
    pub async fn worker_died(&mut self) -> LaunchError {
        let mut known = Vec::new();
        loop {
            let complete = self.coordinator.admitted() >= self.workers.len();
            let mut dead = Vec::new();
            for (number, worker) in self.workers.iter_mut().enumerate() {
                dead.extend(worker.child.try_wait().ok().flatten().map(|status| (number, status)));
            }
            let decides = |(_, status): &&(usize, ExitStatus)| {
                !complete || status.signal().is_none() || dead.len() == self.workers.len()
            };
            // Of several it is the one that was alive until now that decided.
            let new = |(number, _): &&(usize, ExitStatus)| !known.contains(number);
            if let Some((number, status)) = dead.iter().filter(new).find(decides).copied() {
                // What it logged last may still be on its way.
                sleep(LOOK).await;
                let (process, log) = (self.workers[number].process, self.workers[number].log());
                return LaunchError::WorkerDied { number, process, status, log };
            }
            known = dead.iter().map(|(number, _)| *number).collect();
            sleep(LOOK).await;
        }
    }

    /// Ends the workers and waits until they are gone.
    pub async fn stop(mut self) {
        for worker in &mut self.workers {
            drop(worker.child.stdin.take());
        }
        for worker in &mut self.workers {
            if timeout(EXIT_PATIENCE, worker.child.wait()).await.is_err() {
                // It may have ended between the two; either way it is gone after this.
                worker.child.kill().await.ok();
            }
        }
        self.coordinator.shut_down().await;
    }
}

impl Worker {
    fn start(mut command: Command) -> std::io::Result<Self> {
        let mut child = command.spawn()?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_back(line);
                    while log.len() > LOG_LINES_MAX {
                        log.pop_front();
                    }
                }
            });
        }
        let process = child.id().unwrap_or_default();
        Ok(Self { child, process, log })
    }

    fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(|line| format!("\n  {line}")).collect()
    }
}

/// The worker binary of this machine.
///
/// # Errors
/// If there is none.
pub(crate) fn worker_binary() -> Result<PathBuf, LaunchError> {
    let beside = || {
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("coordinator"));
        own.with_file_name("worker")
    };
    let path = std::env::var_os(WORKER_VARIABLE).map_or_else(beside, PathBuf::from);
    if path.is_file() { Ok(path) } else { Err(LaunchError::NoBinary(path)) }
}

fn worker_command(
    binary: &PathBuf,
    (coordinator, token): (&str, &Token),
    options: &LocalWorkers,
    number: u16,
) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shared = match options.device {
        // One thread gives a GPU its work.
        LocalDevice::Cuda => 1,
        LocalDevice::Cpu | LocalDevice::Candle => (cores / usize::from(options.count.get())).max(1),
    };
    let threads = options.threads.map_or(shared, |threads| threads.get().into());
    let mut command = Command::new(binary);
    command
        .arg("join")
        .args(["--coordinator", coordinator, "--listen", "127.0.0.1:0", "--identity", "memory"])
        // Not an argument: those are everybody's to see.
        .env("TESSERA_TOKEN", token.to_string())
        .args(["--threads", &threads.to_string(), "--with-parent"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for this process alone, which then ends its workers.
        .process_group(0)
        .kill_on_drop(true);
    match options.device {
        LocalDevice::Cpu => {}
        LocalDevice::Cuda => {
            command.args(["--device", &format!("cuda:{number}")]);
        }
        LocalDevice::Candle => {
            command.args(["--device", "candle"]);
        }
    }
    if let Some(model) = &options.model {
        command.arg("--model").arg(model);
    }
    if let Some(dtype) = options.dtype {
        command.args(["--dtype", dtype.name()]);
    }
    command
}
