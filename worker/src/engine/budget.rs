//! How much memory a rank's activations take: its run, computed without values.

use super::run;
use crate::kernels::{Arena, Needed};
use crate::model::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::tensor::{Memory, Tensor};
use crate::model::unet::UNet;
use crate::parallel::{Planned, naive};
use protocol::job::{Decode, GnVariance, JobSpec, Mode, Parallelism, Warmup, Wire};
use protocol::plan::{Band, Branch, Geometry, Member, Plan};
use protocol::{Call, Epoch, Fault, FaultKind, JobId, Rank, RunId, WorkerId};
use std::net::{Ipv4Addr, SocketAddr};

/// Whole latents that are added for what is not planned: the few between calls, sent and received, and
/// the gaps that they leave.
const LATENTS: usize = 16;

/// What the activations of an image of the model's native size take, if this worker renders it alone.
pub(super) fn alone(checkpoint: &Checkpoint) -> Result<Needed> {
    let card = checkpoint.card();
    let (width, height) = card.native;
    let geometry = Geometry {
        rows: height / card.vae_factor,
        columns: width / card.vae_factor,
        channels: card.latent_channels,
        row_unit: card.row_unit,
        vae_factor: card.vae_factor,
    };
    let spec = JobSpec {
        prompt: String::new(),
        negative: None,
        width,
        height,
        steps: 1,
        guidance: card.guidance,
        seed: 0,
        scheduler: card.scheduler,
        warmup: Warmup::Auto,
        parallelism: Parallelism::Patch,
        mode: Mode::FullSync,
        gn_variance: GnVariance::Population,
        wire: Wire::F32,
        decode: Decode::Whole,
        probe: false,
        profile: false,
        loras: Vec::new(),
        init: None,
    };
    let whole = Band { top: 0, rows: geometry.rows };
    let member = Member {
        worker: WorkerId(0),
        name: String::new(),
        address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        offers: Vec::new(),
        branch: Branch::Whole,
        band: whole,
        decodes: whole,
        identity: None,
    };
    let run = RunId { job: JobId(0), epoch: Epoch(0) };
    let plan = Plan {
        run,
        spec,
        geometry,
        members: vec![member],
        fabrics: Vec::new(),
        broken: Vec::new(),
    };
    needed(checkpoint, checkpoint.unet(), &plan, Rank(0))
}

/// What the activations of `rank` in `plan`, whose network is `unet`, take at the most.
pub(super) fn needed(
    checkpoint: &Checkpoint,
    unet: &UNet,
    plan: &Plan,
    rank: Rank,
) -> Result<Needed> {
    let missing = || Fault::new(FaultKind::PlanMismatch, format!("the plan has no {rank}"));
    let member = plan.member(rank).ok_or_else(missing)?;
    let arena = Arena::planning();
    let memory = Memory::Host(arena.clone());
    let [columns, channels] = [plan.geometry.columns, plan.geometry.channels].map(to_usize);
    let rows_of = |band: Band, batch: u32| {
        let shape = [to_usize(batch), to_usize(band.rows), columns, channels];
        Tensor::of(arena.take(shape.iter().product()), shape)
    };
    // 1. A picture to begin with.
    if let (Some(encoder), true) = (checkpoint.encoder(), plan.spec.init.is_some()) {
        let factor = to_usize(plan.geometry.vae_factor);
        let shape = [1, to_usize(plan.geometry.rows) * factor, columns * factor, 3];
        let picture = Tensor::of(arena.take(shape.iter().product()), shape)?;
        encoder.encode(&picture)?;
    }
    // 2. The prompt, whose keys and values stay.
    let texts = run::texts(checkpoint, plan, member.branch, &memory)?;
    let texts: Vec<_> = texts.into_iter().map(|(_, text)| text).collect();
    let conditioning = checkpoint.condition(unet, &texts, plan.spec.width, plan.spec.height)?;
    drop(texts);
    // 3. A call; strips of the naive mode are not alike in all calls.
    let input = rows_of(member.band, plan.batch(rank))?;
    for call in [0, 1].map(Call) {
        let input = match plan.strip(rank, call) {
            Some(strip) => naive::cut(&input, strip)?,
            None => input.clone(),
        };
        unet.forward(&input, 0.0, &conditioning, &mut Planned::denoise(plan, rank))?;
    }
    drop(input);
    // 4. The decode.
    let latent = rows_of(member.decodes, 1)?;
    let (vae, mut exchange) = (checkpoint.vae(), Planned::decode(plan, rank));
    match plan.spec.decode {
        Decode::Tiled => {
            vae.decode_in_tiles(&latent, to_usize(member.decodes.top), &mut exchange)?
        }
        Decode::Auto | Decode::Whole => vae.decode(&latent, &mut exchange)?,
    };
    let needed = arena.needed();
    let latent = to_usize(plan.geometry.rows) * columns * channels * size_of::<f32>();
    Ok(Needed { arena: needed.arena + LATENTS * latent, ..needed })
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}
