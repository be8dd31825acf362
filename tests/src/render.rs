//! One image rendered by ranks in this process, over links in memory.

use bytes::Bytes;
use protocol::job::JobSpec;
use protocol::message::ToCoordinator;
use protocol::plan::{Band, Branch, Geometry, Member, Plan, split_evenly};
use protocol::transport::{Links, memory};
use protocol::{Epoch, Fault, JobId, RunId, WorkerId};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use worker::engine::{Run, run};
use worker::model::checkpoint::Checkpoint;

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// The latent after each model call, [channels, rows, columns].
    pub latents: Vec<Vec<f64>>,
    /// RGB bytes [height, width, 3].
    pub pixels: Vec<u8>,
    /// Of each rank, whether its peers' values were old in each model call.
    pub displaced: Vec<Vec<bool>>,
    /// What the user was told.
    pub notices: Vec<String>,
}

/// A plan for `spec` on `ranks` ranks that all compute both predictions.
///
/// # Panics
/// If the image has too few rows for them.
#[must_use]
pub fn plan(checkpoint: &Checkpoint, spec: &JobSpec, ranks: usize) -> Plan {
    plan_of(checkpoint, spec, &[(Branch::Whole, ranks)])
}

/// A plan for `spec` with so many ranks in each branch.
///
/// # Panics
/// If the image has too few rows for them.
#[must_use]
pub fn plan_of(checkpoint: &Checkpoint, spec: &JobSpec, parts: &[(Branch, usize)]) -> Plan {
    let card = checkpoint.card();
    let geometry = Geometry {
        rows: spec.height / card.vae_factor,
        columns: spec.width / card.vae_factor,
        channels: card.latent_channels,
        row_unit: card.row_unit,
        vae_factor: card.vae_factor,
    };
    let ranks = parts.iter().map(|(_, ranks)| ranks).sum();
    let decodes = split_evenly(geometry.rows, 1, ranks).expect("enough rows");
    let bands = parts.iter().flat_map(|(branch, ranks)| {
        let bands = split_evenly(geometry.rows, geometry.row_unit, *ranks).expect("enough rows");
        let whole = Band { top: 0, rows: geometry.rows };
        let has_bands = spec.parallelism.has_bands();
        bands.into_iter().map(move |band| (*branch, if has_bands { band } else { whole }))
    });
    let members = bands.zip(decodes).zip(0..).map(|(((branch, band), decodes), number)| Member {
        worker: WorkerId(number),
        name: format!("rank {number}"),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        offers: Vec::new(),
        branch,
        band,
        decodes,
        identity: None,
    });
    let run = RunId { job: JobId(1), epoch: Epoch(0) };
    let members = members.collect();
    Plan { run, spec: spec.clone(), geometry, members, fabrics: Vec::new(), broken: Vec::new() }
}

/// Links in memory between all ranks of `plan`, by rank; with a seed, late and out of order.
#[must_use]
pub fn links(checkpoint: &Checkpoint, plan: &Plan, seed: Option<u64>) -> Vec<Links> {
    memory::mesh(plan, checkpoint.sites(), seed)
}

/// Renders `plan`, each rank on its own thread with its own of `links`.
///
/// # Errors
/// The first fault of any rank.
///
/// # Panics
/// If a rank's thread panics or its messages are not a run's.
pub fn render(
    checkpoint: &Arc<Checkpoint>,
    plan: &Plan,
    links: Vec<Links>,
) -> Result<Rendered, Fault> {
    render_on(&vec![Arc::clone(checkpoint); plan.world_size()], plan, links)
}

/// The same, each rank with its own of `checkpoints`.
///
/// # Errors
/// The first fault of any rank.
///
/// # Panics
/// If a rank's thread panics or its messages are not a run's.
pub fn render_on(
    checkpoints: &[Arc<Checkpoint>],
    plan: &Plan,
    links: Vec<Links>,
) -> Result<Rendered, Fault> {
    let mut threads = Vec::new();
    for ((rank, links), checkpoint) in plan.ranks().zip(links).zip(checkpoints) {
        let (out, mut said) = mpsc::unbounded_channel();
        let (held, cancel) = oneshot::channel();
        let resume = None;
        let run = Run { plan: plan.clone(), rank, resume, links, cancel, out };
        let checkpoint = Arc::clone(checkpoint);
        threads.push(std::thread::spawn(move || {
            run::render(&checkpoint, run);
            drop(held); // a dropped sender cancels the run
            std::iter::from_fn(|| said.try_recv().ok()).collect::<Vec<_>>()
        }));
    }
    let said: Vec<Vec<(ToCoordinator, Bytes)>> =
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect();
    let mut rendered = Rendered::default();
    for messages in &said {
        let mut call = 0;
        let stepped = messages.iter().filter_map(|(message, _)| match message {
            ToCoordinator::Stepped { displaced, .. } => Some(*displaced),
            _ => None,
        });
        rendered.displaced.push(stepped.collect());
        for (message, payload) in messages {
            match message {
                ToCoordinator::Stepped { .. } if payload.is_empty() => {}
                ToCoordinator::Stepped { .. } => {
                    rendered.take_band(call, payload, plan);
                    call += 1;
                }
                ToCoordinator::Decoded { .. } => rendered.pixels.extend(payload),
                ToCoordinator::Notice { text, .. } => rendered.notices.push(text.clone()),
                ToCoordinator::Failed { fault, .. } => return Err(fault.clone()),
                _ => {}
            }
        }
    }
    rendered.latents = rendered.latents.iter().map(|rows| channels_first(rows, plan)).collect();
    Ok(rendered)
}

impl Rendered {
    /// Appends a band [channels, band rows, columns] to the latent of `call`, kept as
    /// [rows, columns, channels] until it is whole.
    fn take_band(&mut self, call: usize, payload: &[u8], plan: &Plan) {
        let (words, _) = payload.as_chunks::<4>();
        let values: Vec<f64> =
            words.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect();
        if self.latents.len() == call {
            self.latents.push(Vec::new());
        }
        let channels = plan.geometry.channels as usize;
        let pixels = values.len() / channels;
        for pixel in 0..pixels {
            let of_pixel = (0..channels).map(|channel| values[channel * pixels + pixel]);
            self.latents[call].extend(of_pixel);
        }
    }
}

fn channels_first(rows: &[f64], plan: &Plan) -> Vec<f64> {
    let channels = plan.geometry.channels as usize;
    let pixels = rows.len() / channels;
    (0..channels)
        .flat_map(|channel| (0..pixels).map(move |pixel| rows[pixel * channels + channel]))
        .collect()
}
