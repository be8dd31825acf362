//! `coordinator submit`.

mod terms;

use self::terms::TermsArgs;
use super::cluster::ClusterArgs;
use super::given::{Given, GivenArgs};
use super::preview::{Picture, PreviewArg, Screen};
use super::progress::{Progress, say};
use super::request::RequestArgs;
use crate::client::{ClientError, Destination, Submission};
use crate::output::{Latents, Parameters, check_writable, preview, write_png, write_whole};
use crate::profile::{self, Profiles};
use anyhow::bail;
use bytes::Bytes;
use protocol::job::{JobRequest, PreviewMap};
use protocol::message::{BandView, Event, JobTrace, RunTrace};
use protocol::plan::Geometry;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    given: GivenArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Where the image goes.
    #[arg(long, short, value_name = "FILE.png", default_value = "image.png")]
    out: PathBuf,
    /// Also write the latent after every model call: safetensors, key `latents`
    /// [calls, channels, rows, columns].
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Show the image as it comes to be, in a terminal.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = PreviewArg::Auto)]
    preview: PreviewArg,
    /// Print where the workers' time went, by kind of layer and by peer waited for, and write when they did
    /// what: a trace that Perfetto (ui.perfetto.dev) and Chrome show.
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
    /// Have workers take down where their time goes, for `coordinator trace`; --profile does, too.
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    terms: TermsArgs,
    /// Print one JSON object per event.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print nothing but errors; with --detach nothing but the job's number.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(arguments: SubmitArgs) -> anyhow::Result<ExitCode> {
    if !arguments.terms.detached() {
        check_outputs(&arguments)?;
    }
    let given = arguments.given.read()?;
    let quiet = arguments.json || arguments.quiet || arguments.terms.detached();
    let screen = arguments.preview.screen(quiet)?;
    let work = async |to: &Destination| match arguments.terms.detached() {
        true => detach(&arguments, &given, to).await,
        false => render(&arguments, (&given, screen), to).await,
    };
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
    runs: Vec<RunTrace>,
    preview: Option<PreviewMap>,
}

async fn render(
    arguments: &SubmitArgs,
    (given, screen): (&Given, Option<Screen>),
    to: &Destination,
) -> anyhow::Result<()> {
    let local = arguments.cluster.local();
    let latents = arguments.save_latents.is_some() || screen.is_some();
    let mut progress = Progress::new(arguments.json, arguments.quiet).with_previews(screen);
    let request = arguments.request.request(local, latents);
    let profile = arguments.profile.is_some() || arguments.trace;
    let request = given.with(JobRequest { profile, ..request });
    let mut submission =
        Submission::with_files(to, request, arguments.terms.terms(), &given.files).await?;
    progress.accepted(submission.job(), submission.ahead())?;
    let mut heard = Heard::default();
    loop {
        let (event, payload) = submission.next().await?;
        if let Event::Profiled { rank, profile } = event {
            if let Some(run) = heard.runs.last_mut() {
                run.profiles.push((rank, profile));
            }
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
                progress.preview(heard.image(&payload))?;
                progress.event(&event)?;
                progress.written(&arguments.out, arguments.save_latents.as_deref())?;
                if let Some(path) = &arguments.profile {
                    progress.profiled(path, &heard.profiles())?;
                }
                return Ok(());
            }
            Event::Started { spec, model, geometry, bands, preview, .. } => {
                let parameters = Parameters::new((**spec).clone(), model.clone(), bands);
                heard.runs.push(shared(bands));
                heard.started = Some((parameters, *geometry));
                heard.preview.clone_from(preview);
            }
            Event::Step { call, .. } => {
                if progress.wants_preview() {
                    progress.preview(heard.picture(&payload))?;
                }
                if arguments.save_latents.is_some() {
                    heard.latents.put(usize::try_from(*call)?, payload);
                }
            }
            Event::Resumed { bands, spec, .. } => {
                heard.runs.push(shared(bands));
                if let Some((parameters, _)) = &mut heard.started {
                    parameters.share(bands);
                    if let Some(spec) = spec {
                        parameters.spec.clone_from(spec);
                    }
                }
            }
            _ => {}
        }
        progress.event(&event)?;
    }
}

/// Submits it and leaves it.
async fn detach(arguments: &SubmitArgs, given: &Given, to: &Destination) -> anyhow::Result<()> {
    let request = arguments.request.request(None, false);
    let request = given.with(JobRequest { profile: arguments.trace, ..request });
    let terms = arguments.terms.terms();
    let submission = Submission::with_files(to, request, terms, &given.files).await?;
    let options = arguments.cluster.options();
    let told = terms::detached(&submission, &options, (arguments.json, arguments.quiet));
    say(&told)?;
    Ok(())
}

/// A run of which nothing is known yet but who renders what.
fn shared(bands: &[BandView]) -> RunTrace {
    let (links, parts, profiles) = (Vec::new(), Vec::new(), Vec::new());
    RunTrace { bands: bands.to_vec(), links, parts, profiles }
}

impl Heard {
    fn profiles(&self) -> Profiles {
        let mut profiles = Profiles::default();
        for (rank, profile) in self.runs.iter().flat_map(|run| &run.profiles) {
            profiles.add(*rank, profile.clone());
        }
        profiles
    }

    /// What the latent after a step looks like.
    fn picture(&self, latent: &Bytes) -> anyhow::Result<Option<Picture>> {
        let Some((_, geometry)) = &self.started else { return Ok(None) };
        let Some(map) = &self.preview else {
            bail!("the workers could not tell how their model's latents look");
        };
        let pixels = preview(latent, *geometry, map)?;
        Ok(Picture::new(geometry.columns, geometry.rows, &pixels))
    }

    /// What it is in the end.
    fn image(&self, pixels: &Bytes) -> anyhow::Result<Option<Picture>> {
        let size =
            self.started.as_ref().map(|(Parameters { spec, .. }, _)| (spec.width, spec.height));
        Ok(size.and_then(|(width, height)| Picture::new(width, height, pixels)))
    }

    fn write(&self, arguments: &SubmitArgs, pixels: &Bytes) -> anyhow::Result<()> {
        let Some((parameters, geometry)) = &self.started else {
            bail!("the coordinator finished a job that it never started");
        };
        if let Some(path) = &arguments.save_latents {
            self.latents.write(path, geometry)?;
        }
        if let Some(path) = &arguments.profile {
            let runs = self.runs.clone();
            let trace = JobTrace { start_us: 0, runs, detail_every: 1, left_out: 0 };
            let trace = serde_json::to_vec(&profile::chrome(&trace))?;
            write_whole(path, |file| file.write_all(&trace))?;
        }
        Ok(write_png(&arguments.out, pixels, parameters)?)
    }
}
