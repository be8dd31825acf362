//! `unet/config.json`.

use crate::model::Result;
use crate::model::config::Config;
use crate::model::nn::embedding::Sinusoid;
use protocol::job::{ModelWork, UNetShape};
use serde_json::{Value, json};

/// The most residual blocks per resolution: known networks have one to three.
const LAYERS_MAX: usize = 16;

/// The most transformer blocks per attention: SDXL has ten.
const TRANSFORMER_LAYERS_MAX: usize = 32;

/// What `UNet2DConditionModel`'s configuration says, as far as we support it.
#[derive(Clone, Debug)]
pub struct UNetConfig {
    /// Latent channels.
    pub channels: usize,
    /// Latent rows and columns that the model was trained at.
    pub sample_size: Option<(usize, usize)>,
    /// Channels of each resolution, from the latent's down.
    pub block_channels: Vec<usize>,
    /// Which blocks on the way down have attention.
    pub down_attention: Vec<bool>,
    /// Which blocks on the way up have attention, from the lowest resolution.
    pub up_attention: Vec<bool>,
    /// Residual blocks per resolution.
    pub layers_per_block: usize,
    /// Transformer blocks per attention, for each resolution.
    pub transformer_layers: Vec<usize>,
    /// Attention heads, for each resolution.
    pub heads: Vec<usize>,
    /// Channels of the text embeddings.
    pub text_channels: usize,
    /// Normalisation groups.
    pub norm_groups: usize,
    /// Normalisation epsilon of residual blocks.
    pub norm_eps: f64,
    /// Embedding of the timestep.
    pub time: Sinusoid,
    /// Embedding of sizes, and the width of that embedding with the pooled text: SDXL's.
    pub text_time: Option<(Sinusoid, usize)>,
}

impl UNetConfig {
    /// How many shards the network has at most: each needs a head of every attention and a group of
    /// every norm.
    #[must_use]
    pub fn shards_max(&self) -> usize {
        let attends = |block: usize| {
            let up = self.up_attention.len() - 1 - block;
            self.down_attention[block] || self.up_attention[up] || up == 0
        };
        let blocks = (0..self.heads.len()).filter(|block| attends(*block));
        blocks.map(|block| self.heads[block]).fold(self.norm_groups, usize::min)
    }

    /// What a call computes, exchanges and holds.
    #[must_use]
    pub fn work(&self) -> ModelWork {
        let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let all = |values: &[usize]| values.iter().copied().map(small).collect::<Vec<_>>();
        UNetShape {
            latent_channels: small(self.channels),
            block_channels: &all(&self.block_channels),
            down_attention: &self.down_attention,
            up_attention: &self.up_attention,
            transformer_layers: &all(&self.transformer_layers),
            layers_per_block: small(self.layers_per_block),
            text_channels: small(self.text_channels),
            norm_groups: small(self.norm_groups),
            time_channels: small(self.time.channels),
            added_channels: self.text_time.map(|(_, width)| small(width)),
        }
        .work()
    }

