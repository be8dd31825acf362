//! `coordinator status`.

use super::identity::IdentityArgs;
use super::{ADDRESS_DEFAULT, human_bytes};
use crate::client::Client;
use protocol::message::{ClusterView, JobView, WorkerView};
use protocol::plan::{Branch, Fabric};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// The coordinator to ask.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    coordinator: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: StatusArgs) -> anyhow::Result<ExitCode> {
    let to = arguments.identity.destination(&arguments.coordinator).await?;
    let view = Client::connect(&to).await?.status().await?;
    let text = if arguments.json {
        format!("{}\n", serde_json::to_string(&view)?)
    } else {
        describe(&arguments.coordinator, &view)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn describe(address: &str, view: &ClusterView) -> String {
    let up = Duration::from_secs(view.up_seconds);
    let mut text = format!("coordinator {address}, release {}, up {up:?}\n", view.release);
    text += &match &view.model {
        None => "model       none yet: no worker has joined (worker join --coordinator ...)\n"
            .to_owned(),
        Some(card) => format!(
            "model       {} ({}), {} of {} weights, digest {:.12}, native {}x{}\n",
            card.name,
            card.family,
            human_bytes(card.weight_bytes),
            card.dtype,
            card.digest,
            card.native.0,
            card.native.1
        ),
    };
    if !view.workers.is_empty() {
        text += "\nWORKER      NAME                  ADDRESS                THREADS  KERNELS      MEMORY      SPEED  IDENTITY  DOES\n";
        let fastest = view.workers.iter().map(|worker| worker.speed).max().unwrap_or(0).max(1);
        view.workers.iter().for_each(|worker| text += &worker_row(worker, fastest));
    }
    text += &pairs(view);
    if !view.jobs.is_empty() {
        text += "\nJOB         PROGRESS    PROMPT\n";
        view.jobs.iter().for_each(|job| text += &job_row(job));
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "speeds are far below 2^52 pixels a second")]
fn worker_row(worker: &WorkerView, fastest: u64) -> String {
    let mut does =
        worker.busy.map_or_else(|| "idle".to_owned(), |(job, rank)| format!("{job}, {rank}"));
    if worker.draining {
        does += ", leaves";
    }
    let identity = worker.identity.map_or_else(|| "none".to_owned(), |identity| identity.short());
    format!(
        "{:<11} {:<21} {:<22} {:<8} {:<12} {:<11} {:<6.2} {identity:<9} {does}\n",
        worker.id.to_string(),
        worker.name,
        worker.address.to_string(),
        worker.threads,
        worker.kernels,
        human_bytes(worker.resident_bytes),
        worker.speed as f64 / fastest as f64
    )
}

/// Over what workers exchange: one line for each fabric and reason, with its pairs.
fn pairs(view: &ClusterView) -> String {
    let mut groups: Vec<((&str, &str), Vec<String>)> = Vec::new();
    for pair in &view.pairs {
        let key = (pair.fabric.map_or("none", Fabric::name), pair.why.as_str());
        let [one, other] = pair.workers;
        let figures = pair.figures.map_or_else(String::new, |figures| {
            let rate = figures.bytes_per_second / 1e6;
            format!(" ({:.0} us, {rate:.0} MB/s)", figures.latency_us)
        });
        let text = format!("{}-{}{figures}", one.0, other.0);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, pairs)) => pairs.push(text),
            None => groups.push((key, vec![text])),
        }
    }
    let mut text = String::new();
    for ((fabric, why), pairs) in groups {
        let why = if why.is_empty() { String::new() } else { format!("\n            {why}") };
        text += &format!("{fabric:<11} between workers {}{why}\n", pairs.join(", "));
    }
    if text.is_empty() { text } else { format!("\nFABRIC\n{text}") }
}

fn job_row(job: &JobView) -> String {
    let progress = match job.progress {
        None => "waiting".to_owned(),
        Some((_, 0)) => "starting".to_owned(),
        Some((done, calls)) => format!("{done}/{calls}"),
    };
    let mut text = format!("{:<11} {progress:<11} {}\n", job.id.to_string(), job.prompt);
    if let Some(fault) = &job.interrupted {
        text += &format!("            broken off, goes on when it can: {fault}\n");
    }
    if !job.reason.is_empty() {
        text += &format!("            plan: {}\n", job.reason);
    }
    for band in &job.bands {
        let branch = match band.branch {
            Branch::Whole => "",
            Branch::Negative => ", negative prompt",
            Branch::Prompt => ", prompt",
        };
        let links = job.links.iter().filter(|link| link.ranks.contains(&band.rank));
        let links: Vec<String> = links
            .map(|link| {
                let other = link.ranks.iter().find(|rank| **rank != band.rank);
                format!("{} to {}", link.fabric, other.copied().unwrap_or(band.rank))
            })
            .collect();
        let links =
            if links.is_empty() { String::new() } else { format!("; {}", links.join(", ")) };
        let last = band.top + band.rows - 1;
        text += &format!(
            "            rank {}: rows {}-{last}{branch}, {}{links}\n",
            band.rank, band.top, band.worker
        );
    }
    text
}
