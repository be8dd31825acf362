//! `coordinator serve`.

use super::ADDRESS_DEFAULT;
use super::http::HttpArgs;
use super::identity::{IdentityArgs, check_loopback};
use super::logging::LogArgs;
use crate::actor::Coordinator;
use crate::api::Server;
use crate::director::{Director, Retention};
use crate::files::Files;
use crate::identity::{Access, Folder, FolderError, Keeper, now};
use crate::job::store::{Store, StoreError};
use crate::telemetry;
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Names the database if the command line does not.
const DATABASE_VARIABLE: &str = "TESSERA_DATABASE";
/// How long clients have to hear that the coordinator goes away: a message on an open connection.
const FAREWELL: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Where workers and commands reach it; port 0 takes a free one [default: 127.0.0.1:7411, which this machine alone
    /// reaches; with `launch`, 0.0.0.0:7411 if there are other hosts].
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) listen: Option<String>,
    /// Keep jobs here, so that a coordinator started again after this one ended, however it did, goes on with them
    /// [default: jobs end with this process].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Keep jobs in this Postgres database instead, and only the files that they are rendered with under --data; also
    /// by `TESSERA_DATABASE`, which nobody reads in a list of processes.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// How many days the ends of jobs and their images are kept [default: 1].
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=36_500)
    )]
    keep_days: Option<u64>,
    /// How many GiB of images are kept: the oldest go first, before their days are over [default: 4].
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1 << 20)
    )]
    keep_gib: Option<u64>,
    /// Send a trace of each job that ends to the OpenTelemetry collector at this address, by OTLP over HTTP; `OTEL_EXPORTER_OTLP_HEADERS`
    /// says what goes with it.
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
    /// Log more: each call of each job, too.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// A coordinator that this process runs, with its HTTP interface.
pub(super) struct Service {
    pub(super) coordinator: Coordinator,
    http: Option<Server>,
    pub(super) taken: Taken,
}

/// What says that another coordinator has gone on with the jobs of this one.
pub(super) struct Taken(mpsc::Receiver<StoreError>);

impl Taken {
    /// Why this coordinator must end, once it must.
    pub(super) async fn wait(&mut self) -> StoreError {
        match self.0.recv().await {
            Some(taken) => taken,
            None => std::future::pending().await, // a store that nobody else can take
        }
    }
}

pub(super) async fn run(arguments: ServeArgs) -> anyhow::Result<ExitCode> {
    arguments.begin_log();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let listen = arguments.listen.as_deref().unwrap_or(ADDRESS_DEFAULT);
    let mut service = start(&arguments, listen).await?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        taken = service.taken.wait() => return Err(taken.into()),
    }
    tracing::info!("shutting down; workers stay and come back to the next coordinator here");
    service.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Starts a coordinator that listens there.
pub(super) async fn start(arguments: &ServeArgs, listen: &str) -> anyhow::Result<Service> {
    let access = access(arguments, listen).await?;
    let http = arguments.http.listen().await?;
    let insecure = if arguments.identity.insecure { " --insecure" } else { "" };
    let (store, taken) = open(arguments)?;
    let mut director = Director::open(store, now())?;
    if let Some(url) = &arguments.otlp {
        director.tell_ends(telemetry::export_to(url)?);
    }
    director.retain(retention(arguments));
    let files = match &arguments.data {
        Some(folder) => Files::open(folder),
        None => Files::temporary(),
    };
    let files = files.context("the files of jobs cannot be kept")?;
    let started = Coordinator::start_with(listen, access, director, files).await;
    let coordinator = started.with_context(|| {
        format!("cannot listen on {listen} (give another address with --listen)")
    })?;
    let address = coordinator.address();
    let join = format!("worker join --coordinator {address}{insecure}");
    let http =
        http.map(|listener| arguments.http.start(listener, &coordinator, &join)).transpose()?;
    tracing::info!("listening on {address}; workers join with `{join}`");
    Ok(Service { coordinator, http, taken })
}

impl Service {
    /// Ends it, once clients have heard of that.
    pub(super) async fn stop(self) {
        self.coordinator.shut_down().await;
        let farewell = tokio::time::sleep(FAREWELL);
        match self.http {
            Some(server) => drop(tokio::join!(server.stop(FAREWELL), farewell)),
            None => farewell.await,
        }
    }
}

impl ServeArgs {
    /// Logs from now on.
    pub(super) fn begin_log(&self) {
        let level = if self.verbose { tracing::Level::DEBUG } else { tracing::Level::INFO };
        self.log.begin(level);
    }
}

/// The store of jobs, and what says that another coordinator took it.
fn open(arguments: &ServeArgs) -> anyhow::Result<(Store, Taken)> {
    let (say, taken) = mpsc::channel(1);
    let url = arguments.database.clone().or_else(|| std::env::var(DATABASE_VARIABLE).ok());
    let store = match (&arguments.data, url) {
        (_, Some(url)) => {
            // Once: whoever waits for it ends the process.
            let store = Store::connect(&url, move |error| drop(say.try_send(error)))?;
            tracing::info!("jobs are kept in {}", store.place());
            store
        }
        (Some(folder), None) => Store::open(folder)?,
        (None, None) if arguments.keep_days.is_some() || arguments.keep_gib.is_some() => {
            anyhow::bail!(
                "--keep-days and --keep-gib say how much is kept, and nothing is: give --data DIR or --database URL, too"
            )
        }
        (None, None) => Store::in_memory(),
    };
    Ok((store, Taken(taken)))
}

/// How much is kept of jobs that ended.
fn retention(arguments: &ServeArgs) -> Retention {
    let default = Retention::default();
    Retention {
        seconds: arguments.keep_days.map_or(default.seconds, |days| days * 86_400),
        image_bytes: arguments.keep_gib.map_or(default.image_bytes, |gib| gib << 30),
    }
}

/// Whom it lets in: members of the cluster in its folder, or whoever calls.
async fn access(arguments: &ServeArgs, listen: &str) -> anyhow::Result<Access> {
    if arguments.identity.insecure {
        check_loopback("--listen", listen).await?;
        tracing::warn!(
            "insecure: whoever can reach {listen} on this machine can submit and join, and nothing is \
             encrypted"
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

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn kept(options: &[&str]) -> Retention {
        let line = ["coordinator", "serve", "--data", "jobs"].iter().chain(options);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Serve(arguments) => retention(&arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_said_of_how_much_is_kept_stays_as_it_is() {
        let (seconds, image_bytes) = (7 * 86_400, 100 << 30);
        assert_eq!(kept(&[]), Retention::default());
        assert_eq!(kept(&["--keep-days", "7"]), Retention { seconds, ..Retention::default() });
        assert_eq!(kept(&["--keep-days=7", "--keep-gib=100"]), Retention { seconds, image_bytes });
    }
}
