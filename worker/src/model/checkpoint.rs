//! A whole checkpoint: tokenizers, text encoders, UNet and VAE of a diffusers folder.

use super::clip::{ClipConfig, ClipText};
use super::config::Config;
use super::exchange::{Place, Sites};
use super::files::ModelFiles;
use super::lora::{Deltas, Part as LoraPart, Source};
use super::nn::Loader;
use super::scheduler::SchedulerConfig;
use super::tensor::{Memory, Tensor};
use super::tokenizer::ClipTokenizer;
use super::unet::config::UNetConfig;
use super::unet::{Conditioning, TextTime, UNet};
use super::vae::{VaeConfig, VaeDecoder, VaeEncoder};
use super::weights::Weights;
use super::{Error, Result};
use crate::device::Device;
use protocol::job::{Dtype, ModelCard};
use protocol::plan::{Ask, Axis, SiteSpec, Stage};
use serde_json::json;
use std::cell::RefCell;
use std::sync::Arc;

/// The families of checkpoints we render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion XL and its distillations: two text encoders, size conditioning.
    Sdxl,
    /// Stable Diffusion 1.x and 2.x: one text encoder.
    Sd,
}

impl Family {
    /// Its name in model cards.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sdxl => "sdxl",
            Self::Sd => "sd",
        }
    }

    /// The guidance scale diffusers uses by default.
    fn guidance(self) -> f32 {
        match self {
            Self::Sdxl => 5.0,
            Self::Sd => 7.5,
        }
    }

    /// The side, in pixels, of images of checkpoints that do not say.
    fn side(self) -> usize {
        match self {
            Self::Sdxl => 1024,
            Self::Sd => 512,
        }
    }
}

/// A loaded checkpoint. Clones share its weights.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    card: ModelCard,
    family: Family,
    zero_empty_negative: bool,
    encoders: Vec<TextEncoder>,
    scheduler: SchedulerConfig,
    unet: UNet,
    vae: Arc<VaeDecoder>,
    encoder: Option<Arc<VaeEncoder>>,
    sites: Vec<SiteSpec>,
    device: Option<Device>,
}

#[derive(Clone, Debug)]
struct TextEncoder {
    tokenizer: Arc<ClipTokenizer>,
    clip: ClipText,
}

/// What a prompt is to the UNet.
#[derive(Debug)]
pub struct TextEmbedding {
    /// [1, tokens, channels].
    pub tokens: Tensor,
    /// [1, channels]: SDXL's.
    pub pooled: Option<Tensor>,
    /// The words beyond what the encoders read, if there are any.
    pub truncated: Option<String>,
}

impl Checkpoint {
    /// Loads every part of the checkpoint in `files`, holding weights in `dtype`.
    ///
    /// # Errors
    /// Names the file, and the key or tensor, that is missing, corrupt or not supported.
    pub fn load(files: &ModelFiles, dtype: Dtype) -> Result<Self> {
        Self::load_on(files, dtype, None)
    }

