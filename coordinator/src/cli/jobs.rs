//! `coordinator jobs`, and the commands that are about one job: `show`, `cancel`, `fetch`, `logs` and `trace`.

mod cancel;
mod fetch;
mod logs;
mod show;
mod table;
mod trace;

pub(super) use cancel::{CancelArgs, run as cancel};
pub(super) use fetch::{FetchArgs, run as fetch};
pub(super) use logs::{LogsArgs, run as logs};
pub(super) use show::{ShowArgs, run as show};
pub(super) use trace::{TraceArgs, run as trace};

use self::table::Table;
use super::identity::{IdentityArgs, human_time};
use super::progress::say;
use super::{ADDRESS_DEFAULT, named};
use crate::api::Job;
use crate::client::{Client, Destination};
use crate::identity::now;
use protocol::JobId;
use protocol::job::Priority;
use protocol::message::{JobRecord, JobStage};
use serde_json::json;
use std::process::ExitCode;

/// Jobs that a person reads in one go.
const LIMIT_DEFAULT: u16 = 20;
/// Jobs that are asked for at once.
const PAGE: u16 = 200;

/// Which coordinator is asked, and by whom.
#[derive(Debug, clap::Args)]
struct AtArgs {
    /// The coordinator to ask.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    coordinator: String,
    #[command(flatten)]
    identity: IdentityArgs,
}

impl AtArgs {
    async fn destination(&self) -> anyhow::Result<Destination> {
        self.identity.destination(&self.coordinator).await
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.destination().await?).await?)
    }

    /// The options that make another command ask the same.
    fn options(&self) -> String {
        self.identity.options(&self.coordinator)
    }
}

/// Reads a job's number, with or without its prefix.
fn number(text: &str) -> Result<JobId, String> {
    let digits = text.strip_prefix("job-").unwrap_or(text);
    let wrong = || "give a job's number, such as 12 or job-12: `coordinator jobs` shows them";
    // A sign is none of its digits.
    let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok());
    number.flatten().map(JobId).ok_or_else(|| wrong().to_owned())
}

#[derive(Debug, clap::Args)]
pub(super) struct JobsArgs {
    /// Show so many at most, those submitted last.
    #[arg(
        long,
        value_name = "N",
        default_value_t = LIMIT_DEFAULT,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    limit: u16,
    /// Only those that are at one of these, such as `queued,running`.
    #[arg(
        long,
        value_name = "STATES",
        value_delimiter = ',',
        value_parser = named(JobStage::ALL, JobStage::name)
    )]
    state: Vec<JobStage>,
    /// Only those that were submitted before this one.
    #[arg(long, value_name = "JOB", value_parser = number)]
    before: Option<JobId>,
    #[command(flatten)]
    at: AtArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Shows what became of jobs.
pub(super) async fn run(arguments: JobsArgs) -> anyhow::Result<ExitCode> {
    let mut client = arguments.at.connect().await?;
    let (mut jobs, mut before, mut more) = (Vec::new(), arguments.before, true);
    let limit = usize::from(arguments.limit);
    while more && jobs.len() < limit {
        let left = u16::try_from(limit - jobs.len()).unwrap_or(PAGE).min(PAGE);
        let (page, others) = client.jobs(before, left, arguments.state.clone()).await?;
        (more, before) = (others && !page.is_empty(), page.last().map(|record| record.id));
        jobs.extend(page);
    }
    let next = before.filter(|_| more);
    if arguments.json {
        let all: Vec<_> = jobs.iter().map(Job::from).collect();
        say(&json!({ "jobs": all, "next": next }))?;
    } else {
        print(&jobs, next, &arguments)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(jobs: &[JobRecord], next: Option<JobId>, arguments: &JobsArgs) -> anyhow::Result<()> {
    if jobs.is_empty() {
        let which = if arguments.state.is_empty() && arguments.before.is_none() {
            "no job is known here: submit one with `coordinator submit`"
        } else {
            "no job is known here of which that is true"
        };
        return Ok(say(&which)?);
    }
    say(&table(jobs, now()).lines(table::width()).join("\n"))?;
    if let Some(next) = next {
        let options = arguments.at.options();
        say(&format!("\nolder ones: coordinator jobs --before {}{options}", next.0))?;
    }
    Ok(())
}

/// A line for each job. What is left out first where there is no room is last but for the prompt.
fn table(jobs: &[JobRecord], now: u64) -> Table {
    let column = |cell: &dyn Fn(&JobRecord) -> String| jobs.iter().map(cell).collect();
    let priority = |job: &JobRecord| match job.priority {
        Priority::Normal => String::new(),
        other => other.name().to_owned(),
    };
    let mut table = Table::new("PROMPT", column(&|job| plain(&job.request.prompt)));
    table.column("JOB", column(&|job| job.id.0.to_string()));
    table.column("STATE", column(&|job| job.stage.name().to_owned()));
    table.column("AT", column(&at));
    table.column("AGE", column(&|job| human_time(now.saturating_sub(job.accepted))));
    table.column("TOOK", column(&|job| took(job, now).map_or_else(String::new, human_time)));
    table.column("PRIORITY", column(&priority));
    table.column("OWNER", column(&|job| plain(&job.owner)));
    table
}

/// How far it is.
fn at(job: &JobRecord) -> String {
    match (job.progress, job.ahead) {
        (Some((_, 0)), _) => "starts".to_owned(),
        (Some((call, calls)), _) => format!("{call}/{calls}"),
        (None, Some(ahead)) if job.stage == JobStage::Queued => format!("+{ahead}"),
        _ => String::new(),
    }
}

/// Seconds since it was first given workers, to its end.
fn took(job: &JobRecord, now: u64) -> Option<u64> {
    Some(job.ended.unwrap_or(now).saturating_sub(job.started?))
}

/// Others' text without what would move the cursor or begin a line.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_have_its_prefix() {
        assert_eq!((number("12"), number("job-12")), (Ok(JobId(12)), Ok(JobId(12))));
        for wrong in ["", "job-", "nonsense", "-1", "+1", "job-+1", "1.5", "99999999999999999999"] {
            assert!(number(wrong).unwrap_err().contains("such as 12 or job-12"), "{wrong}");
        }
    }

    #[test]
    fn a_prompt_moves_no_cursor() {
        assert_eq!(plain("red\n\u{1b}[2J\tapple \u{1f34e}"), "red  [2J apple \u{1f34e}");
    }
}
