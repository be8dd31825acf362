//! How log lines are written.

use clap::ValueEnum;
use std::io::{IsTerminal, stderr};
use tracing::Level;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct LogArgs {
    /// How log lines are written to standard error. Where they are known they have the fields job, epoch, rank and
    /// call.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object each.
    Json,
}

impl LogArgs {
    /// Writes what is as important as `level` from now on.
    pub(super) fn begin(&self, level: Level) {
        let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(stderr);
        match self.log_format {
            LogFormat::Text => lines.with_ansi(stderr().is_terminal()).init(),
            LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
        }
    }
}
