//! `coordinator serve`.

use super::ADDRESS_DEFAULT;
use crate::actor::Coordinator;
use anyhow::Context;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long clients have to hear that the coordinator goes away: a message on an open connection.
const FAREWELL: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Where workers and commands reach it; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADDRESS_DEFAULT)]
    listen: String,
    /// Log more.
    #[arg(short, long)]
    verbose: bool,
}

pub(super) async fn run(arguments: ServeArgs) -> anyhow::Result<ExitCode> {
    let level = if arguments.verbose { tracing::Level::DEBUG } else { tracing::Level::INFO };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let coordinator = Coordinator::start(&arguments.listen).await.with_context(|| {
        format!("cannot listen on {} (give another address with --listen)", arguments.listen)
    })?;
    let address = coordinator.address();
    tracing::info!(
        "listening on {address}; workers join with `worker join --coordinator {address}`"
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("shutting down; workers stay and come back to the next coordinator here");
    coordinator.shut_down().await;
    tokio::time::sleep(FAREWELL).await;
    Ok(ExitCode::SUCCESS)
}
