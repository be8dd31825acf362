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
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
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
    if arguments.json {
        return print(&format!("{}\n", json_of(&engine)));
    }
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
    let lines = rows.map(|(name, value)| format!("{name:<15} {value}\n"));
    print(&lines.concat())
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn json_of(engine: &Engine) -> serde_json::Value {
    serde_json::json!({
        "model": engine.card(),
        "resident_bytes": resident_bytes(),
        "activation_bytes": engine.activations().map(|needed| needed.arena),
        "exchange_sites": engine.sites(),
        "kernels": engine.kernels(),
        "threads": engine.cores().threads(),
        "placement": engine.cores().placement().to_string(),
    })
}