    /// As [`Self::load`], for `device` to compute with, if there is one.
    ///
    /// # Errors
    /// As [`Self::load`]; or if the device has no room for it.
    pub fn load_on(files: &ModelFiles, dtype: Dtype, device: Option<&Device>) -> Result<Self> {
        let held = (dtype, device);
        let index = config(files, "model_index.json")?;
        let (family, zero_empty_negative) = read_index(&index)?;
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        // 1. Text encoders.
        let suffixes: &[&str] = if family == Family::Sdxl { &["", "_2"] } else { &[""] };
        let mut encoders = Vec::new();
        for suffix in suffixes {
            let encoder = TextEncoder::load(files, suffix, held, &mut hasher)?;
            bytes += encoder.clip.bytes();
            encoders.push(encoder);
        }
        // 2. UNet and VAE, whose exchange points are numbered in this order.
        let sites = RefCell::new(Sites::default());
        let unet_config = UNetConfig::read(&config(files, "unet/config.json")?)?;
        let part = Part { files, held, sites: &sites };
        let (unet, unet_weights) = part.unet(unet_config)?;
        let vae_config = VaeConfig::read(&config(files, "vae/config.json")?)?;
        let (vae, encoder, vae_weights) = part.vae(vae_config)?;
        unet_weights.hash_into(&mut hasher);
        vae_weights.hash_into(&mut hasher);
        bytes += unet.bytes() + vae.bytes() + encoder.as_ref().map_or(0, VaeEncoder::bytes);
        // 3. What crosses between UNet, sampler and VAE.
        let latent = Place { stage: Stage::Latent, halvings: 0 };
        let between = [
            ("prediction", Ask::Prediction),
            ("strip.rows", Ask::Strip(Axis::Rows)),
            ("strip.columns", Ask::Strip(Axis::Columns)),
            ("change", Ask::Change),
            ("latent", Ask::Latent),
            ("communicator", Ask::Communicator),
        ];
        for (path, ask) in between {
            sites.borrow_mut().number(latent.site(path, ask, unet.config().channels));
        }
        // 4. Do the parts fit together?
        check_fit(files, &encoders, &unet, &vae)?;
        // 5. Scheduler.
        let path = "scheduler/scheduler_config.json";
        let scheduler = read_scheduler(files, path)?;
        for path in CONFIGURATIONS {
            if let Some(text) = files.find(path)? {
                hasher.update(path.as_bytes());
                hasher.update(&text);
            }
        }
        let dtype = unet_weights.main_dtype();
        let facts = Facts { family, unet: &unet, vae: &vae, encodes: encoder.is_some(), dtype };
        let mut card = facts.card(&scheduler);
        card.name = files.name();
        card.digest = hasher.finalize().to_hex().to_string();
        card.weight_bytes = bytes as u64;
        let sites = sites.into_inner().into_specs();
        let device = device.cloned();
        Ok(Self {
            card,
            family,
            zero_empty_negative,
            encoders,
            scheduler,
            unet,
            vae: Arc::new(vae),
            encoder: encoder.map(Arc::new),
            sites,
            device,
        })
    }

    /// What others need to know of it.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The device that it computes on, if it is not the processor with our own kernels.
    #[must_use]
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Its exchange points.
    #[must_use]
    pub fn sites(&self) -> &[SiteSpec] {
        &self.sites
    }

    /// The scheduler's configuration.
    #[must_use]
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// The denoising network.
    #[must_use]
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// This checkpoint with the changes in `sources` added to its layers.
    ///
    /// # Errors
    /// Names the file and its tensor that is corrupt, or fits no layer.
    pub fn with_loras(&self, sources: Vec<Source>) -> Result<Self> {
        let mut changed = self.clone();
        let mut deltas = Deltas::read(sources, self.unet.config().layers_per_block)?;
        changed.unet.adapt(&mut deltas)?;
        for (encoder, part) in changed.encoders.iter_mut().zip([LoraPart::Text, LoraPart::Text2]) {
            deltas.enter(part);
            encoder.clip.adapt(&mut deltas)?;
        }
        deltas.finish()?;
        Ok(changed)
    }

    /// The decoder.
    #[must_use]
    pub fn vae(&self) -> &VaeDecoder {
        &self.vae
    }

    /// The encoder of pictures, if the checkpoint has one.
    #[must_use]
    pub fn encoder(&self) -> Option<&VaeEncoder> {
        self.encoder.as_deref()
    }

    /// The token ids of `prompt` for each text encoder.
    #[must_use]
    pub fn token_ids(&self, prompt: &str) -> Vec<Vec<u32>> {
        self.encoders.iter().map(|encoder| encoder.tokenizer.encode(prompt).ids).collect()
    }

    /// Encodes a prompt, in `memory`.
    ///
    /// # Errors
    /// If the tokenizer and the encoder do not fit together.
    pub fn embed(&self, prompt: &str, memory: &Memory) -> Result<TextEmbedding> {
        let mut tokens = Vec::new();
        let mut pooled = None;
        let mut truncated = None;
        for encoder in &self.encoders {
            let text = encoder.tokenizer.encode(prompt);
            let encoded = encoder.clip.encode(&text.ids, memory)?;
            tokens.push(match self.family {
                Family::Sdxl => encoded.penultimate,
                Family::Sd => encoded.last,
            });
            pooled = encoded.pooled;
            truncated = truncated.or(text.truncated);
        }
        let pooled = if self.family == Family::Sdxl { pooled } else { None };
        // Side by side.
        let tokens = Tensor::cat(&tokens, 2)?;
        Ok(TextEmbedding { tokens, pooled, truncated })
    }

