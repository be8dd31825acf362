//! `coordinator token`.

use super::members::say;
use super::{FolderArgs, human_time, time};
use crate::cluster::trust::Trust;
use crate::identity::{Folder, now};
use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use protocol::identity::{Role, Terms, TokenError, TokenId};
use protocol::keyfile;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// What its holder becomes.
    #[arg(long, value_enum, default_value_t)]
    role: Holder,
    /// For how long it is good: a number of s, m, h or d.
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "1h")]
    lifetime: Duration,
    /// How many processes it makes members.
    #[arg(long, value_name = "N", default_value = "1")]
    uses: NonZeroU32,
    /// Write it there, for this user alone to read, and print but its number [default: print it].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the tokens and the members.
    List,
    /// Make a token worthless. Those who became members by it stay members.
    Revoke {
        /// Which, as `coordinator token list` shows it.
        id: TokenId,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Holder {
    /// A worker.
    #[default]
    Worker,
    /// A client: may submit and ask.
    Client,
}

/// Makes a token and prints it; lists or revokes tokens.
pub(crate) fn token(arguments: &TokenArgs) -> anyhow::Result<ExitCode> {
    let folder = arguments.folder.find()?;
    match &arguments.action {
        None => make(&folder, arguments),
        Some(Action::List) => say(&list(&folder.trust()?, now())),
        Some(Action::Revoke { id }) => {
            if !folder.change(|trust| trust.tokens.revoke(*id))? {
                bail!("there is no token {id}: `coordinator token list` shows them");
            }
            say(&format!("revoked the token {id}\n"))
        }
    }
}

fn make(folder: &Folder, arguments: &TokenArgs) -> anyhow::Result<ExitCode> {
    let authority = folder.authority()?.fingerprint();
    let role = match arguments.role {
        Holder::Worker => Role::Worker,
        Holder::Client => Role::Client,
    };
    let now = now();
    let expires = now + arguments.lifetime.as_secs();
    let terms = Terms { role, expires, uses: arguments.uses.get() };
    let token = folder.change(|trust| trust.tokens.make(terms, authority, now))??;
    let Some(out) = &arguments.out else { return say(&format!("{token}\n")) };
    keyfile::write(out, &format!("{token}\n"))?;
    say(&format!("wrote the token {} to {}\n", token.id, out.display()))
}

fn list(trust: &Trust, now: u64) -> String {
    let mut text = "TOKEN     ROLE         USED      STATE\n".to_owned();
    for record in trust.tokens.records() {
        let state = match record.refusal(now) {
            None => format!("good for {}", human_time(record.expires - now)),
            Some(TokenError::Expired(_)) => "expired".to_owned(),
            Some(TokenError::Revoked(_)) => "revoked".to_owned(),
            Some(_) => "used up".to_owned(),
        };
        let used = format!("{} of {}", record.used, record.uses);
        text +=
            &format!("{:<9} {:<12} {used:<9} {state}\n", record.id.to_string(), record.role.name());
    }
    text += "\nMEMBER    ROLE         STATE     NAME\n";
    for member in &trust.members {
        let identity = &member.identity;
        let state = match identity.expires.checked_sub(now) {
            _ if member.revoked => "revoked".to_owned(),
            None => "expired".to_owned(),
            Some(left) => human_time(left),
        };
        let (fingerprint, role) = (identity.fingerprint.short(), identity.role.name());
        text += &format!("{fingerprint:<9} {role:<12} {state:<9} {}\n", identity.name);
    }
    text
}
