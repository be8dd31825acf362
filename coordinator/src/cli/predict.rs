//! `coordinator predict`.

mod chart;
mod figures;
mod lists;
mod table;
mod units;

use self::figures::{Figures, Settled};
use self::lists::Size;
use crate::output::{check_writable, write_whole};
use crate::planner::cost::{Calls, Forecast, Image, Machine, Mesh};
use crate::planner::{LinkSpeed, Links};
use anyhow::bail;
use protocol::job::CfgSplit;
use protocol::plan::Geometry;
use serde_json::{Value, json};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Parts in a hundred of a worker's memory that may be needed: the estimate is good to a tenth.
const MEMORY_PERCENT: f64 = 85.0;

#[derive(Debug, clap::Args)]
pub(super) struct PredictArgs {
    #[command(flatten)]
    figures: Figures,
    /// A file with figures: a JSON object with the names and values of these options.
    #[arg(long = "figures", value_name = "FILE.json")]
    file: Option<PathBuf>,
    /// Show the figures published for DistriFusion beside the prediction for them.
    #[arg(long, conflicts_with = "file")]
    paper: bool,
    /// Where a chart of seconds per image goes.
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
    /// Print one JSON object with everything that is predicted.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: PredictArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &arguments.chart {
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg")) {
            bail!(
                "--chart {}: charts are written as SVG; give a name that ends in .svg",
                path.display()
            );
        }
        check_writable(path)?;
    }
    let settled = arguments.settle()?;
    let rows = predict(&settled)?;
    if let Some(path) = &arguments.chart {
        let svg = chart::draw(&settled, &rows).map_err(anyhow::Error::msg)?;
        write_whole(path, |file| file.write_all(svg.as_bytes()))?;
    }
    let text = if arguments.json {
        format!("{}\n", json_of(&settled, &rows))
    } else if arguments.paper {
        table::beside_published(&settled, &rows)?
    } else {
        table::table(&settled, &rows)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl PredictArgs {
    fn settle(&self) -> anyhow::Result<Settled> {
        let given = self.figures.clone();
        if self.paper && given != Figures::default() {
            bail!("--paper: its figures are those of the publication; leave the others out");
        }
        let others = match &self.file {
            _ if self.paper => Figures::paper(),
            Some(path) => Figures::read(path)?,
            None => Figures::default(),
        };
        given.or(others).settle()
    }
}

/// One size on one number of workers.
#[derive(Debug)]
struct Row {
    size: Size,
    workers: usize,
    /// Or why so many cannot share it.
    mesh: Result<Mesh, String>,
    /// Seconds of the image on one worker.
    alone: f64,
}

/// Whether a worker has the memory for its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// All of it.
    Whole,
    /// If it decodes in tiles.
    Tiled,
    /// Not even then.
    No,
}

impl Fit {
    fn of(mesh: &Mesh, settled: &Settled) -> Self {
        let most = settled.memory.0 * MEMORY_PERCENT / 100.0;
        match (mesh.prediction.computing_bytes <= most, mesh.prediction.decoding_bytes <= most) {
            (true, true) => Self::Whole,
            (true, false) => Self::Tiled,
            (false, _) => Self::No,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Whole => "yes",
            Self::Tiled => "tiles",
            Self::No => "NO",
        }
    }
}

fn predict(settled: &Settled) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in &settled.sizes.0 {
        let alone = forecast(settled, *size, 1)?.mesh(CfgSplit::Auto);
        let alone = alone.map(|mesh| mesh.prediction.image_seconds)?;
        for workers in &settled.workers.0 {
            let forecast = forecast(settled, *size, *workers)?;
            let mesh = match *workers {
                1 => forecast.mesh(CfgSplit::Auto),
                _ => forecast.mesh(settled.cfg_split),
            };
            let mesh = mesh.map_err(|error| error.to_string());
            rows.push(Row { size: *size, workers: *workers, mesh, alone });
        }
    }
    Ok(rows)
}

fn forecast(settled: &Settled, size: Size, workers: usize) -> anyhow::Result<Forecast<'_>> {
    let card = &settled.card;
    let unit = card.vae_factor * card.row_unit;
    if !size.width.is_multiple_of(unit) || !size.height.is_multiple_of(unit) {
        bail!("--sizes {size}: sides of {} are multiples of {unit} pixels", card.name);
    }
    let geometry = Geometry {
        rows: size.height / card.vae_factor,
        columns: size.width / card.vae_factor,
        channels: card.latent_channels,
        row_unit: card.row_unit,
        vae_factor: card.vae_factor,
    };
    let calls = Calls::new(settled.steps, settled.warmup);
    let image = Image { card, geometry, guided: settled.guided, wire: settled.wire, calls };
    let machine = Machine { rate: settled.rate.0, overhead: settled.overhead.0 };
    let links = Links::all(workers, |from, to| {
        let node = |worker| worker / settled.workers_per_node;
        let (bandwidth, latency) =
            if node(from) == node(to) { settled.inside } else { settled.between };
        let latency = Duration::try_from_secs_f64(latency.0).ok()?;
        Some(LinkSpeed { bandwidth: super::whole(bandwidth.0), latency })
    });
    let Some(links) = links else { bail!("a latency is too long to be one") };
    let machines = vec![machine; workers];
    Ok(Forecast { image, machines, links, scheme: settled.scheme, overlap: settled.overlap() })
}

