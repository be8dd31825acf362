//! How LoRA files name layers: PEFT and diffusers by their paths, kohya's scripts by paths whose dots are underscores, those
//! of an SDXL UNet as its first release named them.

/// A part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The denoising network.
    UNet,
    /// The first text encoder.
    Text,
    /// SDXL's second one.
    Text2,
}

impl Part {
    /// All.
    pub const ALL: [Self; 3] = [Self::UNet, Self::Text, Self::Text2];

    /// Its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::Text => "text_encoder",
            Self::Text2 => "text_encoder_2",
        }
    }
}

/// Which factor a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Up,
    Alpha,
}

/// How tensors end, the longest first where one ends as another.
const ENDINGS: &[(&str, Role)] = &[
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// What tells of changes that are not those of a LoRA.
const OTHERS: &[(&str, &str)] = &[
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "LoRA in Tucker's form"),
    ("oft_", "OFT"),
    (".diff", "a full difference of weights"),
    (".on_input", "IA3"),
];

/// Which layer a tensor is of, in underscores, and what of it.
pub(super) fn read(key: &str) -> Result<((Part, String), Role), String> {
    let ending = ENDINGS.iter().find_map(|(ending, role)| Some((key.strip_suffix(ending)?, *role)));
    let Some((module, role)) = ending else {
        let other = OTHERS.iter().find(|(mark, _)| key.contains(mark));
        let kind = other.map_or("an unknown kind", |(_, kind)| *kind);
        return Err(format!(
            "`{key}` is of {kind}; LoRA's lora_A and lora_B, or lora_down, lora_up and alpha, are supported"
        ));
    };
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    let prefixes = [
        ("lora_unet_", Part::UNet),
        ("lora_te1_", Part::Text),
        ("lora_te2_", Part::Text2),
        ("lora_te_", Part::Text),
        ("unet.", Part::UNet),
        ("text_encoder.", Part::Text),
        ("text_encoder_2.", Part::Text2),
    ];
    let found =
        prefixes.iter().find_map(|(prefix, part)| Some((*part, module.strip_prefix(prefix)?)));
    // Old files of a UNet alone name no part.
    let (part, path) = found.unwrap_or((Part::UNet, module));
    let mut path = path.replace(".processor.", ".").replace('.', "_");
    // Attention as diffusers named it before it had layers of its own in there.
    if let Some(before) = path.strip_suffix("_to_out") {
        path = format!("{before}_to_out_0");
    }
    if part != Part::UNet {
        let names =
            [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out_0", "out_proj")];
        for (old, new) in names {
            if let Some(before) = path.strip_suffix(old) {
                path = format!("{before}{new}");
            }
        }
    }
    Ok(((part, path), role))
}

/// What the layer at `path` may be called, in underscores.
#[must_use]
pub fn aliases(part: Part, path: &str, layers_per_block: usize) -> Vec<String> {
    let mut names = vec![path.replace('.', "_")];
    if part == Part::UNet {
        names.extend(released(path, layers_per_block));
    }
    names
}

/// As the first release of SDXL named a layer of the UNet; an upsampler follows an attention, or there is none.
fn released(path: &str, layers: usize) -> Vec<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let number = |text: &str| text.parse::<usize>().unwrap_or(0);
    let input = |block, layer| 1 + number(block) * (layers + 1) + number(layer);
    let output = |block, layer| number(block) * (layers + 1) + number(layer);
    let one = |name: String| vec![name];
    match parts[..] {
        ["down_blocks", block, "resnets", layer, inner] => {
            one(format!("input_blocks_{}_0_{}", input(block, layer), in_resnet(inner)))
        }
        ["down_blocks", block, "attentions", layer, ref inner @ ..] => {
            one(format!("input_blocks_{}_1_{}", input(block, layer), inner.join("_")))
        }
        ["down_blocks", block, "downsamplers", _, _] => {
            one(format!("input_blocks_{}_0_op", (number(block) + 1) * (layers + 1)))
        }
        ["mid_block", "resnets", layer, inner] => {
            one(format!("middle_block_{}_{}", 2 * number(layer), in_resnet(inner)))
        }
        ["mid_block", "attentions", _, ref inner @ ..] => {
            one(format!("middle_block_1_{}", inner.join("_")))
        }
        ["up_blocks", block, "resnets", layer, inner] => {
            one(format!("output_blocks_{}_0_{}", output(block, layer), in_resnet(inner)))
        }
        ["up_blocks", block, "attentions", layer, ref inner @ ..] => {
            one(format!("output_blocks_{}_1_{}", output(block, layer), inner.join("_")))
        }
        ["up_blocks", block, "upsamplers", _, _] => {
            let last = number(block) * (layers + 1) + layers;
            [1, 2].map(|place| format!("output_blocks_{last}_{place}_conv")).into()
        }
        ["time_embedding", "linear_1"] => one("time_embed_0".to_owned()),
        ["time_embedding", "linear_2"] => one("time_embed_2".to_owned()),
        ["add_embedding", "linear_1"] => one("label_emb_0_0".to_owned()),
        ["add_embedding", "linear_2"] => one("label_emb_0_2".to_owned()),
        ["conv_in"] => one("input_blocks_0_0".to_owned()),
        ["conv_out"] => one("out_2".to_owned()),
        _ => Vec::new(),
    }
}

