//! What callers ask for and give: bodies, LoRA files, pictures.

use super::Seed;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use png::{BitDepth, ColorType, Encoder};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::collections::HashMap;

pub(super) fn all() -> Vec<Seed> {
    let mut seeds = bodies();
    seeds.extend(loras());
    seeds.extend(pictures());
    seeds
}

fn bodies() -> Vec<Seed> {
    let file = "ab".repeat(32);
    let bodies = [
        (
            "native",
            json!({"prompt": "red apple", "negative": "leaf", "width": 256, "height": 512.0, "steps": 8, "guidance": 5.5,
                "seed": 7, "scheduler": "euler", "warmup": "auto", "mode": "corrected", "fabrics": ["tcp", "shm"],
                "workers": 2, "deterministic": true, "priority": "high",
                "loras": [{"file": file, "scale": -0.5, "name": "ink"}]}),
        ),
        (
            "native-init",
            json!({"prompt": "", "init": {"data": "data:image/png;base64,iVBORw==", "strength": 0.5}}),
        ),
        (
            "openai",
            json!({"prompt": "red apple", "model": "emoji-xl", "n": 2, "size": "256x256", "response_format": "b64_json",
                "output_format": "png", "user": "someone", "quality": "auto", "seed": 7, "num_inference_steps": 8}),
        ),
        (
            "openai-stream",
            json!({"prompt": "a", "size": "auto", "stream": true, "partial_images": 2}),
        ),
        (
            "web-ui",
            json!({"prompt": format!("ink <lora:{file}:0.8>"), "negative_prompt": "leaf", "sampler_name": "DPM++ 2M",
                "scheduler": "Karras", "seed": -1, "steps": 8, "cfg_scale": 7, "width": 256, "height": 256, "batch_size": 2,
                "override_settings": {"sd_model_checkpoint": "emoji-xl [abcdef]"}, "restore_faces": false}),
        ),
        (
            "web-ui-picture",
            json!({"prompt": "a", "init_images": ["iVBORw=="], "denoising_strength": 0.4, "mask_blur": 4}),
        ),
    ];
    bodies.map(|(name, body)| Seed::new("request", name, body.to_string())).into()
}

fn loras() -> Vec<Seed> {
    let attention = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let text = "text_model.encoder.layers.0.self_attn.q_proj";
    let peft = [
        (format!("unet.{attention}.lora_A.weight"), Dtype::F32, vec![2, 4]),
        (format!("unet.{attention}.lora_B.weight"), Dtype::F32, vec![6, 2]),
        (format!("text_encoder.{text}.lora_A.weight"), Dtype::F16, vec![1, 4]),
        (format!("text_encoder.{text}.lora_B.weight"), Dtype::F16, vec![4, 1]),
    ];
    let conv = "lora_unet_down_blocks_1_resnets_0_conv1";
    let kohya = [
        (format!("{conv}.alpha"), Dtype::F32, vec![]),
        (format!("{conv}.lora_down.weight"), Dtype::BF16, vec![2, 2, 3, 3]),
        (format!("{conv}.lora_up.weight"), Dtype::BF16, vec![3, 2, 1, 1]),
        (format!("lora_te2_{}.lora_down.weight", text.replace('.', "_")), Dtype::F32, vec![1, 4]),
        (format!("lora_te2_{}.lora_up.weight", text.replace('.', "_")), Dtype::F32, vec![4, 1]),
    ];
    let notes = json!({"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 2.0}, "unet.use_dora": false});
    vec![
        Seed::new("lora", "peft", tensors(&peft, Some(notes.to_string()))),
        Seed::new("lora", "kohya", tensors(&kohya, None)),
    ]
}

fn tensors(tensors: &[(String, Dtype, Vec<usize>)], notes: Option<String>) -> Vec<u8> {
    let bytes = [0; 1 << 10];
    let view = |(name, dtype, shape): &(String, Dtype, Vec<usize>)| {
        let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let view =
            TensorView::new(*dtype, shape.clone(), &bytes[..len]).expect("the sizes are right");
        (name.clone(), view)
    };
    let notes = notes.map(|notes| HashMap::from([("lora_adapter_metadata".to_owned(), notes)]));
    safetensors::serialize(tensors.iter().map(view), notes).expect("a file of a few tensors")
}

fn pictures() -> Vec<Seed> {
    let values: Vec<u8> = (0..=255).collect();
    let png = |color, depth, (width, height): (u32, u32)| {
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette(&values[..12]);
            encoder.set_trns(&values[100..104]);
        }
        let bits = color.samples() * depth as usize * width as usize;
        let len = bits.div_ceil(8) * height as usize;
        let mut writer = encoder.write_header().expect("memory takes all");
        writer.write_image_data(&values[..len]).expect("memory takes all");
        drop(writer);
        file
    };
    let mut jpeg = Vec::new();
    let written = JpegEncoder::new(&mut jpeg).encode(&values[..192], 8, 8, ExtendedColorType::Rgb8);
    written.expect("memory takes all");
    vec![
        Seed::new("picture", "rgb", png(ColorType::Rgb, BitDepth::Eight, (8, 8))),
        Seed::new("picture", "rgba-16", png(ColorType::Rgba, BitDepth::Sixteen, (3, 2))),
        Seed::new("picture", "gray-1", png(ColorType::Grayscale, BitDepth::One, (9, 5))),
        Seed::new("picture", "indexed-2", png(ColorType::Indexed, BitDepth::Two, (7, 3))),
        Seed::new("picture", "jpeg", jpeg),
    ]
}
