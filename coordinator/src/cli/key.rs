//! `coordinator key`: who may call over HTTP.

use super::identity::{human_time, say};
use crate::api::keys::{KeyFile, KeyLimits, Keys};
use crate::identity::{Folder, now};
use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// The file in the identity's folder, unless another is named.
const FILE: &str = "api-keys";

#[derive(Debug, clap::Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    action: Action,
    /// The file of keys, as `serve --api-keys` takes it [default: api-keys in the identity's folder].
    #[arg(long, value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and print it: it is shown this once, and the file has only its hash.
    New {
        /// Whose it is: the owner of the jobs that are submitted with it.
        name: String,
        /// How many of its jobs may wait at once [default: as many as the queue takes].
        #[arg(long, value_name = "N")]
        waiting: Option<usize>,
        /// The most pixels of an image, such as 1048576 for 1024x1024 [default: as many as the server allows].
        #[arg(long, value_name = "N")]
        pixels: Option<u64>,
        /// The most sampler steps [default: as many as the server allows].
        #[arg(long, value_name = "N")]
        steps: Option<u32>,
        /// How many jobs it may submit in a minute [default: any number].
        #[arg(long, value_name = "N")]
        per_minute: Option<u32>,
    },
    /// Show the keys' names and limits.
    List,
    /// Make a key worthless, within a second.
    Revoke {
        /// Whose.
        name: String,
    },
}

/// Makes, lists or revokes keys.
pub(super) fn run(arguments: &KeyArgs) -> anyhow::Result<ExitCode> {
    let file = match &arguments.file {
        Some(file) => KeyFile::at(file),
        None => KeyFile::at(&Folder::find(None).context("give --file FILE")?.path().join(FILE)),
    };
    match &arguments.action {
        Action::New { name, waiting, pixels, steps, per_minute } => {
            let limits = KeyLimits {
                waiting: *waiting,
                pixels: *pixels,
                steps: *steps,
                per_minute: *per_minute,
            };
            let key = file.change(|keys| keys.make(name, limits, now()))??;
            say(arguments.json, &format!("{key}\n"), &json!({ "name": name, "key": key }))
        }
        Action::List => {
            let keys = file.read()?;
            say(arguments.json, &list(&keys, now()), &listed(&keys))
        }
        Action::Revoke { name } => {
            if !file.change(|keys| keys.revoke(name))? {
                let path = file.path().display();
                bail!("there is no key `{name}` in {path}: `coordinator key list` shows them");
            }
            say(arguments.json, &format!("revoked the key {name}\n"), &json!({ "revoked": name }))
        }
    }
}

/// The keys as JSON; what they are is nobody's to know.
fn listed(keys: &Keys) -> Value {
    let each = keys.iter().map(|key| {
        json!({
            "name": key.name,
            "made": key.made,
            "waiting": key.waiting,
            "pixels": key.pixels,
            "steps": key.steps,
            "per_minute": key.per_minute,
        })
    });
    json!({ "keys": each.collect::<Vec<_>>() })
}

fn list(keys: &Keys, now: u64) -> String {
    let mut text =
        "NAME                 AGE     WAITING  PIXELS      STEPS  PER MINUTE\n".to_owned();
    for key in keys.iter() {
        let shown =
            |limit: Option<u64>| limit.map_or_else(|| "any".to_owned(), |limit| limit.to_string());
        let age = human_time(now.saturating_sub(key.made));
        let waiting = shown(key.waiting.and_then(|waiting| waiting.try_into().ok()));
        let (pixels, steps) = (shown(key.pixels), shown(key.steps.map(u64::from)));
        let per_minute = shown(key.per_minute.map(u64::from));
        text += &format!(
            "{:<20} {age:<7} {waiting:<8} {pixels:<11} {steps:<6} {per_minute}\n",
            key.name
        );
    }
    text
}
