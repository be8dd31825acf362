//! `coordinator token`.

use super::members::member;
use super::{FolderArgs, human_time, time};
use crate::cluster::trust::{Issued, Trust};
use crate::identity::{Folder, now};
use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use protocol::identity::{Role, Terms, TokenError, TokenId, TokenRecord};
use protocol::keyfile;
use serde_json::{Value, json};
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
        Some(Action::List) => {
            let (trust, now) = (folder.trust()?, now());
            arguments.folder.say(&list(&trust, now), &listed(&trust, now))
        }
        Some(Action::Revoke { id }) => {
            if !folder.change(|trust| trust.tokens.revoke(*id))? {
                bail!("there is no token {id}: `coordinator token list` shows them");
            }
            let text = format!("revoked the token {id}\n");
            arguments.folder.say(&text, &json!({ "revoked": id.to_string() }))
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
    let (id, role) = (token.id.to_string(), role.name());
    let mut json = json!({ "id": id, "role": role, "expires": expires, "uses": terms.uses });
    let Some(out) = &arguments.out else {
        json["token"] = token.to_string().into();
        return arguments.folder.say(&format!("{token}\n"), &json);
    };
    keyfile::write(out, &format!("{token}\n"))?;
    json["file"] = out.display().to_string().into();
    arguments.folder.say(&format!("wrote the token {id} to {}\n", out.display()), &json)
}

fn list(trust: &Trust, now: u64) -> String {
    let mut text = "TOKEN     ROLE         USED      STATE\n".to_owned();
    for record in trust.tokens.records() {
        let state = match token_state(record, now) {
            "good" => format!("good for {}", human_time(record.expires - now)),
            other => other.to_owned(),
        };
        let used = format!("{} of {}", record.used, record.uses);
        text +=
            &format!("{:<9} {:<12} {used:<9} {state}\n", record.id.to_string(), record.role.name());
    }
    text += "\nMEMBER    ROLE         STATE     NAME\n";
    for member in &trust.members {
        let identity = &member.identity;
        let state = match member_state(member, now) {
            "good" => human_time(identity.expires - now),
            other => other.to_owned(),
        };
        let (fingerprint, role) = (identity.fingerprint.short(), identity.role.name());
        text += &format!("{fingerprint:<9} {role:<12} {state:<9} {}\n", identity.name);
    }
    text
}

/// The same as JSON.
fn listed(trust: &Trust, now: u64) -> Value {
    let token = |record: &TokenRecord| {
        json!({
            "id": record.id.to_string(),
            "role": record.role.name(),
            "used": record.used,
            "uses": record.uses,
            "expires": record.expires,
            "state": token_state(record, now),
        })
    };
    let member = |each: &Issued| {
        let mut json = member(&each.identity);
        json["state"] = member_state(each, now).into();
        json
    };
    json!({
        "tokens": trust.tokens.records().iter().map(token).collect::<Vec<_>>(),
        "members": trust.members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn token_state(record: &TokenRecord, now: u64) -> &'static str {
    match record.refusal(now) {
        None => "good",
        Some(TokenError::Expired(_)) => "expired",
        Some(TokenError::Revoked(_)) => "revoked",
        Some(_) => "used up",
    }
}

fn member_state(member: &Issued, now: u64) -> &'static str {
    match member.identity.expires.checked_sub(now) {
        _ if member.revoked => "revoked",
        None => "expired",
        Some(_) => "good",
    }
}