    /// Encodes a negative prompt. None is the empty prompt, or all zeros where the checkpoint was
    /// trained that way (`force_zeros_for_empty_prompt`).
    ///
    /// # Errors
    /// If the tokenizer and the encoder do not fit together.
    pub fn embed_negative(&self, negative: Option<&str>, memory: &Memory) -> Result<TextEmbedding> {
        let embedding = self.embed(negative.unwrap_or_default(), memory)?;
        if negative.is_some() || !self.zero_empty_negative {
            return Ok(embedding);
        }
        Ok(TextEmbedding {
            tokens: zeros_like(&embedding.tokens)?,
            pooled: embedding.pooled.as_ref().map(zeros_like).transpose()?,
            truncated: None,
        })
    }

    /// What `unet`, this checkpoint's or a shard of it, takes an image of `width` x `height` pixels to
    /// be conditioned on: `embeddings` are the branches of one batch, the negative first.
    ///
    /// # Errors
    /// If the embeddings are not this checkpoint's.
    #[expect(clippy::cast_precision_loss, reason = "sizes in pixels are far below 2^24")]
    pub fn condition(
        &self,
        unet: &UNet,
        embeddings: &[TextEmbedding],
        width: u32,
        height: u32,
    ) -> Result<Conditioning> {
        let tokens: Vec<&Tensor> = embeddings.iter().map(|each| &each.tokens).collect();
        let tokens = Tensor::cat(&tokens, 0)?;
        let pooled: Vec<&Tensor> =
            embeddings.iter().filter_map(|each| each.pooled.as_ref()).collect();
        if self.family == Family::Sd {
            return unet.condition(&tokens, None);
        }
        let pooled = Tensor::cat(&pooled, 0)?;
        let (width, height) = (width as f32, height as f32);
        let sizes = [height, width, 0.0, 0.0, height, width];
        unet.condition(&tokens, Some(TextTime { pooled: &pooled, sizes }))
    }
}

/// Files whose text is part of a checkpoint's digest.
const CONFIGURATIONS: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "vae/config.json",
];

fn config(files: &ModelFiles, path: &str) -> Result<Config> {
    Config::parse(&files.describe(path), &files.read(path)?)
}

/// Reads `model_index.json`: the family, and whether an absent negative prompt is all zeros.
fn read_index(index: &Config) -> Result<(Family, bool)> {
    let family = match index.text("_class_name")? {
        Some("StableDiffusionXLPipeline") => Family::Sdxl,
        Some("StableDiffusionPipeline") => Family::Sd,
        _ => {
            let known = r#""StableDiffusionXLPipeline", "StableDiffusionPipeline""#;
            return Err(index.refuse("_class_name", known));
        }
    };
    index.only("requires_aesthetics_score", &[json!(false)])?;
    index.only("unet", &[json!(["diffusers", "UNet2DConditionModel"])])?;
    index.only("vae", &[json!(["diffusers", "AutoencoderKL"])])?;
    // The parts themselves are read from their own folders. What looks at finished images (safety
    // checker, watermark) or takes images as input has no part in rendering.
    index.inert(&[
        "add_watermarker",
        "feature_extractor",
        "image_encoder",
        "requires_safety_checker",
        "safety_checker",
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
    ]);
    let zeros = index.flag_or("force_zeros_for_empty_prompt", family == Family::Sdxl)?;
    index.finish()?;
    Ok((family, zeros && family == Family::Sdxl))
}

fn read_scheduler(files: &ModelFiles, path: &str) -> Result<SchedulerConfig> {
    let name = files.describe(path);
    let bytes = files.read(path)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Error::Checkpoint(format!("{name} is not text: {error}")))?;
    SchedulerConfig::from_json(text)
        .map_err(|error| Error::Checkpoint(format!("{}: {error}", files.name())))
}

/// What UNet and VAE are loaded with.
struct Part<'a> {
    files: &'a ModelFiles,
    held: (Dtype, Option<&'a Device>),
    sites: &'a RefCell<Sites>,
}

