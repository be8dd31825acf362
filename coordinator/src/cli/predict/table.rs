//! Predictions as text.

use super::figures::Settled;
use super::{Fit, Row};
use crate::cli::{human_bytes, whole};
use crate::planner::cost::preset::{PUBLISHED, PUBLISHED_WORKERS};
use crate::planner::cost::{Mesh, Overlap};
use anyhow::Context;
use protocol::plan::Branch;
use std::collections::BTreeSet;

/// The width of a terminal that nobody made wider.
const WIDTH: usize = 80;

/// For each size a table over numbers of workers, then why work is shared so.
pub(super) fn table(settled: &Settled, rows: &[Row]) -> String {
    let mut text = wrapped(&header(settled), "");
    for size in &settled.sizes.0 {
        let of_size: Vec<&Row> = rows.iter().filter(|row| row.size == *size).collect();
        text += &format!(
            "\n{size}\n  N  MESH  S/STEP  S/IMAGE SPEED-UP   HIDDEN  EXPOSED   LANDING    MEMORY FITS\n"
        );
        of_size.iter().for_each(|row| text += &line(row, settled));
        text += &fastest(&of_size);
        let mut before = "";
        for row in of_size {
            let Ok(mesh) = &row.mesh else { continue };
            if mesh.reason != before {
                text += &wrapped(
                    &format!("{:>3}  {}{}", row.workers, mesh.reason, nodes(mesh, settled)),
                    "     ",
                );
            }
            before = &mesh.reason;
        }
    }
    text + &legend(settled, rows)
}

/// On how many workers an image is there first: links may be too slow for more.
fn fastest(rows: &[&Row]) -> String {
    let done = rows
        .iter()
        .filter_map(|row| Some((row.workers, row.mesh.as_ref().ok()?.prediction.image_seconds)));
    match done.min_by(|one, other| one.1.total_cmp(&other.1)) {
        Some((workers, first)) if rows.len() > 1 => {
            format!("\nFastest on {workers}: {} s an image.\n", seconds(first))
        }
        _ => "\n".to_owned(),
    }
}

fn header(settled: &Settled) -> String {
    let ((bandwidth, latency), (far, later)) = (settled.inside, settled.between);
    let guidance = if settled.guided { "with" } else { "without" };
    format!(
        "{} {guidance} guidance, {} steps, warm-up {}, wire {}; {} and {} a call, {} per worker; \
         {bandwidth} and {latency} inside nodes of {}, {far} and {later} between; exposed {}\n",
        settled.card.name,
        settled.steps,
        settled.warmup,
        settled.wire,
        settled.rate,
        settled.overhead,
        settled.memory,
        settled.workers_per_node,
        settled.exposed
    )
}

fn line(row: &Row, settled: &Settled) -> String {
    let mesh = match &row.mesh {
        Ok(mesh) => mesh,
        Err(cause) => return wrapped(&format!("{:>3}  {cause}\n", row.workers), "     "),
    };
    let (cost, fit) = (&mesh.prediction, Fit::of(mesh, settled));
    let needed = match fit {
        Fit::Whole => cost.computing_bytes.max(cost.decoding_bytes),
        Fit::Tiled | Fit::No => cost.computing_bytes,
    };
    format!(
        "{:>3} {:>5} {:>7} {:>8} {:>7.2}x {:>8} {:>8} {:>9} {:>9} {}\n",
        row.workers,
        shape(mesh),
        seconds(cost.displaced_seconds),
        seconds(cost.image_seconds),
        row.alone / cost.image_seconds,
        milliseconds(cost.hidden_seconds),
        milliseconds(cost.exposed_seconds),
        human_bytes(whole(cost.landing_bytes)),
        human_bytes(whole(needed)),
        fit.name()
    )
}

/// Branches and bands: 8 or 2x4, or 2+3 if branches are unequal.
pub(super) fn shape(mesh: &Mesh) -> String {
    let of = |branch| mesh.shares.iter().filter(|share| share.branch == branch).count();
    match (of(Branch::Negative), of(Branch::Prompt)) {
        (0, _) => mesh.shares.len().to_string(),
        (one, other) if one == other => format!("2x{one}"),
        (one, other) => format!("{one}+{other}"),
    }
}