fn json_of(settled: &Settled, rows: &[Row]) -> Value {
    let row = |row: &Row| {
        let Size { width, height } = row.size;
        let mut json = json!({ "width": width, "height": height, "workers": row.workers });
        match &row.mesh {
            Err(cause) => json["impossible"] = json!(cause),
            Ok(mesh) => {
                json["mesh"] = json!(table::shape(mesh));
                json["nodes"] = json!(table::nodes(mesh, settled).trim_start_matches("; "));
                json["reason"] = json!(mesh.reason);
                json["speed_up"] = json!(row.alone / mesh.prediction.image_seconds);
                json["fits"] = json!(Fit::of(mesh, settled).name());
                json["prediction"] = json!(mesh.prediction);
            }
        }
        json
    };
    json!({
        "model": settled.card.name,
        "flop_per_second": settled.rate.0,
        "overhead_seconds": settled.overhead.0,
        "memory_bytes": settled.memory.0,
        "inside": { "bytes_per_second": settled.inside.0, "latency_seconds": settled.inside.1 },
        "between": { "bytes_per_second": settled.between.0, "latency_seconds": settled.between.1 },
        "workers_per_node": settled.workers_per_node,
        "steps": settled.steps,
        "warmup": settled.warmup,
        "guidance": settled.guided,
        "wire": settled.wire,
        "exposed": settled.exposed.to_string(),
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        arguments: PredictArgs,
    }

    fn arguments(line: &str) -> Result<PredictArgs, String> {
        let words = std::iter::once("predict").chain(line.split_whitespace());
        Only::try_parse_from(words).map(|only| only.arguments).map_err(|error| error.to_string())
    }

    fn shown(line: &str) -> String {
        let settled = arguments(line).unwrap().settle().unwrap();
        table::table(&settled, &predict(&settled).unwrap())
    }

    /// Without line breaks.
    fn flat(line: &str) -> String {
        shown(line).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_option_that_cannot_be_read_is_named_with_its_value_and_an_example() {
        for (line, option, value, example) in [
            ("--rate 161", "--rate", "161", "161TFLOP/s"),
            ("--overhead 20", "--overhead", "20", "20ms"),
            ("--bandwidth-inside 3Gb/s", "--bandwidth-inside", "3Gb/s", "150GB/s"),
            ("--memory lots", "--memory", "lots", "80GiB"),
            ("--sizes 1k", "--sizes", "1k", "2048x1024"),
            ("--workers 0..8", "--workers", "0", "1 to 64"),
            ("--exposed 2", "--exposed", "2", "0.5"),
            ("--guidance 5", "--guidance", "5", "on nor off"),
            ("--exchange ours", "--exchange", "ours", "neighbours all-gather"),
        ] {
            let cause = arguments(line).unwrap_err();
            assert!(cause.contains(option) && cause.contains(value), "{cause}");
            assert!(cause.contains(example), "{cause}");
        }
    }

    #[test]
    fn tables_fit_a_terminal_of_80_columns() {
        let lines = "--sizes 1024,3840x2048,8192 --workers 1..64,3 --bandwidth-between 1GB/s";
        for line in [lines, "--model sd15 --guidance off", "--model emoji-xl --exposed 0.5"] {
            let text = shown(line);
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
            }
        }
    }

    #[test]
    fn what_does_not_fit_or_cannot_be_shared_is_said() {
        let text = flat("--sizes 1024 --workers 1,2 --memory 7GiB");
        assert!(text.contains("NO") && text.contains("more than 85 %"), "{text}");
        let text = flat("--sizes 1024 --workers 64 --cfg-split off");
        assert!(text.contains("at most 32 workers"), "{text}");
        let text = flat("--sizes 8192 --workers 1 --memory 80GiB");
        assert!(text.contains("tiles"), "{text}");
    }

    #[test]
    fn branches_are_on_nodes_of_their_own_where_links_between_are_slow() {
        let text = flat("--sizes 2048 --workers 16");
        assert!(text.contains("2x8"), "{text}");
        assert!(text.contains("negative on node 1, prompt on node 2"), "{text}");
    }

    #[test]
    fn the_published_table_is_reproduced() {
        let settled = arguments("--paper").unwrap().settle().unwrap();
        let text = table::beside_published(&settled, &predict(&settled).unwrap()).unwrap();
        for part in ["5.02", "140", "22.9", "PUBLISHED", "4.5 %"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let both = arguments("--paper --rate 1TFLOP/s").unwrap().settle().unwrap_err();
        assert!(both.to_string().contains("leave the others out"), "{both}");
    }

    #[test]
    fn sides_off_the_models_unit_are_refused() {
        let settled = arguments("--sizes 1000").unwrap().settle().unwrap();
        let cause = predict(&settled).unwrap_err().to_string();
        assert_eq!(cause, "--sizes 1000x1000: sides of sdxl are multiples of 32 pixels");
    }

    #[test]
    fn json_has_a_row_for_each_size_and_number() {
        let settled = arguments("--sizes 1024,2048 --workers 1..4").unwrap().settle().unwrap();
        let json = json_of(&settled, &predict(&settled).unwrap());
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 6);
        assert_eq!((&rows[5]["mesh"], &rows[5]["width"]), (&json!("2x2"), &json!(2048)));
        assert!(rows[5]["prediction"]["call_seconds"].as_f64().unwrap() > 0.0);
    }
}
