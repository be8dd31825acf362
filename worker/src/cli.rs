//! The `worker` command.

mod completions;
mod identity;
mod info;
mod join;
mod logging;

use clap::{Parser, Subcommand};
use protocol::job::Dtype;
use protocol::{Version, version};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::actor;
use crate::device::DeviceChoice;
use crate::engine::EngineOptions;

/// Renders bands of images for a coordinator.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a model and render for a coordinator until told to stop.
    Join(Box<join::JoinArgs>),
    /// Load a model and tell what it is.
    Info(info::InfoArgs),
    /// Print what makes a shell complete this command's arguments.
    Completions(completions::CompletionsArgs),
}

/// What to load, and on what.
#[derive(Clone, Debug, clap::Args)]
struct EngineArgs {
    /// A checkpoint in the diffusers folder layout [default: the built-in emoji-xl].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The type weights are held in: auto (as the checkpoint stores them), f32, f16, bf16 (products of
    /// the UNet's linear layers, too, where the processor has them) or int8 (those layers in 8 bits: faster,
    /// and not the same image).
    #[arg(long, value_name = "TYPE", default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// What to compute on: cpu, cuda (the first GPU) or cuda:N in a build with `--features cuda`, or candle
    /// (on the processor, slowly, what a GPU would be given: a test).
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// Compute threads, each pinned to a core of its own where there are enough [default: one for each of
    /// this machine's cores that no other worker has; with a GPU one].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl EngineArgs {
    fn options(self) -> EngineOptions {
        EngineOptions {
            model: self.model,
            dtype: self.dtype,
            device: self.device,
            threads: self.threads,
        }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let command = Cli::parse().command;
    let speaks = Version::limit(std::env::var(version::VARIABLE).ok());
    let outcome = speaks.map_err(anyhow::Error::from).and_then(|()| match command {
        Command::Join(arguments) => actor::block_on(join::run(*arguments)),
        Command::Info(arguments) => info::run(arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    });
    outcome.unwrap_or_else(|error| {
        // A closed standard error leaves nobody to tell.
        writeln!(std::io::stderr(), "error: {error:#}").ok();
        ExitCode::FAILURE
    })
}
