//! `coordinator netcheck`.

use super::ADDRESS_DEFAULT;
use super::identity::IdentityArgs;
use crate::client::Client;
use protocol::WorkerId;
use protocol::message::{ClusterView, MeasuredLink, ToClient};
use protocol::plan::Fabric;
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
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: NetcheckArgs) -> anyhow::Result<ExitCode> {
    let to = arguments.identity.destination(&arguments.coordinator).await?;
    let mut client = Client::connect(&to).await?;
    client.netcheck(arguments.fabric).await?;
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
            ToClient::Accepted { .. } | ToClient::Event { .. } => {}
        }
    };
    let text = if arguments.json {
        format!("{}\n", json!({ "links": links, "pairs": view.pairs }))
    } else {
        table(&links, &view)
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
