//! `coordinator submit`.

use super::progress::Progress;
use super::request::RequestArgs;
use super::{ADDRESS_DEFAULT, INTERRUPTED, TERMINATED};
use crate::client::{Client, ClientError};
use crate::launch::local::{LocalCluster, LocalWorkers};
use crate::output::{Latents, Parameters, check_writable, write_png};
use anyhow::bail;
use bytes::Bytes;
use protocol::FaultKind;
use protocol::message::{Event, ToClient};
use protocol::plan::Geometry;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How long after its connection a worker's process may end: both happen at once.
const OBITUARY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Start N workers on this machine for this image, and stop them after it.
    #[arg(long, value_name = "N")]
    local: Option<NonZeroU16>,
    /// The coordinator to submit to.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT, conflicts_with = "local")]
    coordinator: String,
    /// Compute threads of each local worker [default: this machine's cores shared out].
    #[arg(long, value_name = "N", requires = "local")]
    threads: Option<NonZeroU16>,
    /// Where the image goes.
    #[arg(long, short, value_name = "FILE.png", default_value = "image.png")]
    out: PathBuf,
    /// Also write the latent after every model call: safetensors, key `latents`
    /// [calls, channels, rows, columns].
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Print one JSON object per event.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print nothing but errors.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(arguments: SubmitArgs) -> anyhow::Result<ExitCode> {
    check_outputs(&arguments)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut cluster = match arguments.local {
        Some(count) => Some(LocalCluster::start(&local_workers(&arguments, count)).await?),
        None => None,
    };
    let address =
        cluster.as_ref().map_or_else(|| arguments.coordinator.clone(), |c| c.address().to_string());
    let outcome = {
        let worker_died = async {
            match &mut cluster {
                Some(cluster) => cluster.worker_died().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            rendered = render(&arguments, &address) => rendered.map(|()| ExitCode::SUCCESS),
            died = worker_died => Err(died.into()),
            _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
            _ = terminate.recv() => Ok(ExitCode::from(TERMINATED)),
        }
    };
    match cluster {
        Some(cluster) => explain(outcome, cluster).await,
        None => outcome,
    }
}

/// Ends the local workers. If one was lost, how its process ended says more than that it did.
async fn explain(
    outcome: anyhow::Result<ExitCode>,
    mut cluster: LocalCluster,
) -> anyhow::Result<ExitCode> {
    let lost = outcome.as_ref().is_err_and(|error| {
        matches!(
            error.downcast_ref(),
            Some(ClientError::Refused(fault))
                if matches!(fault.kind, FaultKind::WorkerLost | FaultKind::PeerLost)
        )
    });
    let died = if lost { timeout(OBITUARY, cluster.worker_died()).await.ok() } else { None };
    cluster.stop().await;
    died.map_or(outcome, |died| Err(died.into()))
}

fn local_workers(arguments: &SubmitArgs, count: NonZeroU16) -> LocalWorkers {
    LocalWorkers {
        count,
        threads: arguments.threads,
        model: arguments.request.model.clone(),
        dtype: arguments.request.dtype,
    }
}

/// Finds out before anything is started whether what is rendered can be kept.
fn check_outputs(arguments: &SubmitArgs) -> anyhow::Result<()> {
    let out = &arguments.out;
    if !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        bail!("--out {}: images are written as PNG; give a name that ends in .png", out.display());
    }
    if arguments.save_latents.as_ref() == Some(out) {
        bail!("--out and --save-latents are both {}: give two names", out.display());
    }
    check_writable(out)?;
    arguments.save_latents.as_deref().map_or(Ok(()), check_writable)?;
    Ok(())
}

/// What has been heard of the job so far.
#[derive(Debug, Default)]
struct Heard {
    started: Option<(Parameters, Geometry)>,
    latents: Latents,
}

async fn render(arguments: &SubmitArgs, address: &str) -> anyhow::Result<()> {
    let mut progress = Progress::new(arguments.json, arguments.quiet);
    let mut client = Client::connect(address).await?;
    let local = arguments.local.map(NonZeroU16::get);
    let request = arguments.request.request(local, arguments.save_latents.is_some());
    let (job, ahead) = client.submit(request).await?;
    progress.accepted(job, ahead)?;
    let mut heard = Heard::default();
    loop {
        let (message, payload) = client.next().await?;
        let ToClient::Event { event, .. } = message else { continue };
        match &event {
            Event::Failed { fault } => {
                progress.event(&event)?;
                return Err(ClientError::Refused(fault.clone()).into());
            }
            Event::Finished { latent, .. } => {
                if let Some((parameters, _)) = &mut heard.started {
                    parameters.latent.clone_from(latent);
                }
                heard.write(arguments, &payload)?;
                progress.event(&event)?;
                return Ok(progress.written(&arguments.out, arguments.save_latents.as_deref())?);
            }
            Event::Started { spec, model, geometry, bands, .. } => {
                let parameters = Parameters {
                    spec: (**spec).clone(),
                    model: model.clone(),
                    workers: bands.len(),
                    bands: bands.iter().map(|band| (band.branch, band.rows)).collect(),
                    latent: String::new(), // known once it is finished
                    release: protocol::RELEASE.to_owned(),
                };
                heard.started = Some((parameters, *geometry));
            }
            Event::Step { .. } if arguments.save_latents.is_some() => heard.latents.push(&payload),
            _ => {}
        }
        progress.event(&event)?;
    }
}

impl Heard {
    fn write(&self, arguments: &SubmitArgs, pixels: &Bytes) -> anyhow::Result<()> {
        let Some((parameters, geometry)) = &self.started else {
            bail!("the coordinator finished a job that it never started");
        };
        if let Some(path) = &arguments.save_latents {
            self.latents.write(path, geometry)?;
        }
        Ok(write_png(&arguments.out, pixels, parameters)?)
    }
}