    /// Reads `unet/config.json`.
    ///
    /// # Errors
    /// Names the first key whose value is not supported.
    pub fn read(config: &Config) -> Result<Self> {
        check_fixed(config)?;
        let block_channels = config.blocks("block_out_channels")?;
        let blocks = block_channels.len();
        let down_attention =
            attention(config, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", blocks)?;
        let up_attention =
            attention(config, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", blocks)?;
        let time = sinusoid(config, block_channels[0])?;
        let channels = config.positive("in_channels")?;
        if config.positive("out_channels")? != channels {
            return Err(config.refuse("out_channels", "the same as `in_channels`"));
        }
        let transformer_layers = match config.get("transformer_layers_per_block") {
            None => vec![1; blocks],
            Some(_) => config.per_block("transformer_layers_per_block", blocks)?,
        };
        let read = Self {
            channels,
            sample_size: sample_size(config)?,
            down_attention,
            up_attention,
            layers_per_block: config.positive_or("layers_per_block", 2)?,
            transformer_layers,
            heads: config.per_block("attention_head_dim", blocks)?,
            text_channels: config.positive("cross_attention_dim")?,
            norm_groups: config.positive_or("norm_num_groups", 32)?,
            norm_eps: config.number_or("norm_eps", 1e-5)?,
            text_time: text_time(config, time)?,
            time,
            block_channels,
        };
        config.finish()?;
        read.check(config)?;
        Ok(read)
    }

    /// How often rows and columns are halved at the lowest resolution.
    #[must_use]
    pub fn halvings(&self) -> usize {
        self.block_channels.len() - 1
    }

    fn check(&self, config: &Config) -> Result<()> {
        let up_to = |most| format!("a positive integer up to {most}");
        if self.layers_per_block > LAYERS_MAX {
            return Err(config.refuse("layers_per_block", &up_to(LAYERS_MAX)));
        }
        if self.transformer_layers.iter().any(|layers| *layers > TRANSFORMER_LAYERS_MAX) {
            let supported = up_to(TRANSFORMER_LAYERS_MAX);
            return Err(config.refuse("transformer_layers_per_block", &supported));
        }
        for (channels, heads) in self.block_channels.iter().zip(&self.heads) {
            if !channels.is_multiple_of(self.norm_groups) {
                return Err(config.refuse("norm_num_groups", "a divisor of every block's channels"));
            }
            if !channels.is_multiple_of(*heads) {
                return Err(config.refuse("attention_head_dim", "divisors of the blocks' channels"));
            }
        }
        Ok(())
    }
}

/// Keys that we support at one value or a few.
fn check_fixed(config: &Config) -> Result<()> {
    let only: &[(&str, &[Value])] = &[
        ("_class_name", &[json!("UNet2DConditionModel")]),
        ("act_fn", &[json!("silu"), json!("swish")]),
        ("addition_embed_type", &[json!("text_time")]),
        ("attention_type", &[json!("default")]),
        ("center_input_sample", &[json!(false)]),
        ("class_embed_type", &[]),
        ("class_embeddings_concat", &[json!(false)]),
        ("conv_in_kernel", &[json!(3)]),
        ("conv_out_kernel", &[json!(3)]),
        ("cross_attention_norm", &[]),
        ("downsample_padding", &[json!(1)]),
        ("dual_cross_attention", &[json!(false)]),
        ("encoder_hid_dim", &[]),
        ("encoder_hid_dim_type", &[]),
        ("mid_block_only_cross_attention", &[json!(false)]),
        ("mid_block_scale_factor", &[json!(1)]),
        ("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")]),
        ("num_attention_heads", &[]),
        ("num_class_embeds", &[]),
        ("only_cross_attention", &[json!(false)]),
        ("resnet_out_scale_factor", &[json!(1)]),
        ("resnet_skip_time_act", &[json!(false)]),
        ("resnet_time_scale_shift", &[json!("default")]),
        ("reverse_transformer_layers_per_block", &[]),
        ("time_cond_proj_dim", &[]),
        ("time_embedding_act_fn", &[]),
        ("time_embedding_dim", &[]),
        ("time_embedding_type", &[json!("positional")]),
        ("timestep_post_act", &[]),
    ];
    for (key, supported) in only {
        config.only(key, supported)?;
    }
    // Dropout is off in inference, `use_linear_projection` shows in the weights' shapes, and
    // `upcast_attention` asks for the f32 that we always compute in. The heads of the added
    // embedding belong to types of it that are refused above.
    config.inert(&[
        "addition_embed_type_num_heads",
        "dropout",
        "upcast_attention",
        "use_linear_projection",
    ]);
    Ok(())
}

fn attention(
    config: &Config,
    key: &str,
    without: &str,
    with: &str,
    blocks: usize,
) -> Result<Vec<bool>> {
    let kinds = config.texts(key)?;
    if kinds.len() != blocks || kinds.iter().any(|kind| *kind != without && *kind != with) {
        return Err(config.refuse(key, &format!("{blocks} of \"{without}\", \"{with}\"")));
    }
    Ok(kinds.iter().map(|kind| *kind == with).collect())
}

fn sinusoid(config: &Config, channels: usize) -> Result<Sinusoid> {
    Ok(Sinusoid {
        channels,
        flip_sin_to_cos: config.flag_or("flip_sin_to_cos", true)?,
        freq_shift: config.number_or("freq_shift", 0.0)?,
    })
}

fn text_time(config: &Config, time: Sinusoid) -> Result<Option<(Sinusoid, usize)>> {
    if config.text("addition_embed_type")?.is_none() {
        config.inert(&["addition_time_embed_dim", "projection_class_embeddings_input_dim"]);
        return Ok(None);
    }
    let channels = config.positive("addition_time_embed_dim")?;
    let width = config.positive("projection_class_embeddings_input_dim")?;
    Ok(Some((Sinusoid { channels, ..time }, width)))
}

fn sample_size(config: &Config) -> Result<Option<(usize, usize)>> {
    match config.get("sample_size") {
        None => Ok(None),
        Some(Value::Array(_)) => match config.positives("sample_size")?[..] {
            [rows, columns] => Ok(Some((rows, columns))),
            _ => Err(config.refuse("sample_size", "one or two positive integers")),
        },
        Some(_) => {
            let side = config.positive("sample_size")?;
            Ok(Some((side, side)))
        }
    }
}
