//! `coordinator show`.

use super::{AtArgs, at, number, plain, took};
use crate::api::Job;
use crate::cli::human_bytes;
use crate::cli::identity::human_time;
use crate::cli::progress::{say, started};
use crate::identity::now;
use protocol::JobId;
use protocol::message::{BandView, JobRecord, JobResult, JobStage, Part};
use protocol::plan::Branch;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The job, by its number.
    #[arg(value_parser = number)]
    job: JobId,
    #[command(flatten)]
    at: AtArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Shows what became of a job.
pub(crate) async fn run(arguments: ShowArgs) -> anyhow::Result<ExitCode> {
    let (record, _) = arguments.at.connect().await?.show(arguments.job, Part::Record).await?;
    if arguments.json {
        say(&json!(Job::from(&record)))?;
    } else {
        say(&describe(&record, now(), &arguments.at.options()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(record: &JobRecord, now: u64, options: &str) -> String {
    let mut rows = vec![
        ("state", state(record)),
        ("prompt", plain(&record.request.prompt)),
        ("priority", record.priority.to_string()),
        ("owner", plain(&record.owner)),
        ("seed", record.seed.to_string()),
        ("accepted", format!("{} ago", human_time(now.saturating_sub(record.accepted)))),
    ];
    if let Some(negative) = &record.request.negative {
        rows.insert(2, ("negative", plain(negative)));
    }
    if let Some(took) = took(record, now) {
        let waited = record.started.unwrap_or_default().saturating_sub(record.accepted);
        rows.push(("waited", human_time(waited)));
        rows.push(("took", human_time(took)));
    }
    if let (Some(spec), Some(model)) = (&record.spec, &record.model) {
        rows.push(("image", started(spec, model, &record.bands, &record.reason)));
    }
    rows.extend(record.bands.iter().map(|each| ("band", band(each, record.result.as_ref()))));
    if let Some(result) = &record.result {
        rows.extend(rendered(result));
    }
    if let Some(fault) = &record.fault {
        rows.push(("why", fault.to_string()));
    }
    let number = record.id.0;
    match record.stage {
        JobStage::Finished => {
            rows.push(("image at", format!("coordinator fetch {number}{options}")));
        }
        JobStage::Failed | JobStage::Cancelled => {}
        JobStage::Queued | JobStage::Running | JobStage::Interrupted => {
            rows.push(("follow", format!("coordinator logs {number} --follow{options}")));
        }
    }
    let line = |(name, value): (&str, String)| {
        format!("{name:<10} {}", value.replace('\n', &format!("\n{:<11}", "")))
    };
    let lines: Vec<String> = rows.into_iter().map(line).collect();
    format!("{}\n{}", record.id, lines.join("\n"))
}

fn state(record: &JobRecord) -> String {
    let at = match record.stage {
        JobStage::Queued => record.ahead.map(|ahead| format!("behind {ahead} others")),
        _ => Some(at(record)).filter(|at| !at.is_empty()),
    };
    at.map_or_else(|| record.stage.name().to_owned(), |at| format!("{}, {at}", record.stage.name()))
}

fn band(band: &BandView, result: Option<&JobResult>) -> String {
    let branch = match band.branch {
        Branch::Whole => "",
        Branch::Negative => ", negative prompt",
        Branch::Prompt => ", prompt",
    };
    let last = (band.top + band.rows).saturating_sub(1);
    let waits = result.and_then(|result| result.waits.iter().find(|wait| wait.rank == band.rank));
    let waited = waits.map_or_else(String::new, |wait| {
        let (posted, peak) = (human_bytes(wait.posted_bytes), human_bytes(wait.peak_bytes));
        format!("; waited {:.2} s, posted {posted}, peak memory {peak}", wait.seconds)
    });
    format!("rank {}: rows {}-{last}{branch}, {}{waited}", band.rank, band.top, band.worker)
}

fn rendered(result: &JobResult) -> Vec<(&'static str, String)> {
    let JobResult { seconds, seconds_per_step, displaced_calls, latent, recoveries, .. } = result;
    let speed = format!(
        "{seconds_per_step:.3} s/step, {seconds:.1} s in all, {displaced_calls} calls displaced"
    );
    let mut rows = vec![("speed", speed), ("latent", latent.clone())];
    for recovery in recoveries {
        let (from, fault) = (recovery.resumed_at, &recovery.fault);
        rows.push(("broke off", format!("{fault}; went on after call {from}")));
    }
    rows
}
