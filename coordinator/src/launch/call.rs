//! A process on a host: over ssh or in a shell of this machine, with what it says.

use super::failure::{Ending, Failure, FailureKind};
use super::hosts::Place;
use super::script::{BOOT, Said};
use std::collections::VecDeque;
use std::io::Write;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Lines kept of what it says: enough to see why it ended.
const WORDS_LINES: usize = 5;
/// How long a process may take to end, and its connection to close, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How ssh is called. A user's own options come first, and the first says what counts.
const SSH_OPTIONS: [&str; 5] = [
    "-T",
    "-oBatchMode=yes",
    "-oConnectTimeout=10",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
];

/// Says lines of a host's process to people.
pub(crate) type Speak = Arc<dyn Fn(&str) + Send + Sync>;

/// A process on a host.
pub(crate) struct Call {
    child: Child,
    ssh: bool,
    stdin: Option<ChildStdin>,
    stdout: tokio::io::Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<()>,
    words: Arc<Mutex<VecDeque<String>>>,
    speak: Speak,
}

impl Call {
    /// Calls the host, and gives it the script. `ssh` is a shell's command.
    ///
    /// # Errors
    /// If not even this machine's shell runs.
    pub(crate) async fn start(
        place: &Place,
        ssh: &str,
        script: &str,
        speak: Speak,
    ) -> Result<Self, Failure> {
        let mut command = command(place, ssh);
        let over_ssh = matches!(place, Place::Ssh { .. });
        let unfit =
            |what: &str| Failure::new(FailureKind::Unfit, format!("cannot start sh: {what}"));
        let mut child = command.spawn().map_err(|error| unfit(&error.to_string()))?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(unfit("it has no streams"));
        };
        // Whoever hangs up before it has read all says why.
        stdin.write_all(script.as_bytes()).await.ok();
        let words = Arc::default();
        let stderr = tokio::spawn(listen(stderr, Arc::clone(&words), Arc::clone(&speak)));
        let stdout = BufReader::new(stdout).lines();
        Ok(Self { child, ssh: over_ssh, stdin: Some(stdin), stdout, stderr, words, speak })
    }

    /// The next thing that the script says; None at its end. All else that it prints is spoken.
    pub(crate) async fn next<T>(&mut self, read: impl Fn(Said<'_>) -> T) -> Option<T> {
        while let Ok(Some(line)) = self.stdout.next_line().await {
            if let Some(said) = Said::of(&line) {
                return Some(read(said));
            }
            (self.speak)(&line);
        }
        None
    }

    /// Gives it `bytes`, and the end of its input. One that hangs up says why.
    pub(crate) async fn give(&mut self, bytes: &[u8]) {
        if let Some(mut stdin) = self.stdin.take() {
            stdin.write_all(bytes).await.ok();
        }
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> Ended {
        while self.next(|_| ()).await.is_some() {}
        let status = self.child.wait().await;
        // What it said last may still be on its way; a process that it left behind may keep the stream open.
        timeout(END_PATIENCE, &mut self.stderr).await.ok();
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = words.iter().cloned().collect::<Vec<_>>().join("\n");
        Ended { ssh: self.ssh, status: status.ok(), words }
    }

    /// Ends it: a worker whose standard input is closed ends.
    pub(crate) async fn stop(mut self) {
        drop(self.stdin.take());
        if timeout(END_PATIENCE, self.child.wait()).await.is_err() {
            // It may have ended between the two; either way it is gone after this.
            self.child.kill().await.ok();
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    ssh: bool,
    status: Option<ExitStatus>,
    words: String,
}

impl Ended {
    fn status(&self) -> String {
        self.status
            .map_or_else(|| "it cannot be waited for".to_owned(), |status| status.to_string())
    }

    /// If nothing ran on the host.
    pub(crate) fn uncalled(&self) -> Failure {
        Failure::of_call(self.ssh, self.status(), &self.words)
    }

    /// If a script ran, and did not say what it should have.
    pub(crate) fn broken(&self) -> Failure {
        let last = self.words.lines().next_back().unwrap_or("it broke off");
        Failure::new(FailureKind::Unfit, format!("{}: {last}", self.status()))
    }

    /// If a worker ran.
    pub(crate) fn ending(&self) -> Ending {
        let code = self.status.and_then(|status| status.code());
        Ending::of_worker(self.ssh, code, self.status(), &self.words)
    }
}

fn command(place: &Place, ssh: &str) -> Command {
    let mut command = Command::new("sh");
    match place {
        Place::Here => {
            command.args(["-c", BOOT]);
        }
        Place::Ssh { destination, port } => {
            // As git has it: the user's command is the shell's, what is added to it is not.
            command.args(["-c", &format!("exec {ssh} \"$@\""), "ssh"]).args(SSH_OPTIONS);
            if let Some(port) = port {
                command.args(["-p", &port.to_string()]);
            }
            command.args(["--", destination, BOOT]);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A terminal's Ctrl-C is for this process alone, which then ends the others.
    command.process_group(0).kill_on_drop(true);
    command
}

/// Speaks what comes from a process, and keeps the last of it.
async fn listen(from: impl AsyncRead + Unpin, words: Arc<Mutex<VecDeque<String>>>, speak: Speak) {
    let mut lines = BufReader::new(from).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        speak(line);
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_back(line.to_owned());
        while words.len() > WORDS_LINES {
            words.pop_front();
        }
    }
}

/// Says a host's line to people, after its name.
pub(crate) fn speak(name: &str, json: bool) -> Speak {
    let (name, shown) = (name.to_owned(), console::style(format!("[{name}]")).for_stderr().cyan());
    Arc::new(move |line| {
        if json {
            tracing::info!(host = name, "{line}");
        } else {
            // A closed standard error leaves nobody to tell.
            writeln!(std::io::stderr(), "{shown} {line}").ok();
        }
    })
}
