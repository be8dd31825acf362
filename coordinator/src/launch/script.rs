//! What is run on a host, by its `sh`, whatever shell the user has there.
//!
//! A script comes over standard input, so that nobody sees the token in it: arguments and the environment of `ssh`
//! are everybody's to read, and so is the command line on the host.

use super::hosts::Settings;
use super::local::LocalDevice;
use protocol::identity::Token;
use std::fmt::Write;
use std::path::Path;

/// Finds the worker binary.
const FIND: &str = include_str!("find.sh");
/// Becomes a worker.
const JOIN: &str = include_str!("join.sh");

/// What a line for this program begins with.
const MARK: &str = "tessera ";

/// Reads the script and runs it. `dd` takes not a byte more than that; every shell that a user may have reads this alike.
pub(crate) const BOOT: &str = r#"exec sh -c 'read -r n; eval "$(dd bs=1 count=$n 2>/dev/null)"'"#;

/// Where the worker binary is on a host.
#[derive(Clone, Debug)]
pub(crate) enum Binary<'a> {
    /// There.
    Given(&'a str),
    /// There, as on this machine, or in the host's PATH.
    Found(&'a Path),
    /// Nowhere: it is a copy of this machine's.
    Copied {
        /// What it is called by.
        digest: &'a str,
        /// Its size in bytes.
        size: usize,
    },
}

/// What a worker is started with.
#[derive(Clone, Debug)]
pub(crate) struct Joining<'a> {
    /// Where its binary is.
    pub(crate) worker: &'a str,
    /// The coordinator it calls.
    pub(crate) coordinator: &'a Reach,
    /// What makes it a member; None where nobody is asked who they are.
    pub(crate) token: Option<&'a Token>,
    /// What logs and status call it.
    pub(crate) name: &'a str,
    /// Which of its host's workers it is.
    pub(crate) slot: u16,
    /// How many there are, which share its cores.
    pub(crate) shared: u16,
    /// What it computes with.
    pub(crate) settings: &'a Settings,
}

/// How workers reach the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// At this HOST:PORT.
    At(String),
    /// At this port of the machine from which ssh was called, as the host sees it.
    Caller(u16),
}

