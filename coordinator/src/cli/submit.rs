//! `coordinator submit`.

use super::cluster::ClusterArgs;
use super::progress::Progress;
use super::request::RequestArgs;
use crate::client::{ClientError, Destination, Submission};
use crate::output::{Latents, Parameters, check_writable, write_png, write_whole};
use crate::profile::Profiles;
use anyhow::bail;
use bytes::Bytes;
use protocol::job::JobRequest;
use protocol::message::Event;
use protocol::plan::Geometry;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Where the image goes.
    #[arg(long, short, value_name = "FILE.png", default_value = "image.png")]
    out: PathBuf,
    /// Also write the latent after every model call: safetensors, key `latents`
    /// [calls, channels, rows, columns].
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Print where the workers' time went, by kind of layer and by peer waited for, and write when they did
    /// what: a trace that Perfetto (ui.perfetto.dev) and Chrome show.
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
    /// Print one JSON object per event.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print nothing but errors.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(arguments: SubmitArgs) -> anyhow::Result<ExitCode> {
    check_outputs(&arguments)?;
    let work = async |to: &Destination| render(&arguments, to).await;
    arguments.cluster.run(&arguments.request, work).await
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
    if let Some(same) = arguments.profile.as_ref()
        && [Some(out), arguments.save_latents.as_ref()].contains(&Some(same))
    {
        bail!("--profile {}: another output has that name; give each its own", same.display());
    }
    for path in [&arguments.save_latents, &arguments.profile] {
        path.as_deref().map_or(Ok(()), check_writable)?;
    }
    Ok(())
}

/// What has been heard of the job so far.
#[derive(Debug, Default)]
struct Heard {
    started: Option<(Parameters, Geometry)>,
    latents: Latents,
    profiles: Profiles,
}

async fn render(arguments: &SubmitArgs, to: &Destination) -> anyhow::Result<()> {
    let mut progress = Progress::new(arguments.json, arguments.quiet);
    let local = arguments.cluster.local();
    let request = arguments.request.request(local, arguments.save_latents.is_some());
    let request = JobRequest { profile: arguments.profile.is_some(), ..request };
    let mut submission = Submission::new(to, request).await?;
    progress.accepted(submission.job(), submission.ahead())?;
    let mut heard = Heard::default();
    loop {
        let (event, payload) = submission.next().await?;
        if let Event::Profiled { rank, profile } = event {
            heard.profiles.add(rank, profile);
            continue;
        }
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
                progress.written(&arguments.out, arguments.save_latents.as_deref())?;
                if let Some(path) = &arguments.profile {
                    progress.profiled(path, &heard.profiles)?;
                }
                return Ok(());
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
            Event::Step { call, .. } if arguments.save_latents.is_some() => {
                heard.latents.put(usize::try_from(*call)?, payload);
            }
            // The bands that the image's parameters tell of are those of its end.
            Event::Resumed { bands, .. } => {
                if let Some((parameters, _)) = &mut heard.started {
                    parameters.workers = bands.len();
                    parameters.bands = bands.iter().map(|band| (band.branch, band.rows)).collect();
                }
            }
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
        if let Some(path) = &arguments.profile {
            let trace = serde_json::to_vec(&self.profiles.trace())?;
            write_whole(path, |file| file.write_all(&trace))?;
        }
        Ok(write_png(&arguments.out, pixels, parameters)?)
    }
}
