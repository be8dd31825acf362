//! `coordinator fetch`.

use super::{AtArgs, number};
use crate::cli::progress::say;
use crate::output::{Parameters, check_writable, write_png};
use anyhow::bail;
use protocol::JobId;
use protocol::message::{JobRecord, JobStage, Part};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct FetchArgs {
    /// The job, by its number.
    #[arg(value_parser = number)]
    job: JobId,
    /// Where the image goes [default: job-N.png].
    #[arg(long, short, value_name = "FILE.png")]
    out: Option<PathBuf>,
    #[command(flatten)]
    at: AtArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Writes a finished job's image: the file that `submit --out` writes.
pub(crate) async fn run(arguments: FetchArgs) -> anyhow::Result<ExitCode> {
    let FetchArgs { job, at, json, .. } = &arguments;
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{job}.png")));
    if !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        bail!("--out {}: images are written as PNG; give a name that ends in .png", out.display());
    }
    check_writable(&out)?;
    let (record, pixels) = at.connect().await?.show(*job, Part::Image).await?;
    if let Some(why) = refusal(&record, &at.options()) {
        bail!(why);
    }
    let (Some(spec), Some(model), Some(result)) = (record.spec, record.model, record.result) else {
        bail!("{job} is finished, and the coordinator does not say with which parameters");
    };
    let seed = record.seed;
    let mut parameters = Parameters::new(spec, model, &record.bands);
    parameters.latent = result.latent;
    write_png(&out, &pixels, &parameters)?;
    if *json {
        say(&json!({ "event": "written", "job": job, "file": out, "seed": seed }))?;
    } else {
        say(&format!("{}  seed {seed}", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Why there is no image, and what to do about it.
fn refusal(record: &JobRecord, options: &str) -> Option<String> {
    let job = record.id;
    let cause = || record.fault.as_ref().map_or_else(String::new, |fault| format!(": {fault}"));
    let what = match record.stage {
        JobStage::Finished => return None,
        JobStage::Failed => {
            return Some(format!("{job} has no image, as it failed{}; submit it again", cause()));
        }
        JobStage::Cancelled => {
            return Some(format!("{job} has no image, as it was cancelled; submit it again"));
        }
        JobStage::Queued => "waits for its turn".to_owned(),
        JobStage::Interrupted => format!("is broken off{}", cause()),
        JobStage::Running => match record.progress {
            Some((call, calls)) if calls > 0 => {
                format!("is rendered, {call} of {calls} calls done")
            }
            _ => "has just begun".to_owned(),
        },
    };
    let number = job.0;
    Some(format!(
        "{job} has no image yet: it {what}; follow it with `coordinator logs {number} --follow{options}` and \
         fetch it then"
    ))
}
