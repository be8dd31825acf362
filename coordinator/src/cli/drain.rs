//! `coordinator drain`.

use super::ADDRESS_DEFAULT;
use super::identity::IdentityArgs;
use crate::client::Client;
use std::io::{self, Write};
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
}

pub(super) async fn run(arguments: DrainArgs) -> anyhow::Result<ExitCode> {
    let to = arguments.identity.destination(&arguments.coordinator).await?;
    let worker = Client::connect(&to).await?.drain(arguments.worker).await?;
    match writeln!(io::stdout(), "{worker} has left") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
