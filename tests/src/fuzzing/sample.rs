//! Real plans and exchange points, small: what targets compare with, and seeds are made of.

use protocol::job::{
    Decode, Dtype, FileDigest, GnVariance, Init, JobSpec, Lora, Mode, ModelCard, ModelWork,
    Parallelism, PreviewMap, Scheduler, Warmup, Wire,
};
use protocol::plan::{
    Ask, Axis, Band, Branch, Geometry, Member, NcclDevice, Offer, Plan, SharedMemory, SiteSpec,
    Stage, split_evenly,
};
use protocol::{Epoch, JobId, RunId, WorkerId};

/// The row unit of the plans here: that of a UNet which halves twice.
const UNIT: u32 = 4;

/// What is rendered by a plan of these branches.
pub(super) fn spec(parallelism: Parallelism) -> JobSpec {
    JobSpec {
        prompt: "red apple".to_owned(),
        negative: Some("leaf".to_owned()),
        width: 256,
        height: 512,
        steps: 4,
        guidance: 5.0,
        seed: 7,
        scheduler: Scheduler::Euler,
        warmup: Warmup::Auto,
        parallelism,
        mode: Mode::Corrected,
        gn_variance: GnVariance::Population,
        wire: Wire::F16,
        decode: Decode::Tiled,
        probe: false,
        profile: true,
        loras: loras(),
        init: Some(Init { file: FileDigest([8; 32]), strength: 0.75 }),
    }
}

/// What it is changed by.
pub(super) fn loras() -> Vec<Lora> {
    vec![Lora { file: FileDigest([7; 32]), name: "ink.safetensors".to_owned(), scale: 0.5 }]
}

/// A model's card.
pub(super) fn card() -> ModelCard {
    ModelCard {
        name: "emoji-xl".to_owned(),
        digest: "d9".repeat(32),
        family: "sdxl".to_owned(),
        dtype: Dtype::F16,
        latent_channels: 4,
        vae_factor: 8,
        row_unit: 4,
        native: (1024, 1024),
        scheduler: Scheduler::Euler,
        guidance: 5.0,
        weight_bytes: 7 << 30,
        shards_max: 5,
        decode_bytes: 2048,
        work: ModelWork { cell: 4, sites: 155, ..ModelWork::default() },
        preview: Some(preview()),
        encode_bytes: 1536,
    }
}

/// How previews of it are made.
pub(super) fn preview() -> PreviewMap {
    PreviewMap { weights: vec![[0.25, -0.5, 0.125]; 4], offset: [0.5; 3] }
}

/// A plan of as many ranks as there are branches, in which ranks share the rows of their branch evenly.
pub(super) fn plan(parallelism: Parallelism, branches: &[Branch]) -> Plan {
    let gpu = |rank: usize| NcclDevice {
        host: "a".to_owned(),
        gpu: format!("gpu {rank}"),
        version: 22_803,
    };
    let memory = SharedMemory { boot: "b".to_owned(), device: 1, user: 0 };
    let member = |(rank, branch): (usize, &Branch)| Member {
        worker: WorkerId(rank as u64 + 1),
        name: format!("worker-{rank}"),
        address: ([127, 0, 0, 1], 7411).into(),
        offers: vec![
            Offer::Nccl(gpu(rank)),
            Offer::Shm(memory.clone()),
            Offer::Rdma { roce: true },
            Offer::Quic { port: 7412 },
            Offer::Tcp,
        ],
        branch: *branch,
        band: Band { top: 0, rows: 0 },
        decodes: Band { top: 0, rows: 0 },
        identity: None,
    };
    let mut plan = Plan {
        run: RunId { job: JobId(1), epoch: Epoch(2) },
        spec: spec(parallelism),
        geometry: Geometry { rows: 64, columns: 32, channels: 4, row_unit: UNIT, vae_factor: 8 },
        members: branches.iter().enumerate().map(member).collect(),
        fabrics: Vec::new(),
        broken: Vec::new(),
    };
    tile(&mut plan);
    plan
}

/// Gives the ranks of a plan even bands, as far as it has rows for them.
pub(super) fn tile(plan: &mut Plan) {
    let Geometry { rows, row_unit, .. } = plan.geometry;
    let even = |unit, ranks| split_evenly(rows, unit, ranks).unwrap_or_default();
    for branch in [Branch::Whole, Branch::Negative, Branch::Prompt] {
        let ranks = plan.members.iter().filter(|member| member.branch == branch).count();
        let bands = match plan.spec.parallelism.has_bands() {
            true => even(row_unit, ranks),
            false => vec![Band { top: 0, rows }; ranks],
        };
        let members = plan.members.iter_mut().filter(|member| member.branch == branch);
        members.zip(bands).for_each(|(member, band)| member.band = band);
    }
    let decodes = even(1, plan.members.len());
    plan.members.iter_mut().zip(decodes).for_each(|(member, rows)| member.decodes = rows);
}

/// An exchange point of every kind, at the resolutions that a model with halving blocks has them.
pub(super) fn sites() -> Vec<SiteSpec> {
    let site = |ask, stage, halvings| SiteSpec {
        path: format!("{ask:?}"),
        ask,
        stage,
        channels: 320,
        halvings,
    };
    vec![
        site(Ask::Halo { rows: 1 }, Stage::Input, 0),
        site(Ask::Halo { rows: 1 }, Stage::Denoise, 2),
        site(Ask::Moments { groups: 32 }, Stage::Denoise, 1),
        site(Ask::Gather, Stage::Denoise, 1),
        site(Ask::Prediction, Stage::Latent, 0),
        site(Ask::Strip(Axis::Rows), Stage::Latent, 0),
        site(Ask::Strip(Axis::Columns), Stage::Latent, 0),
        site(Ask::Summand, Stage::Denoise, 1),
        site(Ask::Sum, Stage::Denoise, 1),
        site(Ask::Change, Stage::Latent, 0),
        site(Ask::Latent, Stage::Latent, 0),
        site(Ask::Communicator, Stage::Latent, 0),
        site(Ask::Halo { rows: 1 }, Stage::Decode, -3),
        site(Ask::Moments { groups: 32 }, Stage::Decode, -3),
        site(Ask::Gather, Stage::Decode, 0),
        site(Ask::Gather, Stage::Tiles, 0),
    ]
}
