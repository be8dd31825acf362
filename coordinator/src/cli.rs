//! The `coordinator` command.

mod bench;
mod cluster;
mod completions;
mod drain;
mod given;
mod http;
mod identity;
mod jobs;
mod key;
mod launch;
mod logging;
mod netcheck;
mod predict;
mod preview;
mod probe;
mod progress;
mod rendered;
mod request;
mod serve;
mod status;
mod submit;

use crate::actor;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use protocol::{Version, version};
use std::io::Write;
use std::process::ExitCode;

/// Where a coordinator listens unless told otherwise.
const ADDRESS_DEFAULT: &str = "127.0.0.1:7411";

/// The exit code of a command that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;
/// The exit code of a command that SIGTERM ended.
const TERMINATED: u8 = 143;

/// Renders one diffusion image on many machines at once.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Render an image, on this machine alone or on a cluster.
    Submit(Box<submit::SubmitArgs>),
    /// Measure what old activations do to an image: at each exchange point, and in each mode.
    Probe(Box<probe::ProbeArgs>),
    /// Measure seconds per step, waiting and memory, on one worker and on all.
    Bench(Box<bench::BenchArgs>),
    /// Predict seconds, bytes and memory from figures, without a cluster.
    Predict(Box<predict::PredictArgs>),
    /// Run a coordinator that workers join and commands submit to.
    Serve(serve::ServeArgs),
    /// Run a coordinator and workers on several machines, until Ctrl-C ends them all.
    Launch(Box<launch::LaunchArgs>),
    /// Measure the links between a cluster's workers, over every fabric that they share.
    Netcheck(netcheck::NetcheckArgs),
    /// Let a worker finish or hand over what it renders, and leave.
    Drain(drain::DrainArgs),
    /// Make a cluster's identity: its authority, and the keys of its coordinator and of a client.
    Init(identity::InitArgs),
    /// Make a token, by which a worker or a client becomes a member; list or revoke tokens.
    Token(identity::TokenArgs),
    /// Let a member in no more.
    Revoke(identity::RevokeArgs),
    /// Become a member as a client, by a token: for commands on another machine than the coordinator's.
    Enroll(identity::EnrollArgs),
    /// Make, list or revoke the keys of those who call over HTTP.
    Key(key::KeyArgs),
    /// Show a cluster's workers, model and jobs.
    Status(status::StatusArgs),
    /// Show what became of jobs, those submitted last first.
    Jobs(jobs::JobsArgs),
    /// Show what became of a job.
    Show(jobs::ShowArgs),
    /// End jobs at their next call.
    Cancel(jobs::CancelArgs),
    /// Write a finished job's image.
    Fetch(jobs::FetchArgs),
    /// Show what happened to a job, or happens.
    Logs(jobs::LogsArgs),
    Trace(jobs::TraceArgs),
    /// Print what makes a shell complete this command's arguments.
    Completions(completions::CompletionsArgs),
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let command = Cli::parse().command;
    let speaks = Version::limit(std::env::var(version::VARIABLE).ok());
    let outcome = actor::block_on(async {
        speaks?;
        match command {
            Command::Submit(arguments) => submit::run(*arguments).await,
            Command::Probe(arguments) => probe::run(*arguments).await,
            Command::Bench(arguments) => bench::run(*arguments).await,
            Command::Predict(arguments) => predict::run(*arguments),
            Command::Serve(arguments) => serve::run(arguments).await,
            Command::Launch(arguments) => launch::run(*arguments).await,
            Command::Netcheck(arguments) => netcheck::run(arguments).await,
            Command::Drain(arguments) => drain::run(arguments).await,
            Command::Status(arguments) => status::run(arguments).await,
            Command::Key(arguments) => key::run(&arguments),
            Command::Jobs(arguments) => jobs::run(arguments).await,
            Command::Show(arguments) => jobs::show(arguments).await,
            Command::Cancel(arguments) => jobs::cancel(arguments).await,
            Command::Fetch(arguments) => jobs::fetch(arguments).await,
            Command::Logs(arguments) => jobs::logs(arguments).await,
            Command::Trace(arguments) => jobs::trace(arguments).await,
            Command::Completions(arguments) => completions::run(&arguments),
            Command::Init(arguments) => identity::init(&arguments),
            Command::Token(arguments) => identity::token(&arguments),
            Command::Revoke(arguments) => identity::revoke(&arguments),
            Command::Enroll(arguments) => identity::enroll(arguments).await,
        }
    });
    outcome.unwrap_or_else(|error| {
        // A closed standard error leaves nobody to tell.
        writeln!(std::io::stderr(), "error: {error:#}").ok();
        ExitCode::FAILURE
    })
}

/// Reads one of these by its name.
fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.iter().map(|each| name(*each)));
    let find = move |given: String| all.iter().copied().find(|each| name(*each) == given);
    names.try_map(move |given| find(given).ok_or("there is none of that name"))
}

/// Bytes in the unit that people read them in.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn human_bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(size, _)| bytes >= *size);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(size, name)| format!("{:.1} {name}", bytes as f64 / *size as f64),
    )
}

/// Bytes rounded for people.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in bytes")]
fn whole(bytes: f64) -> u64 {
    bytes.round() as u64
}
