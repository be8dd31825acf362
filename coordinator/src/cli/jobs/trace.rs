//! `coordinator trace`.

use super::{AtArgs, number};
use crate::cli::progress::say;
use crate::output::{check_writable, write_whole};
use crate::profile;
use anyhow::{Context, bail};
use protocol::JobId;
use protocol::codec::decode_body;
use protocol::message::{JobTrace, Part};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write when a job's workers did what: a trace that Perfetto (ui.perfetto.dev) and Chrome show.
///
/// Of every job it has a track for each worker with its calls, the prompt and the decode: when their reports reached
/// the coordinator, and of each call how long it took and waited, and what was posted. Of a job that was submitted
/// with --trace or --profile it has instead, by the workers' own clocks, the layers in each call, and a track for
/// each direction of each link: when its receiver waited, and the bytes of each call.
///
/// It is kept with the job. Calls before the coordinator was last started are not in it. Of a job of many long calls
/// the layers of every second, fourth, ... are kept.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// The job, by its number: one that ended, or as far as it is.
    #[arg(value_parser = number)]
    job: JobId,
    /// Where the trace goes.
    #[arg(long, short, value_name = "FILE.json", default_value = "trace.json")]
    out: PathBuf,
    #[command(flatten)]
    at: AtArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: TraceArgs) -> anyhow::Result<ExitCode> {
    let TraceArgs { job, out, at, json } = &arguments;
    check_writable(out)?;
    let (record, payload) = at.connect().await?.show(*job, Part::Trace).await?;
    if payload.is_empty() {
        let stage = record.stage.name();
        bail!("{job} is {stage}: no worker was given a part of it, so there is nothing to trace");
    }
    let trace: JobTrace = decode_body(&payload).context("the coordinator sent no trace")?;
    let text = serde_json::to_vec(&profile::chrome(&trace))?;
    write_whole(out, |file| file.write_all(&text))?;
    if *json {
        let JobTrace { detail_every, left_out, .. } = trace;
        say(&json!({
            "event": "traced", "job": job, "file": out, "profiled": is_profiled(&trace),
            "detail_every": detail_every, "left_out": left_out,
        }))?;
    } else {
        say(&told(&trace, &format!("{}", out.display())))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn is_profiled(trace: &JobTrace) -> bool {
    trace.runs.iter().any(|run| !run.profiles.is_empty())
}

/// What is in it, and what is not.
fn told(trace: &JobTrace, file: &str) -> String {
    let mut text = format!("{file}  open it at ui.perfetto.dev");
    if !is_profiled(trace) {
        text += "\ncalls only: submit with --trace to see layers and links";
    }
    if trace.detail_every > 1 {
        let every = trace.detail_every;
        text += &format!("\nthere was no room for all: layers are those of one call in {every}");
    }
    if trace.left_out > 0 {
        text += &format!("\nthere was no room for the last {} calls of workers", trace.left_out);
    }
    text
}
