//! `coordinator logs`.

use super::{AtArgs, number};
use crate::cli::progress::{flat, line, say};
use crate::client::{Client, ClientError, Submission};
use protocol::message::{Event, FromClient, Part, ToClient};
use protocol::{Fault, JobId};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The job, by its number.
    #[arg(value_parser = number)]
    job: JobId,
    /// Go on until the job ends, with 1 if it ends without an image. Ctrl-C leaves the job alone.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    at: AtArgs,
    /// Print one JSON object per event.
    #[arg(long)]
    json: bool,
}

/// Shows the events of a job that are known, and those to come if they are wanted.
pub(crate) async fn run(arguments: LogsArgs) -> anyhow::Result<ExitCode> {
    if arguments.follow { follow(&arguments).await } else { known(&arguments).await }
}

async fn follow(arguments: &LogsArgs) -> anyhow::Result<ExitCode> {
    let to = arguments.at.destination().await?;
    let mut watched = Submission::watch(&to, arguments.job).await?;
    loop {
        let (event, _) = watched.next().await?;
        print(&event, arguments.json)?;
        match event {
            Event::Finished { .. } => return Ok(ExitCode::SUCCESS),
            Event::Failed { .. } => return Ok(ExitCode::FAILURE),
            _ => {}
        }
    }
}

/// What is told at once.
async fn known(arguments: &LogsArgs) -> anyhow::Result<ExitCode> {
    let mut client: Client = arguments.at.connect().await?;
    let job = arguments.job;
    client.watch(job, false).await?;
    // It is answered after all that was told before it was asked.
    client.say(&FromClient::Show { job, with: Part::Record }).await?;
    loop {
        match client.next().await?.0 {
            ToClient::Event { event, .. } => print(&event, arguments.json)?,
            ToClient::Job(_) => return Ok(ExitCode::SUCCESS),
            ToClient::Refused(fault) => return Err(ClientError::Refused(fault).into()),
            _ => {}
        }
    }
}

fn print(event: &Event, json: bool) -> std::io::Result<()> {
    match event {
        Event::Profiled { .. } | Event::Probed { .. } => Ok(()), // long, and shown by others
        event if json => say(&flat(event)),
        Event::Finished { seconds, seconds_per_step, displaced_calls, .. } => say(&format!(
            "finished: {seconds_per_step:.3} s/step, {seconds:.1} s in all, {displaced_calls} calls displaced"
        )),
        Event::Failed { fault: Fault { cause, .. } } => {
            say(&format!("ended without an image: {cause}"))
        }
        event => line(event).map_or(Ok(()), |line| say(&line)),
    }
}
