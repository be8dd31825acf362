"""Writes an SDXL diffusers folder as one checkpoint file under the original (LDM) names.

    python single_file.py FOLDER OUT.safetensors

For software that reads SDXL only so, such as stable-diffusion.cpp. Types stay as they are. Tensors
go to the file one by one, so memory holds no more than the largest. A name that is not SDXL's stops it.
"""

import argparse
import json
import pathlib
import re

import torch
from safetensors import safe_open

TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
END = r"\.(weight|bias)"
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_ENDS = ["conv_in", "conv_norm_out", "conv_out"]
TEXT_2 = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def one_of(names):
    return "(" + "|".join(map(re.escape, names)) + ")"


TRANSFORMER = (
    r"((?:norm|proj_in|proj_out)\.(?:weight|bias)|transformer_blocks\.\d+\.(?:norm[123]\.(?:weight|bias)"
    r"|attn[12]\.to_[qkv]\.weight|attn[12]\.to_out\.0\.(?:weight|bias)|ff\.net\.(?:0\.proj|2)\.(?:weight|bias)))"
)
VAE_RESNET = r"(norm1|conv1|norm2|conv2|conv_shortcut)" + END


def unet(name):
    if m := re.fullmatch(one_of(UNET) + END, name):
        return f"{UNET[m[1]]}.{m[2]}"
    if m := re.fullmatch(r"down_blocks\.([012])\.resnets\.([01])\." + one_of(RESNET) + END, name):
        return f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0.{RESNET[m[3]]}.{m[4]}"
    if m := re.fullmatch(r"down_blocks\.([12])\.attentions\.([01])\." + TRANSFORMER, name):
        return f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1.{m[3]}"
    if m := re.fullmatch(r"down_blocks\.([01])\.downsamplers\.0\.conv" + END, name):
        return f"input_blocks.{3 * int(m[1]) + 3}.0.op.{m[2]}"
    if m := re.fullmatch(r"mid_block\.resnets\.([01])\." + one_of(RESNET) + END, name):
        return f"middle_block.{2 * int(m[1])}.{RESNET[m[2]]}.{m[3]}"
    if m := re.fullmatch(r"mid_block\.attentions\.0\." + TRANSFORMER, name):
        return f"middle_block.1.{m[1]}"
    if m := re.fullmatch(r"up_blocks\.([012])\.resnets\.([012])\." + one_of(RESNET) + END, name):
        return f"output_blocks.{3 * int(m[1]) + int(m[2])}.0.{RESNET[m[3]]}.{m[4]}"
    if m := re.fullmatch(r"up_blocks\.([01])\.attentions\.([012])\." + TRANSFORMER, name):
        return f"output_blocks.{3 * int(m[1]) + int(m[2])}.1.{m[3]}"
    if m := re.fullmatch(r"up_blocks\.([01])\.upsamplers\.0\.conv" + END, name):
        return f"output_blocks.{3 * int(m[1]) + 2}.2.conv.{m[2]}"


def vae(name):
    if m := re.fullmatch(r"(quant_conv|post_quant_conv)" + END, name):
        return name
    m = re.fullmatch(r"(encoder|decoder)\.(.+)", name)
    if not m:
        return None
    part, rest = m.groups()
    if m := re.fullmatch(one_of(VAE_ENDS) + END, rest):
        return f"{part}.{m[1].replace('conv_norm_out', 'norm_out')}.{m[2]}"
    if m := re.fullmatch(r"mid_block\.resnets\.([01])\." + VAE_RESNET, rest):
        return f"{part}.mid.block_{int(m[1]) + 1}.{m[2]}.{m[3]}"
    if m := re.fullmatch(r"mid_block\.attentions\.0\." + one_of(VAE_ATTENTION) + END, rest):
        return f"{part}.mid.attn_1.{VAE_ATTENTION[m[1]]}.{m[2]}"
    way, level = ("down", int) if part == "encoder" else ("up", lambda i: 3 - int(i))
    if m := re.fullmatch(way + r"_blocks\.([0-3])\.resnets\.([012])\." + VAE_RESNET, rest):
        inner = m[3].replace("conv_shortcut", "nin_shortcut")
        return f"{part}.{way}.{level(m[1])}.block.{m[2]}.{inner}.{m[4]}"
    if m := re.fullmatch(way + r"_blocks\.([012])\." + way + r"samplers\.0\.conv" + END, rest):
        return f"{part}.{way}.{level(m[1])}.{way}sample.conv.{m[2]}"


def text(name):
    known = (
        r"text_model\.(embeddings\.(token|position)_embedding\.weight|final_layer_norm\.(weight|bias)"
        r"|encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|layer_norm[12]|mlp\.fc[12])\.(weight|bias))"
    )
    return name if re.fullmatch(known, name) else None


def text_2(name):
    fixed = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
        "text_projection.weight": "text_projection",
    }
    if name in fixed:
        return fixed[name]
    if m := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\." + one_of(TEXT_2) + END, name):
        return f"transformer.resblocks.{m[1]}.{TEXT_2[m[2]]}.{m[3]}"
    if m := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj" + END, name):
        return f"transformer.resblocks.{m[1]}.attn.in_proj_{m[3]}"


PARTS = [
    ("unet", unet, "model.diffusion_model."),
    ("vae", vae, "first_stage_model."),
    ("text_encoder", text, "conditioner.embedders.0.transformer."),
    ("text_encoder_2", text_2, "conditioner.embedders.1.model."),
]


def gather(folder):
    """The new names, each with the tensors (file, name) that make it up: three for q, k and v."""
    found, seen = {}, set()
    for part, rename, prefix in PARTS:
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            raise SystemExit(f"{folder / part} holds no safetensors file")
        for path in files:
            file = safe_open(path, "pt")
            for name in file.keys():
                if name.endswith("position_ids"):
                    continue
                new = rename(name)
                if new is None:
                    raise SystemExit(f"{path}: {name} is no tensor of SDXL's")
                if (part, name) in seen:
                    raise SystemExit(f"{path}: {name} stands in another file, too")
                seen.add((part, name))
                found.setdefault(prefix + new, []).append((file, name))
    for new, sources in found.items():
        if len(sources) != (3 if ".in_proj_" in new else 1):
            raise SystemExit(f"{new} is made of {', '.join(name for _, name in sources)} alone")
        if ".in_proj_" in new:
            sources.sort(key=lambda source: "qkv".index(re.search("([qkv])_proj", source[1])[1]))
    return found


def tensor(new, sources):
    values = torch.cat([file.get_tensor(name) for file, name in sources])
    if new.endswith("text_projection"):
        values = values.T
    if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", new) and values.dim() == 2:
        values = values[:, :, None, None]
    if values.dtype not in TYPES:
        raise SystemExit(f"{new} is of type {values.dtype}")
    return values.contiguous()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    found, header, end = gather(arguments.folder), {}, 0
    for new, sources in found.items():
        values = tensor(new, sources)
        start, end = end, end + values.nbytes
        header[new] = {"dtype": TYPES[values.dtype], "shape": list(values.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(arguments.out, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for new, sources in found.items():
            out.write(tensor(new, sources).flatten().view(torch.uint8).numpy())
    print(f"{arguments.out}: {len(found)} tensors, {end / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
