//! `coordinator cancel`.

use super::{AtArgs, number};
use crate::api::Job;
use crate::cli::progress::say;
use crate::client::ClientError;
use protocol::JobId;
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct CancelArgs {
    /// The jobs, by number.
    #[arg(value_name = "JOB", value_parser = number, required = true)]
    jobs: Vec<JobId>,
    #[command(flatten)]
    at: AtArgs,
    /// Print one JSON object for each job.
    #[arg(long)]
    json: bool,
}

/// Ends jobs: those that can be, whatever becomes of the others.
pub(crate) async fn run(arguments: CancelArgs) -> anyhow::Result<ExitCode> {
    let mut client = arguments.at.connect().await?;
    let mut code = ExitCode::SUCCESS;
    for job in &arguments.jobs {
        match client.cancel(*job).await {
            Ok(record) if arguments.json => say(&json!(Job::from(&record)))?,
            Ok(_) => say(&format!("{job} is cancelled"))?,
            Err(ClientError::Refused(fault)) => {
                code = ExitCode::FAILURE;
                if arguments.json {
                    say(
                        &json!({ "id": job, "refused": { "kind": fault.kind, "message": fault.cause } }),
                    )?;
                } else {
                    // A closed standard error leaves nobody to tell.
                    writeln!(std::io::stderr(), "error: {fault}").ok();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(code)
}
