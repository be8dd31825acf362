//! Clusters of real processes on this machine.

use protocol::job::JobSpec;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything here may take before a test fails: generous, because other tests share the
/// machine's few cores.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of this build's `coordinator` and `worker`, built once per test process: cargo does
/// not build other packages' binaries for a test.
///
/// # Panics
/// If they cannot be built.
#[must_use]
pub fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().expect("a running test has a path");
        let folder = test.ancestors().nth(2).expect("tests are in target/PROFILE/deps");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "coordinator", "-p", "worker", "--bins"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        build.env("CARGO_TARGET_DIR", folder.parent().expect("target/PROFILE has a parent"));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        // What cargo tells a test of its package, a build script of a dependency takes for a change: all that
        // depends on it would be built again, and again when cargo is next called by hand.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"]
                .iter()
                .any(|of| name.to_string_lossy().starts_with(of))
            {
                build.env_remove(name);
            }
        }
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "the binaries do not build");
        folder.to_owned()
    })
}

/// A command that runs this build's `name`.
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = Command::new(binaries().join(name));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "0");
    // Whoever runs the tests may be a member of a cluster: no test is.
    command.env_remove("TESSERA_TOKEN").env("TESSERA_IDENTITY", "/nonexistent");
    command.env_remove(protocol::version::VARIABLE);
    command.env("XDG_CACHE_HOME", binaries().join("cache-of-tests"));
    command
}

/// Runs `coordinator` with these arguments to its end.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn coordinator(arguments: &[&str]) -> process::Output {
    command("coordinator").args(arguments).output().expect("the coordinator starts")
}

/// What a process printed, as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The `submit` options that ask for `spec`.
#[must_use]
pub fn options(spec: &JobSpec) -> Vec<String> {
    let mut options = vec![
        spec.prompt.clone(),
        format!("--width={}", spec.width),
        format!("--height={}", spec.height),
        format!("--steps={}", spec.steps),
        format!("--guidance={}", spec.guidance),
        format!("--seed={}", spec.seed),
        format!("--scheduler={}", spec.scheduler),
        format!("--warmup={}", spec.warmup),
        format!("--parallelism={}", spec.parallelism),
        format!("--mode={}", spec.mode),
        format!("--gn-variance={}", spec.gn_variance),
        format!("--wire={}", spec.wire),
        format!("--decode={}", spec.decode),
    ];
    options.extend(spec.negative.iter().map(|negative| format!("--negative={negative}")));
    options
}

/// A coordinator and its workers, each with one compute thread, on free ports of this machine. They are
/// what `--insecure` makes them, but with [`Self::secure`].
#[derive(Debug)]
pub struct Cluster {
    /// Where the coordinator listens.
    pub address: String,
    /// Its process.
    pub coordinator: Process,
    /// The workers' processes, in the order they were started.
    pub workers: Vec<Process>,
    /// How its commands are told who they are.
    pub identity: Vec<String>,
}

impl Cluster {
    /// Starts a cluster and waits until all workers have joined.
    ///
    /// # Panics
    /// If they do not.
    #[must_use]
    pub fn start(workers: usize) -> Self {
        let address = free_address().to_string();
        let coordinator = serve(&address);
        let workers = (0..workers).map(|_| join(&address)).collect();
        let identity = vec!["--insecure".to_owned()];
        let cluster = Self { address, coordinator, workers, identity };
        cluster.wait_for_workers(cluster.workers.len());
        cluster
    }

    /// What `coordinator status --json` says; null while nobody answers.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = command("coordinator");
        status.args(["status", "--json", "--coordinator", &self.address]).args(&self.identity);
        let output = status.output().expect("the coordinator starts");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until exactly so many workers are there.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for_workers(&self, count: usize) {
        let there = || self.status()["workers"].as_array().map(Vec::len) == Some(count);
        assert!(eventually(there), "not {count} workers: {}", self.status());
    }

    /// Starts `submit` on this cluster with these further arguments.
    #[must_use]
    pub fn submit(&self, arguments: &[&str]) -> Process {
        let mut submit = command("coordinator");
        submit.args(["submit", "--coordinator", &self.address]).args(&self.identity);
        Process::spawn(submit.args(arguments))
    }

    /// Starts a cluster with identities in `folder`, and waits until all workers have joined by tokens.
    ///
    /// # Panics
    /// If they do not.
    #[must_use]
    pub fn secure(folder: &Path, workers: usize) -> Self {
        let identity = vec!["--identity".to_owned(), folder.display().to_string()];
        let _next = succeed(&["init", &identity[0], &identity[1]]);
        let address = free_address().to_string();
        let serve = ["serve", "--http=off", "--listen", &address, &identity[0], &identity[1]];
        let coordinator = Process::start("coordinator", &serve);
        coordinator.wait_for("listening on");
        let mut cluster = Self { address, coordinator, workers: Vec::new(), identity };
        for number in 0..workers {
            let (token, kept) = (cluster.token(&[]), folder.join(format!("worker-{number}")));
            let worker = join_as(&cluster.address, &kept, &["--token", &token]);
            cluster.workers.push(worker);
            cluster.wait_for_workers(number + 1); // so that they have joined in order
        }
        cluster
    }

