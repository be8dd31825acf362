//! The options that say what to render.

use protocol::job::{
    Bands, CfgSplit, Decode, Dtype, GnVariance, JobRequest, Mode, Parallelism, Scheduler, Warmup,
    Wire,
};
use protocol::plan::Fabric;
use std::path::PathBuf;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct RequestArgs {
    /// What the image shows.
    pub(super) prompt: String,
    /// What it should not show.
    #[arg(long, value_name = "TEXT")]
    pub(super) negative: Option<String>,
    /// Sampler steps [default: 30].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<u32>,
    /// Classifier-free guidance scale; 1 turns guidance off [default: the model family's].
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// Width in pixels [default: the model's native width].
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    width: Option<u32>,
    /// Height in pixels [default: the model's native height].
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    height: Option<u32>,
    /// Seed of the noise, which is that of torch's CPU generator [default: drawn].
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Sampler: ddim, euler, euler-a, dpmpp-2m, dpmpp-2m-karras, unipc, heun, lcm or pndm
    /// [default: the checkpoint's own].
    #[arg(long, value_name = "NAME")]
    scheduler: Option<Scheduler>,
    /// The first K+1 model calls are synchronous; or auto: calls are, as long as what is exchanged
    /// changes much from call to call.
    #[arg(long, value_name = "K", default_value_t = Warmup::Calls(4))]
    warmup: Warmup,
    /// How workers exchange activations after the warm-up: full-sync (exact), or one call old with
    /// group statistics that are corrected, stale, sync-gn (waited for) or separate (each worker's
    /// own); no-sync is separate with nothing sent [default: corrected; full-sync below 10 steps].
    #[arg(long)]
    mode: Option<Mode>,
    /// How workers share a model call: patch, or for comparison tensor, where each computes the whole
    /// image with a part of every layer, or naive-row, naive-col or naive-alternate, where each
    /// renders its part as if it were an image of its own.
    #[arg(long, value_name = "WAY", default_value_t = Parallelism::Patch)]
    parallelism: Parallelism,
    /// The variance of group norms: population (as torch) or reference (as the DistriFusion code).
    #[arg(long, value_name = "KIND", default_value_t = GnVariance::Population)]
    gn_variance: GnVariance,
    /// Whether different workers compute guidance's two predictions: auto (with guidance, unless one
    /// branch of all workers computes faster, as with three equal ones), on or off.
    #[arg(long, value_name = "WHEN", default_value_t = CfgSplit::Auto)]
    cfg_split: CfgSplit,
    /// The type in which attention's keys and values cross between workers, nine tenths of all bytes:
    /// f32, f16 or bf16 [default: f32, the type they are computed in].
    #[arg(long, value_name = "TYPE")]
    wire: Option<Wire>,
    /// How tall workers' bands are: auto (as their workers were measured to be fast) or even [default:
    /// auto on a cluster, even with --local].
    #[arg(long, value_name = "KIND")]
    bands: Option<Bands>,
    /// How the latent becomes pixels: whole (exact), tiled (in memory that does not grow with the
    /// image; a little off) or auto (whole, if it fits the workers' memory).
    #[arg(long, value_name = "HOW", default_value_t = Decode::Auto)]
    decode: Decode,
    /// The type weights are held in: auto, f32, f16 or bf16. On a cluster: the type its workers
    /// must hold them in.
    #[arg(long, value_name = "TYPE")]
    pub(super) dtype: Option<Dtype>,
    /// A checkpoint in the diffusers folder layout [default: the built-in emoji-xl]. On a cluster:
    /// the name of the model that its workers must hold.
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// The fabrics that workers may exchange over, such as `quic,tcp`; of those that two workers share the
    /// nearest is taken: nccl, shm, rdma, quic, tcp [default: all].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    fabric: Vec<Fabric>,
    /// If a worker is lost, wait a minute for another in its place and go on so that the image is bit for bit
    /// that of an undisturbed run; without this, go on at once with those that are left.
    #[arg(long)]
    deterministic: bool,
    /// Move bands within the image once a worker is found to be slower than its band is tall.
    #[arg(long, conflicts_with = "deterministic")]
    rebalance: bool,
    /// How many of a cluster's workers render it [default: all].
    #[arg(long, value_name = "N", conflicts_with = "local")]
    workers: Option<u16>,
}

impl RequestArgs {
    /// The request; `local` workers hold whatever model they are started with.
    pub(super) fn request(&self, local: Option<u16>, stream_latents: bool) -> JobRequest {
        // Local workers are alike: what tells them apart is noise.
        let bands = local.map_or(Bands::Auto, |_| Bands::Even);
        let named = self.model.as_ref().filter(|_| local.is_none());
        JobRequest {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            scheduler: self.scheduler,
            warmup: self.warmup,
            parallelism: self.parallelism,
            mode: self.mode,
            gn_variance: self.gn_variance,
            wire: self.wire,
            cfg_split: self.cfg_split,
            bands: self.bands.unwrap_or(bands),
            decode: self.decode,
            dtype: self.dtype.filter(|_| local.is_none()),
            model: named.and_then(|model| Some(model.file_name()?.to_string_lossy().into_owned())),
            fabrics: self.fabric.clone(),
            workers: local.or(self.workers),
            stream_latents,
            deterministic: self.deterministic,
            rebalance: self.rebalance,
            probe: false,
            profile: false,
            loras: Vec::new(),
            init: None,
        }
    }
}
