//! A Postgres server of a test's own.

use crate::cluster::{eventually, free_address, signal};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Who it runs as where tests run as root, which it refuses to: nobody.
const USER: u32 = 65534;

/// A server, which ends with its test.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    folder: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// A server with an empty database; None, said, where Postgres is not installed.
    ///
    /// # Panics
    /// If one that is installed does not start.
    #[must_use]
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let why = "skipped: Postgres is not installed (Debian's package is postgresql)";
            writeln!(std::io::stderr(), "{why}").ok(); // nobody may be there to read it
            return None;
        };
        let folder =
            tempfile::Builder::new().prefix("tessera-postgres").tempdir().expect("a folder");
        if rustix::process::getuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(USER), Some(USER)).expect("root may");
        }
        let port = free_address().port();
        let mut server = Self { programs, folder, port, server: None };
        let made = server
            .command("initdb")
            .args(["--auth=trust", "--username=tessera", "--encoding=UTF8", "--no-sync"])
            .arg("--pgdata")
            .arg(server.data())
            .output()
            .expect("it is there");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.go_on();
        Some(server)
    }

    /// The database's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://tessera@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it, after it was stopped.
    ///
    /// # Panics
    /// If it does not start.
    pub fn go_on(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).expect("a file");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        self.server = Some(command.stderr(log).spawn().expect("it is there"));
        let answers = || self.query_output("SELECT 1").is_some();
        assert!(eventually(answers), "{:?}", fs::read_to_string(self.folder.path().join("log")));
    }

    /// Ends it as a loss of power does, but for the disk's cache.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let server = self.server.as_mut().expect("it runs");
        signal(server.id(), "QUIT"); // its processes end where they are
        server.wait().expect("it runs");
        self.server = None;
    }

    /// What it answers.
    ///
    /// # Panics
    /// If it answers with an error.
    #[expect(clippy::must_use_candidate, reason = "some change what is there")]
    pub fn query(&self, sql: &str) -> String {
        self.query_output(sql).expect(sql)
    }

    fn query_output(&self, sql: &str) -> Option<String> {
        let mut command = self.command("psql");
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", sql]);
        let output = command.arg(self.url()).output().expect("it is there");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(self.programs.join(name.as_ref()));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        if rustix::process::getuid().is_root() {
            command.uid(USER).gid(USER);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

/// Where its programs are: Debian has them in a folder for each version.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    folders.extend(env::split_paths(&path));
    let has = |folder: &Path| {
        ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).exists())
    };
    folders.into_iter().find(|folder| has(folder))
}