/// What a script says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// It runs.
    Here,
    /// There is no copy of the binary.
    Lacks,
    /// There is no binary in this place.
    Missing(&'a str),
    /// What the binary says of its version, or why it does not run.
    Version(&'a str),
    /// This is the binary.
    Worker(&'a str),
}

impl<'a> Said<'a> {
    /// Reads a line; None if it is not for this program.
    pub(crate) fn of(line: &'a str) -> Option<Self> {
        let line = line.strip_prefix(MARK)?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "here" => Some(Self::Here),
            "lacks" => Some(Self::Lacks),
            "missing" => Some(Self::Missing(rest)),
            "version" => Some(Self::Version(rest)),
            "worker" => Some(Self::Worker(rest)),
            _ => None,
        }
    }
}

/// The script that finds a host's worker, or takes a copy.
pub(crate) fn find(binary: &Binary<'_>) -> String {
    let mut script = String::new();
    match binary {
        Binary::Given(path) => set(&mut script, &[("way", "given"), ("worker", path)]),
        Binary::Found(path) => {
            set(&mut script, &[("way", "found"), ("worker", &path.to_string_lossy())]);
        }
        Binary::Copied { digest, size } => {
            set(&mut script, &[("way", "copied"), ("digest", digest), ("size", &size.to_string())]);
        }
    }
    whole(&(script + FIND))
}

/// The script that becomes a worker.
pub(crate) fn join(joining: &Joining<'_>) -> String {
    let Joining { worker, coordinator, token, name, slot, shared, settings } = joining;
    let (address, port) = match coordinator {
        Reach::At(address) => (&**address, String::new()),
        Reach::Caller(port) => ("", port.to_string()),
    };
    // A GPU's workers need one thread each, and say so themselves.
    let shared = if settings.device == Some(LocalDevice::Cuda) { 1 } else { *shared };
    let mut script = String::new();
    set(
        &mut script,
        &[
            ("worker", worker),
            ("coordinator", address),
            ("port", &port),
            ("token", &token.map_or_else(String::new, ToString::to_string)),
            ("threads", &settings.threads.map_or_else(String::new, |threads| threads.to_string())),
            ("shared", &shared.to_string()),
        ],
    );
    let mut options = vec!["--name".to_owned(), (*name).to_owned()];
    let mut option = |name: &str, value: String| options.extend([name.to_owned(), value]);
    match token {
        Some(_) => option("--identity", "memory".to_owned()),
        None => options.push("--insecure".to_owned()),
    }
    let mut option = |name: &str, value: String| options.extend([name.to_owned(), value]);
    match settings.device {
        Some(LocalDevice::Cuda) => option("--device", format!("cuda:{slot}")),
        Some(LocalDevice::Candle) => option("--device", "candle".to_owned()),
        Some(LocalDevice::Cpu) | None => {}
    }
    if let Some(model) = &settings.model {
        option("--model", model.clone());
    }
    if let Some(dtype) = settings.dtype {
        option("--dtype", dtype.name().to_owned());
    }
    let options: Vec<String> = options.iter().map(|option| quoted(option)).collect();
    script += &format!("set -- {}\n", options.join(" "));
    whole(&(script + JOIN))
}

/// Sets variables of the script.
fn set(script: &mut String, variables: &[(&str, &str)]) {
    for (name, value) in variables {
        // Writing to a string does not fail.
        writeln!(script, "{name}={}", quoted(value)).ok();
    }
}

/// The script as [`BOOT`] reads it.
fn whole(script: &str) -> String {
    format!("{}\n{script}", script.len())
}

/// A word of a script, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    /// What the script prints in a shell, given `input` after it.
    fn run(script: &str, input: &str, folder: &Path) -> String {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", BOOT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        shell.env("XDG_CACHE_HOME", folder).env("SSH_CONNECTION", "fe80::7 1 fe80::8 22");
        let mut shell = shell.spawn().unwrap();
        let mut stdin = shell.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        stdin.write_all(input.as_bytes()).ok(); // it may not read them
        drop(stdin);
        let output = shell.wait_with_output().unwrap();
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat()
    }

    fn program(folder: &Path, name: &str, text: &str) -> String {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn a_worker_is_started_with_all_that_was_said_and_nothing_of_it_is_lost_in_a_shell() {
        let folder = tempfile::tempdir().unwrap();
        let worker = program(
            folder.path(),
            "it's a worker",
            "#!/bin/sh\nprintf '<%s>' \"$TESSERA_TOKEN\" \"$@\"\nread -r left; echo \"left $left\"\n",
        );
        let model = Some("/models/it's $HOME \\ \"here\"".to_owned());
        let settings = Settings { model, device: Some(LocalDevice::Cuda), ..Settings::default() };
        let token = "tessera1.".to_owned() + &"00".repeat(61);
        let token = token.parse().unwrap();
        let coordinator = &Reach::Caller(7411);
        let joining = Joining {
            worker: &worker,
            coordinator,
            token: Some(&token),
            name: "node1/3",
            slot: 3,
            shared: 4,
            settings: &settings,
        };
        let printed = run(&join(&joining), "over\n", folder.path());
        let options = "<join><--coordinator><[fe80::7]:7411><--with-parent><--name><node1/3><--identity><memory>\
            <--device><cuda:3><--model></models/it's $HOME \\ \"here\">left over";
        assert_eq!(printed, format!("tessera here\n<{token}>{options}\n"));

        let cpu = Settings::default();
        let at = Reach::At("here:1".to_owned());
        let joining =
            Joining { token: None, settings: &cpu, shared: 1000, coordinator: &at, ..joining };
        let printed = run(&join(&joining), "", folder.path());
        let options = "<join><--coordinator><here:1><--with-parent><--name><node1/3><--insecure><--threads><1>";
        assert!(printed.contains(options), "{printed}");
    }

    #[test]
    fn a_copy_is_made_once_and_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let text = "#!/bin/sh\necho worker 1.2.3\n";
        let script = find(&Binary::Copied { digest: "abc", size: text.len() });
        let broken = run(&script, &text[..9], folder.path());
        assert!(broken.contains("tessera lacks") && broken.contains("broke off"), "{broken}");
        let place = folder.path().join("tessera");
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
        let worker = place.join("worker-abc").display().to_string();
        let all = format!("tessera version worker 1.2.3\ntessera worker {worker}\n");
        assert_eq!(
            run(&script, text, folder.path()),
            format!("tessera here\ntessera lacks\n{all}")
        );
        assert_eq!(run(&script, text, folder.path()), format!("tessera here\n{all}"));
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
    }

    #[test]
    fn a_binary_is_where_it_was_said_to_be_or_missing() {
        let folder = tempfile::tempdir().unwrap();
        let broken = program(folder.path(), "worker", "#!/nonexistent\n");
        let printed = run(&find(&Binary::Given(&broken)), "", folder.path());
        let version = printed.lines().find_map(|line| match Said::of(line) {
            Some(Said::Version(said)) => Some(said.to_owned()),
            _ => None,
        });
        assert!(version.is_some_and(|said| said.contains("not found")), "{printed}");
        let none = folder.path().join("none").display().to_string();
        let printed = run(&find(&Binary::Given(&none)), "", folder.path());
        assert_eq!(printed, format!("tessera here\ntessera missing {none}\n"));
        assert_eq!(Said::of("tessera missing /a b"), Some(Said::Missing("/a b")));
        assert_eq!(Said::of("Welcome to node1"), None);
        assert_eq!(Said::of("tessera what"), None);
    }
}
