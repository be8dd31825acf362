//! How log lines are written.

use clap::ValueEnum;
use std::io::{IsTerminal, stderr};
use tracing::Level;
use tracing_subscriber::EnvFilter;

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
    /// Whether lines are JSON.
    pub(super) fn json(&self) -> bool {
        matches!(self.log_format, LogFormat::Json)
    }

    /// Writes what is as important as `level` from now on.
    pub(super) fn begin(&self, level: Level) {
        // What the HTTP server has to say of itself is said by this program.
        let said = EnvFilter::new(format!("{level},actix_server=warn,actix_http=warn"));
        let lines = tracing_subscriber::fmt().with_env_filter(said).with_writer(stderr);
        match self.log_format {
            LogFormat::Text => lines.with_ansi(stderr().is_terminal()).init(),
            LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
        }
    }
}
