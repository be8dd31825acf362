//! `coordinator probe`.

use super::cluster::ClusterArgs;
use super::rendered::{Rendered, render};
use super::request::RequestArgs;
use super::{human_bytes, whole};
use crate::client::Destination;
use crate::output::{check_writable, write_whole};
use crate::probe::chart;
use crate::probe::similarity::Similarity;
use crate::probe::sites::{Kind, SiteSummary, of_kind, summarise};
use anyhow::bail;
use protocol::job::{CfgSplit, JobRequest, Mode};
use serde_json::json;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct ProbeArgs {
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Where the chart goes.
    #[arg(long, short, value_name = "FILE.svg", default_value = "probe.svg")]
    out: PathBuf,
    /// Print one JSON object with everything that was measured.
    #[arg(long)]
    json: bool,
}

/// The modes in the order of the report.
const MODES: [Mode; 6] =
    [Mode::FullSync, Mode::Corrected, Mode::SyncGn, Mode::Stale, Mode::Separate, Mode::NoSync];

pub(super) async fn run(arguments: ProbeArgs) -> anyhow::Result<ExitCode> {
    let out = &arguments.out;
    if !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg")) {
        bail!("--out {}: charts are written as SVG; give a name that ends in .svg", out.display());
    }
    check_writable(out)?;
    let request = arguments.request.request(arguments.cluster.local(), false);
    if !request.parallelism.has_bands() {
        bail!(
            "--parallelism {}: a probe compares the modes of patch parallelism; leave it out",
            request.parallelism
        );
    }
    if request.workers == Some(1) {
        bail!("one worker exchanges nothing: a probe needs two or more (--local 2)");
    }
    let work = async |to: &Destination| {
        let probed = probe(request, to).await?;
        let drawn = chart::draw(&probed.title(), &probed.sites, |call| probed.counts(call));
        let svg = drawn.map_err(anyhow::Error::msg)?;
        write_whole(out, |file| file.write_all(svg.as_bytes()))?;
        let text = if arguments.json { format!("{}\n", probed.json()) } else { probed.table() };
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    };
    arguments.cluster.run(&arguments.request, work).await
}

/// The image of one worker, that of several in each mode, and what was measured in one of these.
#[derive(Debug)]
struct Probed {
    dense: Rendered,
    modes: Vec<(Mode, Rendered, Similarity)>,
    measured: usize,
    sites: Vec<SiteSummary>,
}

async fn probe(asked: JobRequest, to: &Destination) -> anyhow::Result<Probed> {
    let alone = JobRequest {
        workers: Some(1),
        mode: Some(Mode::FullSync),
        cfg_split: CfgSplit::Off,
        ..asked.clone()
    };
    let dense = render("one worker", alone, to).await?;
    let Some((spec, _)) = &dense.spec else {
        bail!("the coordinator finished a job that it never started");
    };
    let cfg_split = match asked.cfg_split {
        // Branches of one worker each would exchange nothing to measure.
        CfgSplit::Auto => CfgSplit::Off,
        wish => wish,
    };
    let (seed, wanted) = (Some(spec.seed), asked.mode.unwrap_or(Mode::Corrected));
    // One worker may need tiles where several do not: only the modes are to differ.
    let asked = JobRequest { seed, cfg_split, decode: spec.decode, ..asked };
    let (mut modes, mut sites) = (Vec::new(), Vec::new());
    for mode in MODES {
        let request = JobRequest { mode: Some(mode), probe: mode == wanted, ..asked.clone() };
        let rendered = render(mode.name(), request, to).await?;
        let width = usize::try_from(spec.width)?;
        if mode == wanted {
            sites = summarise(&rendered.reports, u32::try_from(rendered.displaced.len())?);
            check_measured(&sites, rendered.workers)?;
        }
        let similarity = Similarity::of(&dense.pixels, &rendered.pixels, width);
        modes.push((mode, rendered, similarity));
    }
    let measured = MODES.iter().position(|mode| *mode == wanted).unwrap_or(0);
    Ok(Probed { dense, modes, measured, sites })
}

