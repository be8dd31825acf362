//! `coordinator drain`.

use super::ADDRESS_DEFAULT;
use super::identity::IdentityArgs;
use super::progress::say;
use crate::client::Client;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// The worker, by the number or the name that `coordinator status` shows.
    worker: String,
    /// The coordinator to ask.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    coordinator: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: DrainArgs) -> anyhow::Result<ExitCode> {
    let to = arguments.identity.destination(&arguments.coordinator).await?;
    let worker = Client::connect(&to).await?.drain(arguments.worker).await?;
    if arguments.json {
        say(&json!({ "event": "drained", "worker": worker }))?;
    } else {
        say(&format!("{worker} has left"))?;
    }
    Ok(ExitCode::SUCCESS)
}
