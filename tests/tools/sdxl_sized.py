"""Writes a checkpoint with SDXL base's true shapes and random f16 weights.

    python sdxl_sized.py OUT_FOLDER [--from TOKENIZER_MODEL]
    python sdxl_sized.py OUT_FOLDER --vae-only --from SMALL_MODEL

Shapes and tensor names come from diffusers and transformers themselves. The tokenizer, which no
random numbers can replace, is copied from a checkpoint with the CLIP vocabulary. With --vae-only all
else is copied, too, from a checkpoint of SDXL's family with 4 latent channels: for measuring the decode.
"""

import argparse
import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

UNET = dict(
    sample_size=128, in_channels=4, out_channels=4, center_input_sample=False,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
    transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20],
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=1024, scaling_factor=0.13025,
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)
TEXT = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, hidden_act="quick_gelu", projection_dim=768,
    bos_token_id=49406, eos_token_id=49407,
)
TEXT_2 = dict(
    vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
    num_attention_heads=20, hidden_act="gelu", projection_dim=1280,
    bos_token_id=49406, eos_token_id=49407,
)


def write(model, folder, stem):
    """Fills `model` (on the meta device) with random f16 weights, shard by shard of 2 GiB."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    shards, size, index = [{}], 0, {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if isinstance(model, (CLIPTextModel, CLIPTextModelWithProjection)) and not name.startswith("text_"):
            name = f"text_model.{name}"  # as checkpoints have it; transformers 5 leaves it out
        if name.endswith("weight") and tensor.dim() == 1:
            values = torch.ones(tensor.shape, dtype=torch.float16)
        elif tensor.dim() == 1:
            values = torch.zeros(tensor.shape, dtype=torch.float16)
        else:
            values = torch.empty(tensor.shape, dtype=torch.float16)
            fan_in = tensor[0].numel()
            values.normal_(0.0, 0.5 / fan_in**0.5, generator=generator)
        if size + values.numel() * 2 > 2 << 30:
            shards.append({})
            size = 0
        shards[-1][name] = values
        size += values.numel() * 2
    for number, shard in enumerate(shards, 1):
        file = f"{stem}.safetensors"
        if len(shards) > 1:
            file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        index.update(dict.fromkeys(shard, file))
        save_file(shard, folder / file)
    if len(shards) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
        (folder / f"{stem}.safetensors.index.json").write_text(text)
    model.config.to_json_file(folder / "config.json") if hasattr(
        model.config, "to_json_file"
    ) else model.save_config(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--from", dest="source", type=pathlib.Path,
                        default=here / "../../deploy/models/emoji-xl")
    parser.add_argument("--vae-only", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out
    if arguments.vae_only:
        shutil.copytree(arguments.source, out, ignore=shutil.ignore_patterns("vae"))
        with torch.device("meta"):
            vae = AutoencoderKL(**VAE)
        write(vae, out / "vae", "diffusion_pytorch_model")
        return
    for part in ["tokenizer", "tokenizer_2", "scheduler"]:
        shutil.copytree(arguments.source / part, out / part, dirs_exist_ok=True)
    shutil.copy(arguments.source / "model_index.json", out / "model_index.json")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        vae = AutoencoderKL(**VAE)
        text = CLIPTextModel(CLIPTextConfig(**TEXT, architectures=["CLIPTextModel"]))
        text_2 = CLIPTextModelWithProjection(
            CLIPTextConfig(**TEXT_2, architectures=["CLIPTextModelWithProjection"]))
    write(unet, out / "unet", "diffusion_pytorch_model")
    write(vae, out / "vae", "diffusion_pytorch_model")
    write(text, out / "text_encoder", "model")
    write(text_2, out / "text_encoder_2", "model")
    total = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    print(f"{out}: {total / 2**30:.2f} GiB of weights")


if __name__ == "__main__":
    main()
