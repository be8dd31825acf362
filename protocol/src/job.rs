//! What is asked for, and what it becomes once every default is known.

mod card;
mod field;
mod files;
mod preview;
mod shape;
mod terms;
mod work;

pub use card::ModelCard;
pub use field::Field;
pub use files::{
    CHUNK_BYTES, FILE_BYTES_MAX, FileDigest, Init, InitWish, JOB_FILES_BYTES_MAX,
    LORA_NAME_BYTES_MAX, LORA_SCALE_MAX, LORAS_MAX, Lora, PICTURE_BYTES_MAX,
};
pub use preview::{PreviewError, PreviewMap};
pub use shape::UNetShape;
pub use terms::Terms;
pub use work::ModelWork;

use crate::plan::Fabric;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A value that is not one of the names it must be one of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{value}`; supported: {supported}")]
pub struct UnknownName {
    /// What kind of name was looked for.
    pub what: &'static str,
    /// What was given.
    pub value: String,
    /// Every name there is.
    pub supported: String,
}

macro_rules! names {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name on the command line and on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(value: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|known| known.name() == value).ok_or_else(|| {
                    UnknownName {
                        what: $what,
                        value: value.to_owned(),
                        supported: [$($text),+].join(" "),
                    }
                })
            }
        }
    };
}

names!(
    /// A sampler, by the name users of diffusers' and other tools know.
    Scheduler, "scheduler" {
        /// Denoising diffusion implicit models.
        Ddim = "ddim",
        /// Euler.
        Euler = "euler",
        /// Euler ancestral.
        EulerA = "euler-a",
        /// DPM-Solver++ second order, multistep.
        Dpmpp2m = "dpmpp-2m",
        /// The same with Karras' noise schedule.
        Dpmpp2mKarras = "dpmpp-2m-karras",
        /// UniPC, order two.
        Unipc = "unipc",
        /// Heun: two model calls a step.
        Heun = "heun",
        /// Latent consistency models.
        Lcm = "lcm",
        /// Pseudo linear multistep, the default of Stable Diffusion 1.5.
        Pndm = "pndm",
    }
);

names!(
    /// How ranks exchange activations after the warm-up.
    Mode, "mode" {
        /// Every call waits for this call's values of every peer.
        FullSync = "full-sync",
        /// Peers' values are one call old; group norms are corrected by the own band's change.
        Corrected = "corrected",
        /// Peers' values are one call old, their group statistics too.
        Stale = "stale",
        /// Peers' values are one call old, but group statistics are waited for.
        SyncGn = "sync-gn",
        /// Peers' values are one call old; group norms see the own band only.
        Separate = "separate",
        /// Peers' values are those of the last synchronous call for ever; group norms see the own
        /// band only. Nothing is sent.
        NoSync = "no-sync",
    }
);

names!(
    /// How ranks share the work of one model call. All but `patch` are there to be compared with.
    Parallelism, "parallelism" {
        /// Each rank renders a band of rows and exchanges activations: as [`Mode`] says.
        Patch = "patch",
        /// Each rank renders a band of rows as if it were an image of its own.
        NaiveRow = "naive-row",
        /// The same with columns.
        NaiveCol = "naive-col",
        /// The same with rows in even calls and columns in odd ones.
        NaiveAlternate = "naive-alternate",
        /// Each rank computes the whole image with a part of each layer's weights, and the ranks add
        /// their results up twice or more in each block.
        Tensor = "tensor",
    }
);

impl Parallelism {
    /// Whether a rank renders a band of rows. Otherwise it steps the whole image, and what is shared is
    /// the work of predicting it.
    #[must_use]
    pub fn has_bands(self) -> bool {
        self == Self::Patch
    }
}

names!(
    /// How tall workers' bands are.
    Bands, "bands" {
        /// As tall as their workers were measured to be fast.
        Auto = "auto",
        /// All the same, up to one row unit.
        Even = "even",
    }
);

names!(
    /// The type in which keys and values cross between workers, nine tenths of all bytes.
    Wire, "wire type" {
        /// 32-bit floats: as computed on the CPU.
        F32 = "f32",
        /// IEEE half precision.
        F16 = "f16",
        /// bfloat16.
        Bf16 = "bf16",
    }
);

impl Wire {
    /// Bytes of one value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

names!(
    /// Whether guidance's two predictions are computed by different ranks.
    CfgSplit, "cfg split" {
        /// As the planner finds faster.
        Auto = "auto",
        /// By different ranks: only predictions cross between the two halves of the cluster.
        On = "on",
        /// Every rank computes both for its band.
        Off = "off",
    }
);

names!(
    /// How the last step, from the latent to pixels, is computed.
    Decode, "decode" {
        /// As a whole, if it fits the workers' memory; else in tiles.
        Auto = "auto",
        /// Exactly: each rank decodes a band and exchanges what lies beyond it.
        Whole = "whole",
        /// In memory that does not grow with the image: group norms take the statistics of the image in
        /// small.
        Tiled = "tiled",
    }
);

names!(
    /// The variance group norms divide by.
    GnVariance, "group norm variance" {
        /// The biased variance, as in torch: synchronous runs equal the dense model.
        Population = "population",
        /// Times N/(N-1) with the local band's N, as the DistriFusion reference code does.
        Reference = "reference",
    }
);

names!(
    /// The type weights are held in. Arithmetic is f32, but in linear layers of the UNet where `bf16` or
    /// `int8` is asked for; statistics always are.
    Dtype, "dtype" {
        /// As the checkpoint stores them.
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// IEEE half precision.
        F16 = "f16",
        /// bfloat16; products, too, where the processor has an instruction for them.
        Bf16 = "bf16",
        /// Linear layers of the UNet in 8 bits, weights by column and activations by row, the rest as the
        /// checkpoint stores it. Faster and smaller, and not the same image.
        Int8 = "int8",
    }
);

names!(
    /// Which jobs are rendered before others that wait.
    Priority, "priority" {
        /// When nothing else waits.
        Low = "low",
        /// In turn.
        Normal = "normal",
        /// Before all others.
        High = "high",
    }
);

impl Priority {
    /// A number that is higher for what is rendered earlier.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::High => 2,
        }
    }
}

/// Until when calls are synchronous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "WarmupText", try_from = "WarmupText")]
pub enum Warmup {
    /// In calls 0..=K.
    Calls(u32),
    /// As long as what is exchanged changes much from call to call; and again whenever it does.
    Auto,
}

/// A warm-up that is neither a number of calls nor `auto`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown warm-up `{0}`; a number of calls or auto")]
pub struct UnknownWarmup(String);

impl fmt::Display for Warmup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls(calls) => write!(f, "{calls}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Warmup {
    type Err = UnknownWarmup;

    fn from_str(value: &str) -> Result<Self, UnknownWarmup> {
        match value {
            "auto" => Ok(Self::Auto),
            calls => calls.parse().map(Self::Calls).map_err(|_| UnknownWarmup(value.to_owned())),
        }
    }
}

/// A [`Warmup`] as people write it: in JSON a number or `"auto"`.
#[derive(Deserialize)]
struct WarmupText(String);

impl Serialize for WarmupText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.parse::<u32>() {
            Ok(calls) if serializer.is_human_readable() => serializer.serialize_u32(calls),
            _ => serializer.serialize_str(&self.0),
        }
    }
}

impl From<Warmup> for WarmupText {
    fn from(warmup: Warmup) -> Self {
        Self(warmup.to_string())
    }
}

impl TryFrom<WarmupText> for Warmup {
    type Error = UnknownWarmup;

    fn try_from(text: WarmupText) -> Result<Self, UnknownWarmup> {
        text.0.parse()
    }
}

/// What a user asks for. What is left out takes the model's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// What the image shows.
    pub prompt: String,
    /// What it should not show. None is the checkpoint's own idea of an empty negative.
    pub negative: Option<String>,
    /// Image width in pixels.
    pub width: Option<u32>,
    /// Image height in pixels.
    pub height: Option<u32>,
    /// Sampler steps.
    pub steps: Option<u32>,
    /// Classifier-free guidance scale; 1 or less turns guidance off.
    pub guidance: Option<f32>,
    /// The seed of torch's CPU generator. None: the coordinator draws one and says which.
    pub seed: Option<u64>,
    /// The sampler. None: the checkpoint's own.
    pub scheduler: Option<Scheduler>,
    /// Until when calls are synchronous.
    pub warmup: Warmup,
    /// How ranks share the work of a call.
    pub parallelism: Parallelism,
    /// How ranks exchange activations after the warm-up. None: as the planner finds fit for the number
    /// of steps.
    pub mode: Option<Mode>,
    /// The variance group norms divide by.
    pub gn_variance: GnVariance,
    /// The type in which keys and values cross. None: the type they are computed in.
    pub wire: Option<Wire>,
    /// The dtype the cluster's workers must hold their weights in. None: whatever they hold.
    pub dtype: Option<Dtype>,
    /// The model the cluster must hold, by name. None: whatever it holds.
    pub model: Option<String>,
    /// Whether guidance's two predictions are computed by different ranks.
    pub cfg_split: CfgSplit,
    /// How tall workers' bands are.
    pub bands: Bands,
    /// How the latent becomes pixels.
    pub decode: Decode,
    /// The fabrics that values may cross over; none named means all.
    pub fabrics: Vec<Fabric>,
    /// How many workers render it. None: all that are there when it starts.
    pub workers: Option<u16>,
    /// Whether the client wants the latent after every sampler step.
    pub stream_latents: bool,
    /// Whether a job that loses a worker waits for another in its place, and goes on so that its bits are
    /// those of an undisturbed run. Else it goes on with whoever is left.
    pub deterministic: bool,
    /// Whether bands move within the job once one worker is found to be slower than its band is tall.
    pub rebalance: bool,
    /// Whether ranks measure how far what they exchange moves from call to call.
    pub probe: bool,
    /// Whether ranks tell where their time goes.
    pub profile: bool,
    /// LoRA files whose changes of the weights are added up.
    pub loras: Vec<Lora>,
    /// A picture to begin with, in place of noise alone.
    pub init: Option<InitWish>,
}

impl JobRequest {
    /// The files that it is rendered with.
    pub fn files(&self) -> impl Iterator<Item = FileDigest> {
        self.loras.iter().map(|lora| lora.file).chain(self.init.as_ref().map(|init| init.file))
    }

    /// An image of `prompt`, and everything else as it is when nobody asks for anything.
    #[must_use]
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative: None,
            width: None,
            height: None,
            steps: None,
            guidance: None,
            seed: None,
            scheduler: None,
            warmup: Warmup::Calls(4),
            parallelism: Parallelism::Patch,
            mode: None,
            gn_variance: GnVariance::Population,
            wire: None,
            dtype: None,
            model: None,
            cfg_split: CfgSplit::Auto,
            bands: Bands::Auto,
            decode: Decode::Auto,
            fabrics: Vec::new(),
            workers: None,
            stream_latents: false,
            deterministic: false,
            rebalance: false,
            probe: false,
            profile: false,
            loras: Vec::new(),
            init: None,
        }
    }
}

/// A job with every value settled: what the workers render and the PNG records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What the image shows.
    pub prompt: String,
    /// What it should not show. None is the checkpoint's own idea of an empty negative.
    pub negative: Option<String>,
    /// Image width in pixels.
    pub width: u32,
    /// Image height in pixels.
    pub height: u32,
    /// Sampler steps.
    pub steps: u32,
    /// Classifier-free guidance scale; 1 or less turns guidance off.
    pub guidance: f32,
    /// The seed of torch's CPU generator.
    pub seed: u64,
    /// The sampler.
    pub scheduler: Scheduler,
    /// Until when calls are synchronous.
    pub warmup: Warmup,
    /// How ranks share the work of a call.
    pub parallelism: Parallelism,
    /// How ranks exchange activations after the warm-up.
    pub mode: Mode,
    /// The variance group norms divide by.
    pub gn_variance: GnVariance,
    /// The type in which keys and values cross between workers.
    pub wire: Wire,
    /// How the latent becomes pixels: never [`Decode::Auto`] in a plan.
    pub decode: Decode,
    /// Whether ranks measure how far what they exchange moves from call to call.
    pub probe: bool,
    /// Whether ranks tell where their time goes.
    pub profile: bool,
    /// LoRA files whose changes of the weights are added up.
    pub loras: Vec<Lora>,
    /// A picture to begin with, in place of noise alone.
    pub init: Option<Init>,
}

impl JobSpec {
    /// The files that it is rendered with.
    pub fn files(&self) -> impl Iterator<Item = FileDigest> {
        self.loras.iter().map(|lora| lora.file).chain(self.init.as_ref().map(|init| init.file))
    }

    /// How many of the sampler's steps are left out, as the picture to begin with takes their place.
    #[must_use]
    pub fn skipped_steps(&self) -> u32 {
        self.init.as_ref().map_or(0, |init| init.skipped_steps(self.steps))
    }

    /// How the work is shared, in a word: the mode, or the baseline that has none.
    #[must_use]
    pub fn way(&self) -> &'static str {
        match self.parallelism {
            Parallelism::Patch => self.mode.name(),
            baseline => baseline.name(),
        }
    }
}
