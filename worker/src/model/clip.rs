//! CLIP text encoders.

use super::config::Config;
use super::exchange::Rows;
use super::lora::Deltas;
use super::nn::Loader;
use super::nn::attention::attend;
use super::nn::layer_norm::LayerNorm;
use super::nn::linear::{Finish, Linear};
use super::tensor::{Memory, Tensor};
use super::weights::Values;
use super::{Error, Result};
use crate::kernels::{Activation, Arithmetic};
use serde_json::json;
use std::sync::Arc;

/// What a text encoder's configuration says.
#[derive(Clone, Debug)]
pub struct ClipConfig {
    /// Channels of a token.
    pub channels: usize,
    /// Channels inside the feed-forward part.
    pub inner: usize,
    /// Attention heads.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Tokens in a prompt.
    pub tokens: usize,
    /// The feed-forward part's activation.
    pub activation: Activation,
    /// Layer norm epsilon.
    pub eps: f64,
    /// Channels of the pooled embedding, where there is a projection.
    pub projection: Option<usize>,
}

impl ClipConfig {
    /// Reads a text encoder's `config.json`.
    ///
    /// # Errors
    /// Names the first key whose value is not supported.
    pub fn read(config: &Config) -> Result<Self> {
        config.only("model_type", &[json!("clip_text_model")])?;
        let projected = match config.texts("architectures")?[..] {
            ["CLIPTextModel"] => false,
            ["CLIPTextModelWithProjection"] => true,
            _ => {
                let known = r#"["CLIPTextModel"], ["CLIPTextModelWithProjection"]"#;
                return Err(config.refuse("architectures", known));
            }
        };
        let activation = match config.text("hidden_act")? {
            Some("quick_gelu") | None => Activation::QuickGelu,
            Some("gelu") => Activation::Gelu,
            Some(_) => return Err(config.refuse("hidden_act", r#""quick_gelu", "gelu""#)),
        };
        // Training's, the generator's and the saving library's; the end-of-text token is found
        // as transformers does for old configurations, which holds for new ones as well.
        config.inert(&[
            "attention_dropout",
            "bos_token_id",
            "dropout",
            "dtype",
            "eos_token_id",
            "initializer_factor",
            "initializer_range",
            "pad_token_id",
            "torch_dtype",
            "transformers_version",
        ]);
        let projection = config.positive_or("projection_dim", 512)?;
        let read = Self {
            channels: config.positive("hidden_size")?,
            inner: config.positive("intermediate_size")?,
            heads: config.positive("num_attention_heads")?,
            layers: config.positive("num_hidden_layers")?,
            vocabulary: config.positive("vocab_size")?,
            tokens: config.positive_or("max_position_embeddings", 77)?,
            activation,
            eps: config.number_or("layer_norm_eps", 1e-5)?,
            projection: projected.then_some(projection),
        };
        config.finish()?;
        if !read.channels.is_multiple_of(read.heads) {
            return Err(config.refuse("num_attention_heads", "a divisor of `hidden_size`"));
        }
        Ok(read)
    }
}

/// A CLIP text encoder. Clones share its largest parts.
#[derive(Clone, Debug)]
pub struct ClipText {
    config: ClipConfig,
    token_embedding: Arc<Values>,
    position_embedding: Arc<[f32]>,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

/// What a text encoder makes of a prompt.
#[derive(Debug)]
pub struct Encoded {
    /// The last layer's result, normalised: [1, tokens, channels].
    pub last: Tensor,
    /// The result of the layer before the last: [1, tokens, channels].
    pub penultimate: Tensor,
    /// The end token's projection [1, projection], where there is one.
    pub pooled: Option<Tensor>,
}

impl ClipText {
    /// Builds the encoder from the weights at `loader`.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(loader: &Loader<'_>, config: ClipConfig) -> Result<Self> {
        let text = loader.at("text_model");
        let channels = config.channels;
        let embeddings = text.at("embeddings");
        let layers = text.at("encoder.layers");
        let text_projection = config
            .projection
            .map(|outputs| Linear::load(&loader.at("text_projection"), channels, outputs, false));
        Ok(Self {
            token_embedding: embeddings
                .values("token_embedding.weight", &[config.vocabulary, channels])?
                .into(),
            position_embedding: embeddings
                .values_f32("position_embedding.weight", &[config.tokens, channels])?
                .into(),
            layers: (0..config.layers)
                .map(|index| EncoderLayer::load(&layers.at(index), &config))
                .collect::<Result<_>>()?,
            final_layer_norm: layer_norm(&text.at("final_layer_norm"), &config)?,
            text_projection: text_projection.transpose()?,
            config,
        })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Adds the changes that `deltas` has for it.
    ///
    /// # Errors
    /// If they are of another shape.
    pub fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.adapt(deltas))?;
        self.text_projection.iter_mut().try_for_each(|projection| projection.adapt(deltas))
    }

    /// Bytes the weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.token_embedding.bytes()
            + self.position_embedding.len() * 4
            + self.layers.iter().map(EncoderLayer::bytes).sum::<usize>()
            + self.text_projection.as_ref().map_or(0, Linear::bytes)
    }

