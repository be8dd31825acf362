//! Real coordinator and worker processes on this machine, over loopback.

mod bench;
mod chaos;
mod device;
mod ending;
mod exact;
mod fabrics;
mod given;
mod http;
mod identity;
mod jobs;
mod launch;
mod membership;
mod memory;
mod output;
mod preview;
mod probe;
mod profile;
mod refusal;
mod restart;
mod shell;
mod telemetry;
mod upgrade;

use std::path::Path;

/// The names of the files in `folder`.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A file's path as an argument.
fn within(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}
