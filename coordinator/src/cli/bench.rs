//! `coordinator bench`.

use super::cluster::ClusterArgs;
use super::rendered::{Rendered, render};
use super::request::RequestArgs;
use super::{human_bytes, whole};
use crate::client::Destination;
use protocol::job::{CfgSplit, JobRequest, Mode};
use serde_json::json;
use std::io::{self, Write as _};
use std::num::NonZeroU16;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How often each way is rendered, by turns; medians are shown.
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroU16,
    /// Print one JSON object with everything that was measured.
    #[arg(long)]
    json: bool,
}

/// A way to render the image.
#[derive(Debug)]
struct Way {
    name: String,
    request: JobRequest,
    rendered: Vec<Rendered>,
}

pub(super) async fn run(arguments: BenchArgs) -> anyhow::Result<ExitCode> {
    let request = arguments.request.request(arguments.cluster.local(), false);
    let work = async |to: &Destination| {
        let ways = measure(request, arguments.rounds.get(), to).await?;
        let text = if arguments.json { format!("{}\n", json_of(&ways)) } else { table(&ways) };
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    };
    arguments.cluster.run(&arguments.request, work).await
}

/// Renders the image on one worker, and on all, each way as often as the others and by turns.
async fn measure(asked: JobRequest, rounds: u16, to: &Destination) -> anyhow::Result<Vec<Way>> {
    let mut ways = ways(&asked);
    for round in 1..=rounds {
        for place in 0.. {
            let Some(way) = ways.get_mut(place) else { break };
            let what = format!("{} ({round} of {rounds})", way.name);
            let rendered = render(&what, way.request.clone(), to).await?;
            if place > 0 && rendered.workers < 2 {
                // One worker is all there is: what follows would be the same again.
                ways.truncate(1);
            } else {
                way.rendered.push(rendered);
            }
        }
    }
    Ok(ways)
}

fn ways(asked: &JobRequest) -> Vec<Way> {
    let seed = Some(asked.seed.unwrap_or(0));
    let way = |name: String, change: &dyn Fn(&mut JobRequest)| {
        let mut request = JobRequest { seed, ..asked.clone() };
        change(&mut request);
        Way { name, request, rendered: Vec::new() }
    };
    let displaced = asked.mode.unwrap_or(Mode::Corrected);
    let mut ways = vec![
        way("one worker".to_owned(), &|request| {
            request.workers = Some(1);
            request.cfg_split = CfgSplit::Off;
            request.mode = Some(Mode::FullSync);
        }),
        way(Mode::FullSync.to_string(), &|request| {
            request.mode = Some(Mode::FullSync);
            request.cfg_split = CfgSplit::Off;
        }),
        way(displaced.to_string(), &|request| {
            request.mode = Some(displaced);
            request.cfg_split = CfgSplit::Off;
        }),
    ];
    if asked.cfg_split != CfgSplit::Off && asked.guidance.is_none_or(|guidance| guidance > 1.0) {
        ways.push(way(format!("{displaced}, split"), &|request| {
            request.mode = Some(displaced);
            request.cfg_split = CfgSplit::Auto;
        }));
    }
    ways
}

impl Way {
    /// The median of what was measured in each round.
    fn median(&self, of: impl Fn(&Rendered) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rendered.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        f64::midpoint(low, high)
    }

    fn seconds(&self) -> f64 {
        self.median(|rendered| rendered.seconds_per_step)
    }

    fn peak(&self) -> u64 {
        self.rendered.iter().map(Rendered::peak_bytes).max().unwrap_or(0)
    }
}

fn table(ways: &[Way]) -> String {
    let Some(alone) = ways.first() else { return String::new() };
    let rendered = &alone.rendered[0];
    let mut text = format!("{}, median of {}\n\n", rendered.title(), alone.rendered.len());
    text += "MODE              WORKERS   S/STEP  SPEED-UP  EXPOSED  POSTED/CALL  PEAK\n";
    for way in ways {
        let posted = human_bytes(whole(way.median(Rendered::bytes_per_call)));
        text += &format!(
            "{:<17} {:>7}  {:>7.3}  {:>7.2}x  {:>6.1}%  {posted:>11}  {}\n",
            way.name,
            way.rendered[0].workers,
            way.seconds(),
            alone.seconds() / way.seconds(),
            100.0 * way.median(Rendered::exposed),
            human_bytes(way.peak()),
        );
    }
    text += "\nEXPOSED: of the calls' time, what the worker that waited longest in each waited for others.\n\
             PEAK: the most memory that was resident in any worker.\n";
    text
}

fn json_of(ways: &[Way]) -> serde_json::Value {
    let way = |way: &Way| {
        json!({
            "name": way.name,
            "workers": way.rendered[0].workers,
            "seconds_per_step": way.seconds(),
            "seconds_per_step_of_each_round":
                way.rendered.iter().map(|one| one.seconds_per_step).collect::<Vec<_>>(),
            "exposed": way.median(Rendered::exposed),
            "posted_bytes_per_call": way.median(Rendered::bytes_per_call),
            "peak_bytes": way.peak(),
        })
    };
    let spec = ways.first().and_then(|way| way.rendered[0].spec.as_ref());
    json!({
        "spec": spec.map(|(spec, _)| spec),
        "model": spec.map(|(_, model)| model),
        "ways": ways.iter().map(way).collect::<Vec<_>>(),
    })
}