    /// Encodes one prompt's tokens, in `memory`.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, or there are more than the encoder has positions.
    pub fn encode(&self, ids: &[u32], memory: &Memory) -> Result<Encoded> {
        let mut x = self.embed(ids, memory)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x.clone();
            x = layer.forward(&x, self.config.heads, self.config.activation)?;
        }
        let last = self.final_layer_norm.forward(&x)?;
        let pooled = self.text_projection.as_ref().map(|projection| {
            let end = last.narrow(1, end_of_text(ids), 1)?;
            projection.forward(&end.reshape([1, self.config.channels])?)
        });
        Ok(Encoded { last, penultimate, pooled: pooled.transpose()? })
    }

    fn embed(&self, ids: &[u32], memory: &Memory) -> Result<Tensor> {
        let channels = self.config.channels;
        if ids.len() > self.config.tokens {
            return Err(Error::Checkpoint(format!(
                "the tokenizer gives {} tokens, but the text encoder has {} positions",
                ids.len(),
                self.config.tokens
            )));
        }
        let mut out = vec![0.0; ids.len() * channels];
        for (row, id) in out.chunks_mut(channels).zip(ids) {
            let id = *id as usize;
            if id >= self.config.vocabulary {
                return Err(Error::Checkpoint(format!(
                    "the tokenizer gives token {id}, but the text encoder's vocabulary has {}",
                    self.config.vocabulary
                )));
            }
            self.token_embedding.widen_row(id, row);
        }
        out.iter_mut()
            .zip(self.position_embedding.iter())
            .for_each(|(value, place)| *value += place);
        Tensor::new(memory, &out, [1, ids.len(), channels])
    }
}

/// The first of the largest ids: CLIP's end-of-text token is the last of its vocabulary.
fn end_of_text(ids: &[u32]) -> usize {
    let largest = ids.iter().max();
    ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, reason = "epsilons are f32 in the reference")]
fn layer_norm(loader: &Loader<'_>, config: &ClipConfig) -> Result<LayerNorm> {
    LayerNorm::load(loader, config.channels, config.eps as f32)
}

#[derive(Clone, Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    kv_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl EncoderLayer {
    fn load(loader: &Loader<'_>, config: &ClipConfig) -> Result<Self> {
        let channels = config.channels;
        let attention = loader.at("self_attn");
        let [q, k, v, out] =
            ["q_proj", "k_proj", "v_proj", "out_proj"].map(|name| attention.at(name));
        Ok(Self {
            layer_norm1: layer_norm(&loader.at("layer_norm1"), config)?,
            q_proj: Linear::load(&q, channels, channels, true)?,
            kv_proj: Linear::load_joined(&[k, v], channels, channels, true)?,
            out_proj: Linear::load(&out, channels, channels, true)?,
            layer_norm2: layer_norm(&loader.at("layer_norm2"), config)?,
            fc1: Linear::load(&loader.at("mlp.fc1"), channels, config.inner, true)?,
            fc2: Linear::load(&loader.at("mlp.fc2"), config.inner, channels, true)?,
        })
    }

    fn adapt(&mut self, deltas: &mut Deltas) -> Result<()> {
        [&mut self.q_proj, &mut self.kv_proj, &mut self.out_proj, &mut self.fc1, &mut self.fc2]
            .into_iter()
            .try_for_each(|linear| linear.adapt(deltas))
    }

    fn bytes(&self) -> usize {
        [&self.q_proj, &self.kv_proj, &self.out_proj, &self.fc1, &self.fc2]
            .iter()
            .map(|linear| linear.bytes())
            .sum()
    }

    fn forward(&self, x: &Tensor, heads: usize, activation: Activation) -> Result<Tensor> {
        // 1. Attention: a token sees itself and those before it.
        let normed = self.layer_norm1.forward(x)?;
        let q = self.q_proj.forward(&normed)?;
        let kv = Rows::own(&self.kv_proj.forward(&normed)?, 1)?;
        let mixed = attend(&q, &[kv], (heads, true), Arithmetic::F32)?;
        let onto = |residual| Finish { activation: Activation::None, residual: Some(residual) };
        let x = self.out_proj.forward_with(&mixed, onto(x))?;
        // 2. Feed-forward.
        let normed = self.layer_norm2.forward(&x)?;
        let hidden = self.fc1.forward_with(&normed, Finish { activation, residual: None })?;
        self.fc2.forward_with(&hidden, onto(&x))
    }
}