fn check_measured(sites: &[SiteSummary], workers: usize) -> anyhow::Result<()> {
    if sites.is_empty() {
        bail!(
            "{workers} workers exchanged no activations: give a branch two workers or more, or \
             leave --cfg-split out"
        );
    }
    Ok(())
}

impl Probed {
    fn measured(&self) -> &Rendered {
        &self.modes[self.measured].1
    }

    fn mode(&self) -> Mode {
        self.modes[self.measured].0
    }

    fn title(&self) -> String {
        format!("{}, {} workers, {}", self.dense.title(), self.measured().workers, self.mode())
    }

    /// Whether a call is one of those that distances are means over: the displaced ones, if there are any.
    fn counts(&self, call: usize) -> bool {
        let displaced = &self.measured().displaced;
        !displaced.contains(&true) || displaced.get(call).is_some_and(|displaced| *displaced)
    }

    fn table(&self) -> String {
        let mut text = format!("{}, {} workers\n", self.dense.title(), self.measured().workers);
        text += "\nMODE          S/STEP    PSNR    SSIM  BYTES PER CALL AND WORKER\n";
        let mut mode_row = |name: &str, rendered: &Rendered, similarity: &str| {
            let bytes = human_bytes(whole(rendered.bytes_per_call()));
            let seconds = rendered.seconds_per_step;
            text += &format!("{name:<12} {seconds:>7.3}  {similarity}  {bytes}\n");
        };
        mode_row("one worker", &self.dense, "     -       -");
        for (mode, rendered, similarity) in &self.modes {
            mode_row(mode.name(), rendered, &similarity.to_string());
        }
        let (mode, any) = (self.mode(), self.measured().displaced.contains(&true));
        let calls = if any { "displaced calls" } else { "all calls: none was displaced" };
        // Writing to a string does not fail.
        writeln!(
            text,
            "\nWith {mode}, stale to fresh values: relative L2 distance, mean over {calls}\n\
             \nKIND       DISTANCE  BYTES PER CALL AND WORKER"
        )
        .ok();
        for kind in Kind::ALL {
            let (bytes, distance) = of_kind(&self.sites, kind, |call| self.counts(call));
            let bytes = human_bytes(whole(bytes));
            text += &format!("{:<10} {distance:>8.4}  {bytes}\n", kind.name());
        }
        text += "\nEXCHANGE POINT                                                    KIND       DISTANCE  LARGEST  BYTES\n";
        for site in &self.sites {
            let largest = site.distances.iter().zip(1..).filter(|(_, call)| self.counts(*call));
            let largest = largest.map(|(distance, _)| *distance).fold(0.0, f64::max);
            text += &format!(
                "{:<65} {:<10} {:>8.4} {largest:>8.4}  {}\n",
                site.path,
                site.kind.name(),
                site.mean(|call| self.counts(call)),
                human_bytes(whole(site.bytes))
            );
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let modes = self.modes.iter().map(|(mode, rendered, similarity)| {
            json!({
                "mode": mode,
                "seconds_per_step": rendered.seconds_per_step,
                // JSON has no infinity: null is an image that is the same.
                "psnr": similarity.psnr,
                "ssim": similarity.ssim,
                "bytes_per_call": rendered.bytes_per_call(),
                "displaced": rendered.displaced,
            })
        });
        json!({
            "spec": self.dense.spec.as_ref().map(|(spec, _)| spec),
            "model": self.dense.spec.as_ref().map(|(_, model)| model),
            "workers": self.measured().workers,
            "one_worker": { "seconds_per_step": self.dense.seconds_per_step },
            "modes": modes.collect::<Vec<_>>(),
            "measured_in": self.mode(),
            "sites": self.sites,
        })
    }
}
