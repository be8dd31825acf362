//! One image rendered by ranks in this process, over links in memory.

use bytes::Bytes;
pub use coordinator::job::checkpoint::Checkpoint as Progress;

use protocol::job::JobSpec;
use protocol::message::ToCoordinator;
use protocol::plan::{Band, Branch, Geometry, Member, Plan, split_evenly};
use protocol::transport::{Links, memory};
use protocol::{Epoch, Fault, JobId, RunId, WorkerId};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use worker::engine::{Files, Run, run};
use worker::model::checkpoint::Checkpoint;

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// The latent after each model call, [channels, rows, columns].
    pub latents: Vec<Vec<f64>>,
    /// Where the image could be gone on with after each of them.
    pub progress: Vec<Progress>,
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
    render_from(checkpoints, plan, links, None)
}

/// The same, from where others left the image.
///
/// # Errors
/// The first fault of any rank.
///
/// # Panics
/// If a rank's thread panics or its messages are not a run's.
pub fn render_from(
    checkpoints: &[Arc<Checkpoint>],
    plan: &Plan,
    links: Vec<Links>,
    from: Option<&Progress>,
) -> Result<Rendered, Fault> {
    render_with(checkpoints, plan, links, (from, &Files::new()))
}

/// The same, of a job that brings `files`.
///
/// # Errors
/// The first fault of any rank.
///
/// # Panics
/// If a rank's thread panics or its messages are not a run's.
pub fn render_with(
    checkpoints: &[Arc<Checkpoint>],
    plan: &Plan,
    links: Vec<Links>,
    (from, files): (Option<&Progress>, &Files),
) -> Result<Rendered, Fault> {
    let mut threads = Vec::new();
    for ((rank, links), checkpoint) in plan.ranks().zip(links).zip(checkpoints) {
        let (out, mut said) = mpsc::unbounded_channel();
        let (held, cancel) = oneshot::channel();
        let band = plan.member(rank).map_or(Band { top: 0, rows: 0 }, |member| member.band);
        let resume = from.map(|from| (from.resume(), from.band(plan.geometry, band)));
        let (plan, files) = (plan.clone(), files.clone());
        let run = Run { plan, rank, resume, files, links, cancel, out };
        let checkpoint = Arc::clone(checkpoint);
        threads.push(std::thread::spawn(move || {
            run::render(&checkpoint, run);
            drop(held); // a dropped sender cancels the run
            std::iter::from_fn(|| said.try_recv().ok()).collect::<Vec<_>>()
        }));
    }
    let said: Vec<Vec<(ToCoordinator, Bytes)>> =
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect();
    let first = from.map_or(0, |from| from.calls);
    let mut rendered = Rendered::default();
    let mut bands: Vec<Vec<(Band, &Bytes)>> = Vec::new();
    for (rank, messages) in plan.ranks().zip(&said) {
        let mut all_displaced = Vec::new();
        for (message, payload) in messages {
            match message {
                ToCoordinator::Stepped { displaced, call, calls, history, .. } => {
                    all_displaced.push(*displaced);
                    let place = (call - first) as usize;
                    if bands.len() == place {
                        let (calls, of) = (call + 1, *calls);
                        let planes = Bytes::new(); // put together below
                        rendered.progress.push(Progress { calls, of, history: *history, planes });
                        bands.push(Vec::new());
                    }
                    let band = plan.member(rank).filter(|_| plan.reports(rank));
                    bands[place].extend(band.map(|member| (member.band, payload)));
                }
                ToCoordinator::Decoded { .. } => rendered.pixels.extend(payload),
                ToCoordinator::Notice { text, .. } => rendered.notices.push(text.clone()),
                ToCoordinator::Failed { fault, .. } => return Err(fault.clone()),
                _ => {}
            }
        }
        rendered.displaced.push(all_displaced);
    }
    for (progress, bands) in rendered.progress.iter_mut().zip(&bands) {
        progress.planes = Progress::planes_of(plan.geometry, progress.history, bands);
        let latent = progress.latent();
        let (words, _) = latent.as_chunks::<4>();
        let values = words.iter().map(|word| f64::from(f32::from_le_bytes(*word)));
        rendered.latents.push(values.collect());
    }
    Ok(rendered)
}