impl Part<'_> {
    fn unet(&self, config: UNetConfig) -> Result<(UNet, Weights)> {
        let weights = Weights::open(self.files, "unet", "diffusion_pytorch_model", self.held)?;
        let place = Place { stage: Stage::Denoise, halvings: 0 };
        let unet = UNet::load(&Loader::new(&weights, self.sites, place), config)?;
        weights.finish(|_| false)?;
        Ok((unet, weights))
    }

    /// The decoder, and the encoder if it is there: some checkpoints are stored without.
    fn vae(&self, config: VaeConfig) -> Result<(VaeDecoder, Option<VaeEncoder>, Weights)> {
        let weights = Weights::open(self.files, "vae", "diffusion_pytorch_model", self.held)?;
        let place = Place { stage: Stage::Decode, halvings: 0 };
        let vae = VaeDecoder::load(&Loader::new(&weights, self.sites, place), config.clone())?;
        // It is not banded: it exchanges nothing. As exact as the network, for what it gives is stepped.
        let sites = RefCell::new(Sites::default());
        let place = Place { stage: Stage::Denoise, halvings: 0 };
        let encoder = weights
            .has("encoder.conv_in.weight")
            .then(|| VaeEncoder::load(&Loader::new(&weights, &sites, place), &config));
        let encoder = encoder.transpose()?;
        weights.finish(|name| encoder.is_none() && name.starts_with("quant_conv."))?;
        Ok((vae, encoder, weights))
    }
}

impl TextEncoder {
    fn load(
        files: &ModelFiles,
        suffix: &str,
        held: (Dtype, Option<&Device>),
        hasher: &mut blake3::Hasher,
    ) -> Result<Self> {
        let tokens = |name: &str| files.read(&format!("tokenizer{suffix}/{name}"));
        let tokenizer = ClipTokenizer::from_parts(
            &tokens("vocab.json")?,
            &tokens("merges.txt")?,
            &tokens("tokenizer_config.json")?,
            &tokens("special_tokens_map.json")?,
        )
        .map_err(|error| {
            Error::Checkpoint(format!("{}: {error}", files.describe(&format!("tokenizer{suffix}"))))
        })?;
        let part = format!("text_encoder{suffix}");
        let config = ClipConfig::read(&config(files, &format!("{part}/config.json"))?)?;
        let weights = Weights::open(files, &part, "model", held)?;
        // Text encoders are not banded: they exchange nothing.
        let sites = RefCell::new(Sites::default());
        let place = Place { stage: Stage::Input, halvings: 0 };
        let clip = ClipText::load(&Loader::new(&weights, &sites, place), config)?;
        weights.finish(|name| name == "text_model.embeddings.position_ids")?;
        weights.hash_into(hasher);
        Ok(Self { tokenizer: Arc::new(tokenizer), clip })
    }
}

fn check_fit(
    files: &ModelFiles,
    encoders: &[TextEncoder],
    unet: &UNet,
    vae: &VaeDecoder,
) -> Result<()> {
    let text: usize = encoders.iter().map(|encoder| encoder.clip.config().channels).sum();
    if text != unet.config().text_channels {
        return Err(Error::Checkpoint(format!(
            "{}: `cross_attention_dim` is `{}`, but the text encoders give {text} channels",
            files.describe("unet/config.json"),
            unet.config().text_channels
        )));
    }
    if vae.config().latent_channels != unet.config().channels {
        return Err(Error::Checkpoint(format!(
            "{}: `latent_channels` is `{}`, but the UNet's `in_channels` is `{}`: inpainting and \
             other UNets that take more than the latent are not supported",
            files.describe("vae/config.json"),
            vae.config().latent_channels,
            unet.config().channels
        )));
    }
    Ok(())
}

/// What a model card is made of.
struct Facts<'a> {
    family: Family,
    unet: &'a UNet,
    vae: &'a VaeDecoder,
    encodes: bool,
    dtype: Dtype,
}

impl Facts<'_> {
    fn card(&self, scheduler: &SchedulerConfig) -> ModelCard {
        let factor = self.vae.config().factor();
        let side = self.family.side() / factor;
        let (rows, columns) = self.unet.config().sample_size.unwrap_or((side, side));
        let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        ModelCard {
            name: String::new(),
            digest: String::new(),
            family: self.family.name().to_owned(),
            dtype: self.dtype,
            latent_channels: small(self.vae.config().latent_channels),
            vae_factor: small(factor),
            row_unit: 1 << self.unet.config().halvings(),
            native: (small(columns * factor), small(rows * factor)),
            scheduler: scheduler.kind(),
            guidance: self.family.guidance(),
            weight_bytes: 0,
            decode_bytes: small(self.vae.config().bytes_per_pixel()),
            shards_max: small(self.unet.config().shards_max()),
            work: self.unet.config().work(),
            preview: None,
            encode_bytes: if self.encodes {
                small(self.vae.config().bytes_per_pixel_encoded())
            } else {
                0
            },
        }
    }
}

fn zeros_like(x: &Tensor) -> Result<Tensor> {
    x.affine(0.0, 0.0)
}