/// On which nodes branches are, if there are several.
pub(super) fn nodes(mesh: &Mesh, settled: &Settled) -> String {
    let node = |worker: usize| worker / settled.workers_per_node + 1;
    let of = |branch| {
        let of_branch = mesh.shares.iter().filter(move |share| share.branch == branch);
        of_branch.map(|share| node(share.worker)).collect::<BTreeSet<usize>>()
    };
    let branches =
        [("", Branch::Whole), ("negative ", Branch::Negative), ("prompt ", Branch::Prompt)];
    let used: BTreeSet<usize> = mesh.shares.iter().map(|share| node(share.worker)).collect();
    if used.len() < 2 {
        return String::new();
    }
    let parts = branches.iter().filter_map(|(name, branch)| {
        let nodes: Vec<String> = of(*branch).iter().map(ToString::to_string).collect();
        let plural = if nodes.len() > 1 { "s" } else { "" };
        (!nodes.is_empty()).then(|| format!("{name}on node{plural} {}", nodes.join(" ")))
    });
    format!("; {}", parts.collect::<Vec<_>>().join(", "))
}

fn legend(settled: &Settled, rows: &[Row]) -> String {
    let mut text = "\nN: workers. MESH: bands, or branches x bands. S/STEP: a displaced call. \
                    S/IMAGE: all calls, without prompt and decode. HIDDEN, EXPOSED: of a displaced \
                    call's exchange. LANDING: on the worker that most lands on, in a call. MEMORY: \
                    the most that a worker needs."
        .to_owned();
    let fits = |of: Fit| {
        let meshes = rows.iter().filter_map(|row| row.mesh.as_ref().ok());
        meshes.into_iter().any(|mesh| Fit::of(mesh, settled) == of)
    };
    if fits(Fit::Tiled) {
        text += " FITS tiles: the decode as a whole would not fit.";
    }
    if fits(Fit::No) {
        text += &format!(" FITS NO: more than 85 % of {}.", settled.memory);
    }
    if settled.overlap() == Overlap::Hidden {
        text += " What takes longer than a call computes is exposed (--exposed 1: all of it).";
    }
    wrapped(&text, "")
}

/// The published figures beside the predicted ones.
pub(super) fn beside_published(settled: &Settled, rows: &[Row]) -> anyhow::Result<String> {
    let mut text = wrapped(&header(settled), "");
    text += "\nSIZE       GPUS  PUBLISHED  PREDICTED     OFF\n";
    let mut worst: f64 = 0.0;
    for entry in PUBLISHED {
        for (workers, published) in PUBLISHED_WORKERS.into_iter().zip(entry.seconds) {
            let count = usize::try_from(workers)?;
            let of = |row: &&Row| row.size.width == entry.side && row.workers == count;
            let row = rows.iter().find(of).context("a published entry was not predicted")?;
            let mesh = row.mesh.as_ref().map_err(|cause| anyhow::anyhow!("{cause}"))?;
            let seconds = mesh.prediction.image_seconds;
            let off = 100.0 * (seconds / published - 1.0);
            worst = if off.abs() > worst.abs() { off } else { worst };
            text += &format!(
                "{:<10} {workers:>4} {:>8} s {:>8} s {off:>+6.1}%\n",
                row.size.to_string(),
                three_digits(published),
                three_digits(seconds)
            );
        }
    }
    text += "\n";
    text += &wrapped(
        &format!(
            "The largest error is {:.1} %. Published: SDXL on A100s, 50 steps of DDIM, in one branch. \
             All of the exchange is exposed, and all ranks gather everything.",
            worst.abs()
        ),
        "",
    );
    Ok(text)
}

fn seconds(value: f64) -> String {
    if value < 100.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

fn milliseconds(seconds: f64) -> String {
    let value = 1e3 * seconds;
    if value < 1e4 { format!("{value:.2}ms") } else { format!("{seconds:.1}s") }
}

fn three_digits(seconds: f64) -> String {
    match seconds {
        _ if seconds < 10.0 => format!("{seconds:.2}"),
        _ if seconds < 100.0 => format!("{seconds:.1}"),
        _ => format!("{seconds:.0}"),
    }
}

/// `text` in lines that fit a terminal, those after the first behind `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let text = text.trim_end();
    let (mut lines, mut line) = (String::new(), String::new());
    // Spaces before the first word stay: they align it with the table.
    let first = text.len() - text.trim_start().len();
    line.push_str(&text[..first]);
    for word in text[first..].split(' ') {
        let fits = line.chars().count() + 1 + word.chars().count() <= WIDTH;
        if !fits {
            lines += line.trim_end();
            lines.push('\n');
            indent.clone_into(&mut line);
        } else if !line.trim().is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines + line.trim_end() + "\n"
}
