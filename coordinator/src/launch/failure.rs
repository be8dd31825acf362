//! How a worker's process ended, and what people can do about it.

use protocol::RELEASE;
use std::fmt;

/// With what ssh itself exits; what runs on a host never does.
const SSH_FAILED: i32 = 255;

/// How a worker's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As it was asked to, such as by `coordinator drain`.
    Left,
    /// Otherwise.
    Failed(Failure),
}

/// Why there is no worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What kind of failure it is.
    pub(crate) kind: FailureKind,
    /// What ssh, the shell or the worker said of it.
    pub(crate) words: String,
}

/// What kind of failure there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Its host does not answer.
    Unreachable,
    /// ssh does not know the host's key, or knows another.
    UnknownHost,
    /// The host does not let this user in.
    Denied,
    /// There is no worker binary.
    Missing,
    /// The worker is another release's.
    OtherRelease,
    /// The binary, or the shell that looks for it, does not run.
    Unfit,
    /// It ended by itself, or something killed it.
    Died,
    /// The connection to its host broke.
    Lost,
    /// It did not come in time.
    Absent,
}

impl FailureKind {
    /// In a word or two.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::UnknownHost => "unknown key",
            Self::Denied => "access denied",
            Self::Missing => "no worker",
            Self::OtherRelease => "other release",
            Self::Unfit => "does not run",
            Self::Died => "died",
            Self::Lost => "lost",
            Self::Absent => "not joined",
        }
    }

    /// What people can do about it.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Unreachable => {
                "look at its name, its port and the network: `ssh` must get there without asking \
                 anything (--ssh COMMAND gives it options)"
            }
            Self::UnknownHost => "call it once with `ssh` and compare its key",
            Self::Denied => {
                "ssh must get in without a password: `ssh-copy-id` puts your key there, `ssh-add` opens it"
            }
            Self::Missing => {
                "name it with --worker PATH or worker=PATH, or take this machine's along with --copy"
            }
            Self::OtherRelease => {
                "install the same release there, or take this machine's along with --copy"
            }
            Self::Unfit => {
                "build it for that machine, and name it with --worker PATH or worker=PATH"
            }
            Self::Died => "its log is above",
            Self::Lost => "look at the host and the network",
            Self::Absent => {
                "it must reach the coordinator (--address HOST, firewalls); if it only needs longer, \
                 give --patience SECONDS"
            }
        }
    }
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, words: impl Into<String>) -> Self {
        Self { kind, words: words.into() }
    }

    /// What a call came to that ended with `status` before anything ran on the host. `words` are the last that
    /// it said.
    pub(crate) fn of_call(ssh: bool, status: impl fmt::Display, words: &str) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        let kind = match ssh {
            false => FailureKind::Unfit,
            true if has(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"]) => {
                FailureKind::UnknownHost
            }
            true if has(&["Permission denied", "Too many authentication failures"]) => {
                FailureKind::Denied
            }
            true => FailureKind::Unreachable,
        };
        Self::new(kind, said(words, &status))
    }

    /// What the binary's own `--version` says, or the shell's words where it does not run; None if it is this release.
    pub(crate) fn of_version(version: &str) -> Option<Self> {
        match version.strip_prefix("worker ") {
            Some(RELEASE) => None,
            Some(there) => {
                let words = format!("release {there} there, {RELEASE} here");
                Some(Self::new(FailureKind::OtherRelease, words))
            }
            None => Some(Self::new(FailureKind::Unfit, said(version, &"it says nothing"))),
        }
    }
}

impl Ending {
    /// How a worker ended that ran: `code` is its exit code, unless a signal ended it.
    pub(crate) fn of_worker(
        ssh: bool,
        code: Option<i32>,
        status: impl fmt::Display,
        words: &str,
    ) -> Self {
        match code {
            Some(0) => Self::Left,
            Some(SSH_FAILED) if ssh => {
                Self::Failed(Failure::new(FailureKind::Lost, said(words, &status)))
            }
            _ => {
                let last = words.lines().next_back().unwrap_or("it said nothing");
                Self::Failed(Failure::new(FailureKind::Died, format!("{status}: {last}")))
            }
        }
    }
}

/// The last line of these words; if there are none, the status.
fn said(words: &str, status: &dyn fmt::Display) -> String {
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| status.to_string(), |line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_says_tells_what_is_wrong() {
        let of = |words: &str| Failure::of_call(true, "exit status: 255", words).kind;
        for (words, kind) in [
            ("ssh: connect to host x port 22: Connection refused", FailureKind::Unreachable),
            (
                "ssh: Could not resolve hostname x: Name or service not known",
                FailureKind::Unreachable,
            ),
            ("Host key verification failed.", FailureKind::UnknownHost),
            ("me@x: Permission denied (publickey).", FailureKind::Denied),
            ("", FailureKind::Unreachable),
        ] {
            assert_eq!(of(words), kind, "{words}");
        }
        let local = Failure::of_call(false, "exit status: 2", "sh: no\n");
        assert_eq!((local.kind, &*local.words), (FailureKind::Unfit, "sh: no"));
        assert_eq!(Failure::of_call(true, "exit status: 255", " \n").words, "exit status: 255");
    }

    #[test]
    fn another_release_and_what_does_not_run_are_told_apart() {
        assert_eq!(Failure::of_version(&format!("worker {RELEASE}")), None);
        let other = Failure::of_version("worker 9.9.9").unwrap();
        assert_eq!(other.kind, FailureKind::OtherRelease);
        assert!(other.words.contains("9.9.9") && other.words.contains(RELEASE), "{other:?}");
        let unfit = Failure::of_version("sh: 1: worker: Exec format error").unwrap();
        assert_eq!(unfit.kind, FailureKind::Unfit);
        assert!(!Failure::of_version("").unwrap().words.is_empty());
    }

    #[test]
    fn a_worker_that_was_asked_to_leave_did_not_fail() {
        assert_eq!(Ending::of_worker(true, Some(0), "exit status: 0", ""), Ending::Left);
        let kind = |ssh, code| match Ending::of_worker(ssh, code, "status", "one\ntwo") {
            Ending::Failed(failure) => Some((failure.kind, failure.words)),
            Ending::Left => None,
        };
        let died = || Some((FailureKind::Died, "status: two".to_owned()));
        assert_eq!(kind(true, Some(255)), Some((FailureKind::Lost, "two".to_owned())));
        assert_eq!(kind(false, Some(255)), died());
        assert_eq!((kind(true, Some(1)), kind(true, None)), (died(), died()));
    }
}
