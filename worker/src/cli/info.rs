//! `worker info`.

use super::EngineArgs;
use crate::engine::Engine;
use crate::memory::resident_bytes;
use protocol::plan::Ask;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) fn run(arguments: InfoArgs) -> anyhow::Result<ExitCode> {
    let mut options = arguments.engine.options();
    // Telling about a model should not need a free core.
    options.threads = options.threads.or_else(|| std::thread::available_parallelism().ok());
    let engine = Engine::load(&options)?;
    let card = engine.card();
    let (width, height) = card.native;
    let count =
        |asks: fn(&Ask) -> bool| engine.sites().iter().filter(|site| asks(&site.ask)).count();
    let activations = engine.activations().map_or_else(
        || "as the device's library takes them".to_owned(),
        |needed| format!("{} MiB at that size, alone", needed.arena >> 20),
    );
    let rows = [
        ("model", format!("{} ({})", card.name, card.family)),
        ("digest", card.digest.clone()),
        ("weights", format!("{} MiB as {}", card.weight_bytes >> 20, card.dtype)),
        ("resident", format!("{} MiB", resident_bytes() >> 20)),
        ("native size", format!("{width}x{height}")),
        ("activations", activations),
        ("sizes", format!("multiples of {} pixels", card.vae_factor * card.row_unit)),
        ("scheduler", card.scheduler.to_string()),
        ("guidance", card.guidance.to_string()),
        (
            "exchange sites",
            format!(
                "{} halos, {} moments, {} gathers",
                count(|ask| matches!(ask, Ask::Halo { .. })),
                count(|ask| matches!(ask, Ask::Moments { .. })),
                count(|ask| matches!(ask, Ask::Gather))
            ),
        ),
        ("kernels", engine.kernels()),
        ("threads", format!("{}, {}", engine.cores().threads(), engine.cores().placement())),
    ];
    let mut out = std::io::stdout().lock();
    for (name, value) in rows {
        writeln!(out, "{name:<15} {value}")?;
    }
    Ok(ExitCode::SUCCESS)
}
