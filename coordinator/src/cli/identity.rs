//! The options that say who a command is, and `coordinator init`, `enroll`, `token` and `revoke`.

mod members;
mod token;

pub(super) use members::{EnrollArgs, InitArgs, RevokeArgs, enroll, ensure, init, revoke};
pub(super) use token::{TokenArgs, token};

use super::ADDRESS_DEFAULT;
use crate::client::Destination;
use crate::identity::{Folder, FolderError};
use anyhow::{Context, bail};
use protocol::identity::Role;
use protocol::tls::Security;
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::lookup_host;

const FOLDER_HELP: &str = "The folder of the identity [default: $TESSERA_IDENTITY, \
     $XDG_CONFIG_HOME/tessera or ~/.config/tessera]";

/// Where a command keeps what it makes.
#[derive(Clone, Debug, clap::Args)]
struct FolderArgs {
    #[arg(long, value_name = "DIR", global = true, help = FOLDER_HELP)]
    identity: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
}

impl FolderArgs {
    fn find(&self) -> Result<Folder, FolderError> {
        Folder::find(self.identity.as_deref())
    }

    /// Prints what was done, for people or for programs.
    fn say(&self, text: &str, json: &Value) -> anyhow::Result<ExitCode> {
        say(self.json, text, json)
    }
}

/// Prints what was done, for programs or for people.
pub(super) fn say(as_json: bool, text: &str, json: &Value) -> anyhow::Result<ExitCode> {
    let text = if as_json { format!("{json}\n") } else { text.to_owned() };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct IdentityArgs {
    #[arg(long, value_name = "DIR", conflicts_with = "insecure", help = FOLDER_HELP)]
    pub(super) identity: Option<PathBuf>,
    /// Neither prove who this is nor ask: for a coordinator on this machine that was started so.
    #[arg(long)]
    pub(super) insecure: bool,
}

impl IdentityArgs {
    /// Whether one of them was given.
    pub(super) fn given(&self) -> bool {
        self.insecure || self.identity.is_some()
    }

    /// The options that make another command call the coordinator at `address` as the same client.
    pub(super) fn options(&self, address: &str) -> String {
        let mut options = String::new();
        if address != ADDRESS_DEFAULT {
            options += &format!(" --coordinator {address}");
        }
        if let Some(folder) = &self.identity {
            options += &format!(" --identity {}", folder.display());
        }
        if self.insecure {
            options += " --insecure";
        }
        options
    }

    /// The coordinator at `address`, and how to call it.
    pub(super) async fn destination(&self, address: &str) -> anyhow::Result<Destination> {
        let security = if self.insecure {
            check_loopback("--coordinator", address).await?;
            Security::Insecure
        } else {
            let credentials = Folder::find(self.identity.as_deref())
                .and_then(|folder| folder.credentials(Role::Client));
            Security::mutual(credentials.map_err(without_identity)?)?
        };
        Ok(Destination { address: address.to_owned(), security })
    }
}

/// What a command can do that finds no identity.
fn without_identity(error: FolderError) -> anyhow::Error {
    match error {
        FolderError::Missing { .. } | FolderError::Nowhere => anyhow::Error::new(error).context(
            "this command needs an identity: on the coordinator's machine, `coordinator init` made \
             one; elsewhere, get one with `coordinator enroll`; or if the coordinator is on this \
             machine and was started with --insecure, give --insecure",
        ),
        other => other.into(),
    }
}

/// What is not protected stays on this machine.
pub(super) async fn check_loopback(option: &str, address: &str) -> anyhow::Result<()> {
    let found = lookup_host(address).await.with_context(|| format!("{option} {address}"))?;
    for found in found {
        if !found.ip().is_loopback() {
            bail!(
                "{option} {address}: with --insecure nobody proves who they are and nothing is \
                 encrypted, which only this machine's own addresses (127.0.0.1) may be; make \
                 identities with `coordinator init` and leave --insecure out"
            );
        }
    }
    Ok(())
}

/// Reads a time with its unit.
fn time(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let read = units.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(*seconds).filter(|seconds| (1..=365 * 86_400).contains(seconds))
    });
    let read = read.map(Duration::from_secs);
    read.ok_or_else(|| "give a number of s, m, h or d, at most 365d, such as 90m".to_owned())
}

/// Seconds as people read them: in the largest unit that there is one of.
pub(super) fn human_time(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = units.iter().find(|(size, _)| seconds >= 2 * *size);
    unit.map_or_else(|| format!("{seconds}s"), |(size, name)| format!("{}{name}", seconds / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(time("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "1", "0s", "-1h", "1.5h", "366d", "99999999999999999999d", "h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        let shown = [59, 3600, 7200, 86_400 * 365].map(human_time);
        assert_eq!(shown, ["59s", "60m", "2h", "365d"]);
    }
}
