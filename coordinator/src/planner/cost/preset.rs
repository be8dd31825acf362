//! Models that predictions are made for without a worker that holds them, and what was published.

use protocol::job::{Dtype, ModelCard, Scheduler, UNetShape};

/// The models there are, by name.
pub const NAMES: [&str; 3] = ["sdxl", "sd15", "emoji-xl"];

/// Stable Diffusion XL's UNet.
const SDXL: UNetShape<'_> = UNetShape {
    latent_channels: 4,
    block_channels: &[320, 640, 1280],
    down_attention: &[false, true, true],
    up_attention: &[true, true, false],
    transformer_layers: &[1, 2, 10],
    layers_per_block: 2,
    text_channels: 2048,
    norm_groups: 32,
    time_channels: 320,
    added_channels: Some(2816),
};

/// Stable Diffusion 1.5's.
const SD15: UNetShape<'_> = UNetShape {
    latent_channels: 4,
    block_channels: &[320, 640, 1280, 1280],
    down_attention: &[true, true, true, false],
    up_attention: &[false, true, true, true],
    transformer_layers: &[1, 1, 1, 1],
    layers_per_block: 2,
    text_channels: 768,
    norm_groups: 32,
    time_channels: 320,
    added_channels: None,
};

/// That of emoji-xl, the built-in model.
const EMOJI_XL: UNetShape<'_> = UNetShape {
    latent_channels: 8,
    block_channels: &[64, 128, 192],
    down_attention: &[false, true, true],
    up_attention: &[true, true, false],
    transformer_layers: &[1, 1, 1],
    layers_per_block: 1,
    text_channels: 96,
    norm_groups: 32,
    time_channels: 64,
    added_channels: Some(256),
};

/// The card of a worker that holds a model in f16.
#[must_use]
pub fn card(name: &str) -> Option<ModelCard> {
    // Bytes of the weights: text encoders, UNet and decoder; native side; bytes per decoded pixel.
    let (shape, weight_bytes, side, decode_bytes) = match name {
        "sdxl" => (SDXL, 6552 << 20, 1024, 2560),
        "sd15" => (SD15, 2_064_000_000, 512, 2560),
        "emoji-xl" => (EMOJI_XL, 33_854_438, 256, 320),
        _ => return None,
    };
    let work = shape.work();
    Some(ModelCard {
        name: name.to_owned(),
        digest: String::new(),
        family: if shape.added_channels.is_some() { "sdxl" } else { "sd" }.to_owned(),
        dtype: Dtype::F16,
        latent_channels: shape.latent_channels,
        vae_factor: 8,
        row_unit: work.cell,
        native: (side, side),
        scheduler: Scheduler::Euler,
        guidance: 5.0,
        weight_bytes,
        shards_max: 1,
        decode_bytes,
        work,
        preview: None, // nothing is rendered
        // Three images of the first block's channels.
        encode_bytes: decode_bytes * 3 / 5,
    })
}

/// Seconds of an image, published for DistriFusion: SDXL, 50 steps of DDIM, guidance, on A100s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// Width and height in pixels.
    pub side: u32,
    /// Seconds on each of [`PUBLISHED_WORKERS`].
    pub seconds: [f64; 4],
}

/// How many GPUs the published figures are of.
pub const PUBLISHED_WORKERS: [u32; 4] = [1, 2, 4, 8];

/// What was published.
pub const PUBLISHED: [Published; 3] = [
    Published { side: 1024, seconds: [5.02, 3.35, 2.26, 1.77] },
    Published { side: 2048, seconds: [23.7, 13.3, 7.60, 4.81] },
    Published { side: 3840, seconds: [140.0, 76.6, 41.3, 22.9] },
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_name_is_a_model_whose_sides_are_whole_cells() {
        for name in NAMES {
            let card = card(name).unwrap();
            assert_eq!(card.native.0 % (card.vae_factor * card.row_unit), 0, "{name}");
            assert!(card.work.cell_flop > 0 && card.work.pair_flop > 0, "{name}");
        }
        assert_eq!(card("flux"), None);
    }

    /// The built-in model's shape is that of its configuration.
    #[test]
    fn emoji_xl_is_what_its_configuration_says() {
        let text = include_str!("../../../../deploy/models/emoji-xl/unet/config.json");
        let config: Value = serde_json::from_str(text).unwrap();
        let numbers = |key: &str| -> Vec<u32> {
            let values = config[key].as_array().unwrap().iter();
            values.map(|each| u32::try_from(each.as_u64().unwrap()).unwrap()).collect()
        };
        let number = |key: &str| u32::try_from(config[key].as_u64().unwrap()).unwrap();
        let attends = |key: &str| -> Vec<bool> {
            let values = config[key].as_array().unwrap().iter();
            values.map(|each| each.as_str().unwrap().starts_with("CrossAttn")).collect()
        };
        let block_channels = numbers("block_out_channels");
        let read = UNetShape {
            latent_channels: number("in_channels"),
            block_channels: &block_channels,
            down_attention: &attends("down_block_types"),
            up_attention: &attends("up_block_types"),
            transformer_layers: &numbers("transformer_layers_per_block"),
            layers_per_block: number("layers_per_block"),
            text_channels: number("cross_attention_dim"),
            norm_groups: number("norm_num_groups"),
            time_channels: block_channels[0],
            added_channels: Some(number("projection_class_embeddings_input_dim")),
        };
        assert_eq!(read, EMOJI_XL);
        assert_eq!(card("emoji-xl").unwrap().native.0, 8 * number("sample_size"));
    }
}