    /// A token of a cluster with identities, made with these arguments.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn token(&self, arguments: &[&str]) -> String {
        let identity = [&*self.identity[0], &self.identity[1]];
        succeed(&[&["token"], &identity[..], arguments].concat()).trim().to_owned()
    }
}

/// Runs `coordinator` with these arguments and gives what it prints.
///
/// # Panics
/// If it fails.
#[must_use]
pub fn succeed(arguments: &[&str]) -> String {
    let output = coordinator(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Starts a worker with one compute thread and its identity in `folder`.
#[must_use]
pub fn join_as(address: &str, folder: &Path, arguments: &[&str]) -> Process {
    let mut worker = command("worker");
    worker.args(["join", "--coordinator", address, "--listen", "127.0.0.1:0", "--threads", "1"]);
    Process::spawn(worker.arg("--identity").arg(folder).args(arguments))
}

/// Starts a coordinator that listens on `address`.
#[must_use]
pub fn serve(address: &str) -> Process {
    let serve = ["serve", "--insecure", "--http=off", "--listen", address];
    let process = Process::start("coordinator", &serve);
    process.wait_for("listening on");
    process
}

/// Starts a worker with one compute thread for the coordinator at `address`.
#[must_use]
pub fn join(address: &str) -> Process {
    let listen = ["--insecure", "--listen", "127.0.0.1:0", "--threads", "1"];
    Process::start("worker", &[&["join", "--coordinator", address][..], &listen].concat())
}

/// A process that is killed when the test ends, however it ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Lines,
    collectors: Vec<JoinHandle<()>>,
}

/// What a process printed, by lines, and when each came.
type Lines = Arc<Mutex<Vec<(Instant, String)>>>;

/// An event that `submit --json` printed, and when it came.
pub type Heard = (Instant, Value);

impl Process {
    /// Starts `name` with these arguments, collecting what it prints.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::spawn(command(name).args(arguments))
    }

    /// Starts a [`command`], collecting what it prints.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the process starts");
        let output = Lines::default();
        let stdout = child.stdout.take().map(|stdout| collect(stdout, Arc::clone(&output)));
        let stderr = child.stderr.take().map(|stderr| collect(stderr, Arc::clone(&output)));
        Self { child, output, collectors: stdout.into_iter().chain(stderr).collect() }
    }

    /// Its process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    ///
    /// # Panics
    /// If the collecting thread panicked.
    #[must_use]
    pub fn output(&self) -> String {
        let lines = self.output.lock().expect("the collector does not panic");
        lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// The events that it has printed so far, if it is a `submit --json`.
    ///
    /// # Panics
    /// If the collecting thread panicked.
    #[must_use]
    pub fn events(&self) -> Vec<Heard> {
        let lines = self.output.lock().expect("the collector does not panic");
        let event = |(at, line): &(Instant, String)| Some((*at, serde_json::from_str(line).ok()?));
        lines.iter().filter_map(event).collect()
    }

    /// Waits until it has printed an event that is `wanted`, and gives it.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    #[must_use]
    pub fn wait_for_event(&self, wanted: impl Fn(&Value) -> bool) -> Heard {
        let mut found = None;
        eventually(|| {
            found = self.events().into_iter().find(|(_, event)| wanted(event));
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no such event; printed:\n{}", self.output()))
    }

    /// Waits until it has printed `words`.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub fn wait_for(&self, words: &str) {
        let found = eventually(|| self.output().contains(words));
        assert!(found, "never printed {words:?}; printed:\n{}", self.output());
    }

    /// Sends it a signal by name, as `kill -NAME`.
    ///
    /// # Panics
    /// If there is no such process any more.
    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits for its end, and for all that it printed, and gives its exit code; None if a signal
    /// ended it.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`].
    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        let ended = eventually(|| {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        assert!(ended, "still running; printed:\n{}", self.output());
        for collector in self.collectors.drain(..) {
            collector.join().expect("the collector does not panic");
        }
        status.and_then(|status| status.code())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn collect(from: impl Read + Send + 'static, into: Lines) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut output = into.lock().expect("readers of the output do not panic");
            output.push((Instant::now(), line));
        }
    })
}

/// Sends a signal by name to a process.
///
/// # Panics
/// If it cannot be sent.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status();
    assert!(status.expect("kill runs").success(), "process {process} takes no {name}");
}

/// Whether `condition` comes true within [`PATIENCE`].
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose parent is `parent`, by number.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process| parent_of(*process) == Some(parent))
        .collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = status.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// Whether the process is there and not a zombie.
#[must_use]
pub fn alive(process: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/stat")) else {
        return false;
    };
    let state = status.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

/// An address on this machine that nobody listens on.
///
/// # Panics
/// If no port is free.
#[must_use]
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a bound socket has an address")
}
