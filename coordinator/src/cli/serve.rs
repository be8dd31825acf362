//! `coordinator serve`.

use super::ADDRESS_DEFAULT;
use super::http::HttpArgs;
use super::identity::{IdentityArgs, check_loopback};
use crate::actor::Coordinator;
use crate::director::Director;
use crate::identity::{Access, Folder, FolderError, Keeper, now};
use crate::job::store::Store;
use anyhow::Context;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long clients have to hear that the coordinator goes away: a message on an open connection.
const FAREWELL: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Where workers and commands reach it; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = ADDRESS_DEFAULT)]
    listen: String,
    /// Keep jobs here, so that a coordinator started again after this one ended, however it did, goes on with them;
    /// the ends of jobs are kept for a day [default: jobs end with this process].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Log more.
    #[arg(short, long)]
    verbose: bool,
}

pub(super) async fn run(arguments: ServeArgs) -> anyhow::Result<ExitCode> {
    let level = if arguments.verbose { tracing::Level::DEBUG } else { tracing::Level::INFO };
    // What the HTTP server has to say of itself is said here.
    let said = EnvFilter::new(format!("{level},actix_server=warn,actix_http=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(said)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let access = access(&arguments).await?;
    let http = arguments.http.listen().await?;
    let insecure = if arguments.identity.insecure { " --insecure" } else { "" };
    let director = match &arguments.data {
        Some(folder) => Director::open(Store::open(folder)?, now())?,
        None => Director::open(Store::in_memory(), now())?,
    };
    let started = Coordinator::start(&arguments.listen, access, director).await;
    let coordinator = started.with_context(|| {
        format!("cannot listen on {} (give another address with --listen)", arguments.listen)
    })?;
    let address = coordinator.address();
    let join = format!("worker join --coordinator {address}{insecure}");
    let http =
        http.map(|listener| arguments.http.start(listener, &coordinator, &join)).transpose()?;
    tracing::info!("listening on {address}; workers join with `{join}`");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("shutting down; workers stay and come back to the next coordinator here");
    coordinator.shut_down().await;
    let farewell = tokio::time::sleep(FAREWELL);
    match http {
        Some(server) => drop(tokio::join!(server.stop(FAREWELL), farewell)),
        None => farewell.await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whom it lets in: members of the cluster in its folder, or whoever calls.
async fn access(arguments: &ServeArgs) -> anyhow::Result<Access> {
    if arguments.identity.insecure {
        check_loopback("--listen", &arguments.listen).await?;
        tracing::warn!(
            "insecure: whoever can reach {} on this machine can submit and join, and nothing is \
             encrypted",
            arguments.listen
        );
        return Ok(Access::Insecure);
    }
    let opened = Folder::find(arguments.identity.identity.as_deref()).and_then(Keeper::open);
    match opened {
        Ok(keeper) => Ok(Access::Members(Arc::new(keeper))),
        Err(error @ (FolderError::Missing { .. } | FolderError::Nowhere)) => {
            Err(anyhow::Error::new(error).context(
                "a coordinator needs an identity: make one with `coordinator init`; or for this \
                 machine alone, give --insecure",
            ))
        }
        Err(error) => Err(error.into()),
    }
}
