//! How a job is taken in.

use super::super::named;
use crate::client::Submission;
use protocol::job::{Priority, Terms};
use serde_json::json;

/// A key names a submission, and is kept with it: a UUID and a few words more.
const KEY_CHARS_MAX: usize = 200;

#[derive(Debug, clap::Args)]
pub(super) struct TermsArgs {
    /// Submit it, say its number, and leave it to the coordinator: `coordinator logs` follows it and `coordinator
    /// fetch` writes the image.
    #[arg(long, conflicts_with_all = ["local", "out", "save_latents", "profile"])]
    detach: bool,
    /// Whether it is rendered before others that wait.
    #[arg(
        long,
        value_name = "WHICH",
        value_parser = named(Priority::ALL, Priority::name),
        default_value = "normal",
        conflicts_with = "local"
    )]
    priority: Priority,
    /// A name of your own for this submission: submitted again under it, the job is the same and not another.
    #[arg(long, value_name = "KEY", value_parser = key, conflicts_with = "local")]
    idempotency_key: Option<String>,
}

impl TermsArgs {
    pub(super) fn detached(&self) -> bool {
        self.detach
    }

    pub(super) fn terms(&self) -> Terms {
        Terms {
            detached: self.detach,
            priority: self.priority,
            idempotency_key: self.idempotency_key.clone(),
        }
    }
}

fn key(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=KEY_CHARS_MAX => Ok(text.to_owned()),
        _ => Err(format!("give a key of 1 to {KEY_CHARS_MAX} characters")),
    }
}

/// What is printed of a job that is left alone; `options` make other commands call the same coordinator.
pub(super) fn detached(
    submission: &Submission,
    options: &str,
    (json, quiet): (bool, bool),
) -> String {
    let (job, ahead, kept) = (submission.job(), submission.ahead(), submission.kept());
    let number = job.0;
    if json {
        let accepted = json!({ "event": "accepted", "job": job, "ahead": ahead, "kept": kept });
        return accepted.to_string();
    }
    if quiet {
        return number.to_string();
    }
    let place = match ahead {
        0 => String::new(),
        ahead => format!(", and waits behind {ahead} others"),
    };
    let ends =
        if kept { "" } else { "\nit ends with the coordinator, which was started without --data" };
    format!(
        "{job} is accepted{place}{ends}\n\
         follow it: coordinator logs {number} --follow{options}\n\
         and then:  coordinator fetch {number}{options}"
    )
}
