//! `coordinator netcheck`.

use super::ADDRESS_DEFAULT;
use super::identity::IdentityArgs;
use crate::client::Client;
use crate::planner::cost::{Calls, Forecast, Image, Mesh};
use crate::planner::{Candidate, Cluster, LinkSpeed, Pairs, STEPS_DEFAULT};
use protocol::WorkerId;
use protocol::job::{CfgSplit, Wire};
use protocol::message::{ClusterView, MeasuredLink, ToClient};
use protocol::plan::{Branch, Fabric};
use serde_json::json;
use std::io::{self, Write};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct NetcheckArgs {
    /// The coordinator to ask.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    coordinator: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Only over these fabrics, such as `quic,tcp` [default: all that two workers share].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    fabric: Vec<Fabric>,
    /// Predict for this width in pixels [default: the model's native width].
    #[arg(long, value_name = "PIXELS")]
    width: Option<u32>,
    /// Predict for this height in pixels [default: the model's native height].
    #[arg(long, value_name = "PIXELS")]
    height: Option<u32>,
    /// Predict for so many sampler steps.
    #[arg(long, value_name = "N", default_value_t = STEPS_DEFAULT)]
    steps: u32,
    /// Predict for a warm-up of so many calls after the first.
    #[arg(long, value_name = "K", default_value_t = 4)]
    warmup: u32,
    /// Predict for keys and values that cross in this type.
    #[arg(long, value_name = "TYPE", default_value_t = Wire::F32)]
    wire: Wire,
    /// Predict for guidance's two predictions on different workers, as `coordinator submit` has it.
    #[arg(long, value_name = "WHEN", default_value_t = CfgSplit::Auto)]
    cfg_split: CfgSplit,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: NetcheckArgs) -> anyhow::Result<ExitCode> {
    let to = arguments.identity.destination(&arguments.coordinator).await?;
    let mut client = Client::connect(&to).await?;
    client.netcheck(arguments.fabric.clone()).await?;
    let mut links = Vec::new();
    let view = loop {
        match client.next().await?.0 {
            ToClient::Link(link) => {
                // Nobody need read it: the table goes to standard output.
                writeln!(io::stderr(), "measured: {} over {}", ends(&link), link.fabric).ok();
                links.push(*link);
            }
            ToClient::Cluster(view) => break *view,
            ToClient::Refused(fault) => return Err(fault.into()),
            ToClient::Accepted { .. }
            | ToClient::Event { .. }
            | ToClient::Drained(_)
            | ToClient::Job(_)
            | ToClient::Jobs { .. }
            | ToClient::Taken { .. } => {}
        }
    };
    let meshes = predict(&arguments, &links, &view);
    let text = if arguments.json {
        let predictions: Vec<_> = meshes.iter().map(json_of).collect();
        format!("{}\n", json!({ "links": links, "pairs": view.pairs, "predictions": predictions }))
    } else {
        table(&links, &view) + &predictions(&meshes)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn ends(link: &MeasuredLink) -> String {
    let [one, other] = link.workers;
    format!("{one} - {other}")
}

fn table(links: &[MeasuredLink], view: &ClusterView) -> String {
    let mut text = "WORKERS                FABRIC  LATENCY     EACH WAY AT ONCE\n".to_owned();
    for link in links {
        let figures = match &link.figures {
            Ok(figures) => {
                let used = if is_used(view, link) { "  (used)" } else { "" };
                let rate = figures.bytes_per_second / 1e6;
                format!("{:>8.0} us {rate:>10.1} MB/s{used}", figures.latency_us)
            }
            Err(fault) => format!("none: {fault}"),
        };
        text += &format!("{:<22} {:<6} {figures}\n", ends(link), link.fabric.name());
    }
    for worker in &view.workers {
        text += &format!("{}: {} at {}\n", worker.id, worker.name, worker.address);
    }
    text
}

/// Whether jobs use this fabric between these workers.
fn is_used(view: &ClusterView, link: &MeasuredLink) -> bool {
    let same = |workers: [WorkerId; 2]| workers == link.workers;
    view.pairs.iter().any(|pair| same(pair.workers) && pair.fabric == Some(link.fabric))
}

/// What the image is predicted to cost on one worker, on two, and so on to all.
fn predict(arguments: &NetcheckArgs, links: &[MeasuredLink], view: &ClusterView) -> Vec<Mesh> {
    let Some(card) = &view.model else { return Vec::new() };
    let calls = Calls::new(arguments.steps, arguments.warmup);
    let mut image = Image::native(card, arguments.wire, calls);
    let factor = card.vae_factor.max(1);
    image.geometry.columns = arguments.width.map_or(image.geometry.columns, |width| width / factor);
    image.geometry.rows = arguments.height.map_or(image.geometry.rows, |height| height / factor);
    let candidates: Vec<Candidate> = view
        .workers
        .iter()
        .map(|worker| Candidate {
            worker: worker.id,
            name: worker.name.clone(),
            address: worker.address,
            speed: worker.speed,
            free_bytes: 0,
            offers: Vec::new(),
            lacks: Vec::new(),
            identity: None,
        })
        .collect();
    let pairs = nearest_measured(links);
    let cluster = Cluster { candidates: &candidates, pairs: Some(&pairs) };
    let mesh = |count| {
        let split = if count == 1 { CfgSplit::Off } else { arguments.cfg_split };
        Forecast::measured(image, cluster, count)?.mesh(split).ok()
    };
    (1..=candidates.len()).filter_map(mesh).collect()
}

/// Of each pair of workers, what its nearest measured fabric gave.
fn nearest_measured(links: &[MeasuredLink]) -> Pairs {
    let mut nearest_first: Vec<&MeasuredLink> = links.iter().collect();
    nearest_first.sort_by_key(|link| link.fabric);
    let mut pairs = Pairs::default();
    for link in nearest_first {
        let [one, other] = link.workers;
        if let Ok(figures) = link.figures
            && pairs.get(one, other).is_none()
        {
            pairs.measured(one, other, LinkSpeed::from(figures));
            pairs.measured(other, one, LinkSpeed::from(figures));
        }
    }
    pairs
}

fn predictions(meshes: &[Mesh]) -> String {
    let mut text =
        "\nPREDICTED  BRANCHES  SYNCHRONOUS    DISPLACED     HIDDEN  EXPOSED\n".to_owned();
    for mesh in meshes {
        let cost = mesh.prediction;
        text += &format!(
            "{:>2} workers {:>9} {:>8.4} s/step {:>6.4} s/step {:>7.1} ms {:>5.1} ms\n",
            mesh.shares.len(),
            branches(mesh),
            cost.synchronous_seconds,
            cost.displaced_seconds,
            1e3 * cost.hidden_seconds,
            1e3 * cost.exposed_seconds
        );
    }
    text
}

fn json_of(mesh: &Mesh) -> serde_json::Value {
    json!({
        "workers": mesh.shares.len(),
        "branches": branches(mesh),
        "prediction": mesh.prediction,
        "reason": mesh.reason,
    })
}

fn branches(mesh: &Mesh) -> usize {
    if mesh.shares.iter().any(|share| share.branch == Branch::Prompt) { 2 } else { 1 }
}