fn in_resnet(inner: &str) -> &str {
    match inner {
        "conv1" => "in_layers_2",
        "conv2" => "out_layers_3",
        "time_emb_proj" => "emb_layers_1",
        "conv_shortcut" => "skip_connection",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_layer_is_known() {
        let q = "mid_block.attentions.0.transformer_blocks.1.attn1.to_q";
        let flat = q.replace('.', "_");
        let of = |key: &str| read(key).unwrap();
        for (key, role) in [
            (format!("unet.{q}.lora_A.weight"), Role::Down),
            (format!("unet.{q}.lora_B.weight"), Role::Up),
            (format!("base_model.model.{q}.lora_B.default.weight"), Role::Up),
            (format!("unet.{q}.lora.down.weight"), Role::Down),
            (format!("unet.{}_lora.up.weight", q.replace("attn1.", "attn1.processor.")), Role::Up),
            (format!("{}_lora.up.weight", q.replace("attn1.", "attn1.processor.")), Role::Up),
            (format!("lora_unet_{flat}.lora_down.weight"), Role::Down),
            (format!("lora_unet_{flat}.alpha"), Role::Alpha),
            (format!("unet.{q}.alpha"), Role::Alpha),
        ] {
            assert_eq!(of(&key), ((Part::UNet, flat.clone()), role), "{key}");
        }
        let out = of(
            "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
        );
        assert_eq!(out.0.1, "up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0");
        let text = "text_model_encoder_layers_0_self_attn_q_proj";
        for (key, part) in [
            (format!("lora_te_{text}.lora_up.weight"), Part::Text),
            (format!("lora_te1_{text}.lora_up.weight"), Part::Text),
            (format!("lora_te2_{text}.lora_up.weight"), Part::Text2),
            ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight".to_owned(), Part::Text),
            (
                "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight"
                    .to_owned(),
                Part::Text2,
            ),
        ] {
            assert_eq!(of(&key), ((part, text.to_owned()), Role::Up), "{key}");
        }
        let known =
            |path: &str, name: &str| aliases(Part::UNet, path, 2).contains(&name.to_owned());
        assert!(known("down_blocks.1.attentions.0.proj_in", "input_blocks_4_1_proj_in"));
        assert!(known("down_blocks.1.downsamplers.0.conv", "input_blocks_6_0_op"));
        assert!(known("up_blocks.1.attentions.2.proj_out", "output_blocks_5_1_proj_out"));
        assert!(known("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"));
        assert!(known("mid_block.resnets.1.conv1", "middle_block_2_in_layers_2"));
    }
}
