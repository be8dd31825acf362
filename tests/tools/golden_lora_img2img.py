"""Makes tests/fixtures/given: LoRA files, a picture, and what stock diffusers renders with them.

    python golden_lora_img2img.py        (diffusers 0.35, peft 0.21, torch 2.9, transformers 4.57, CPU, f32)

given.json lists the cases as golden/single.json does, with `loras` ([file, scale]) and `picture` and `strength`.
NAME.safetensors holds `latents` [calls, channels, h, w] after each call, `image` [3, H, W] in 0..1 and, with a picture,
`first`, the latent of the first call. LoRA files: `peft` is saved by diffusers itself, with the metadata that says its
alpha; `kohya` names layers as kohya's scripts do for SD 1.x, `released` as they do for SDXL, `old` as diffusers did before PEFT.
"""

import json
import os
import sys

import numpy
import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    HeunDiscreteScheduler, LCMScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, UniPCMultistepScheduler,
)
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "../fixtures/golden/models")
OUT = os.path.join(HERE, "../fixtures/given")
PIPES = {
    "tiny-sdxl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline),
    "tiny-sd15": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline),
}
SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
}
PROMPT = "a red fox in the snow, 3d render"
SIZE = (64, 96)  # width, height


def pipe_of(model, picture=False):
    return PIPES[model][picture].from_pretrained(os.path.join(MODELS, model), torch_dtype=torch.float32)


def factors(module, rank, generator):
    """Random factors whose product is about a fifth of the weight."""
    weight = module.weight
    down = torch.randn((rank, *weight.shape[1:]), generator=generator)
    up = torch.randn((weight.shape[0], rank, *[1] * (weight.dim() - 2)), generator=generator)
    product = (up.flatten(1) @ down.flatten(1)).norm()
    up *= 0.2 * weight.float().norm() / product
    return down.contiguous(), up.contiguous()


def layers(model, wanted):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    for name, module in model.named_modules():
        if isinstance(module, kinds) and any(part in name for part in wanted):
            yield name, module


def save_peft(path):
    pipe = pipe_of("tiny-sdxl")
    torch.manual_seed(1)
    unet = LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=[
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"])
    text = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=[
        "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
    pipe.unet.add_adapter(unet)
    pipe.text_encoder.add_adapter(text)
    pipe.text_encoder_2.add_adapter(text)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
    for part in parts.values():
        for name, tensor in part.named_parameters():
            if "lora_B" in name:
                tensor.data *= 0.3
    states = {name: get_peft_model_state_dict(part) for name, part in parts.items()}
    StableDiffusionXLPipeline.save_lora_weights(
        OUT, weight_name=os.path.basename(path),
        unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
        text_encoder_2_lora_layers=states["text_encoder_2"], **_collate_lora_metadata(parts))


def save_kohya(path):
    pipe, tensors, generator = pipe_of("tiny-sd15"), {}, torch.Generator().manual_seed(2)
    wanted = ["attn1", "attn2", "ff.net", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj",
              "samplers"]
    parts = [("lora_unet", pipe.unet, wanted), ("lora_te", pipe.text_encoder, ["self_attn", "mlp"])]
    for prefix, part, wanted in parts:
        for name, module in layers(part, wanted):
            down, up = factors(module, 3, generator)
            flat = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = down.half(), up.half()
            tensors[f"{flat}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)


def save_released(path):
    """As kohya's scripts name an SDXL UNet's attention: by the blocks of its first release."""
    pipe, tensors, generator = pipe_of("tiny-sdxl"), {}, torch.Generator().manual_seed(3)
    blocks = pipe.unet.config.layers_per_block + 1
    for name, module in layers(pipe.unet, ["attentions"]):
        parts = name.split(".")
        if parts[0] == "mid_block":
            place, rest = "middle_block_1", parts[3:]
        else:
            block, layer, rest = int(parts[1]), int(parts[3]), parts[4:]
            down = parts[0] == "down_blocks"
            place = f"input_blocks_{1 + block * blocks + layer}_1" if down else f"output_blocks_{block * blocks + layer}_1"
        down, up = factors(module, 2, generator)
        flat = f"lora_unet_{place}_{'_'.join(rest)}"
        tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = down, up
        tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    for prefix, part in [("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)]:
        for name, module in layers(part, ["self_attn", "mlp"]):
            down, up = factors(module, 2, generator)
            flat = f"{prefix}_{name.replace('.', '_')}"
            tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = down, up
            tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)


def save_old(path):
    pipe, tensors, generator = pipe_of("tiny-sd15"), {}, torch.Generator().manual_seed(4)
    for name, module in layers(pipe.unet, ["attn1.to", "attn2.to"]):
        down, up = factors(module, 4, generator)
        before, last = name.replace("to_out.0", "to_out").rsplit(".", 1)
        tensors[f"unet.{before}.processor.{last}_lora.down.weight"] = down
        tensors[f"unet.{before}.processor.{last}_lora.up.weight"] = up
    save_file(tensors, path)


def draw_picture(path, width, height):
    """Shapes on a gradient, of a size that no image here has."""
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float64)
    picture = numpy.stack([x / width, y / height, 0.5 + 0.5 * numpy.sin(x / 5) * numpy.cos(y / 7)], 2)
    picture[(x - 30) ** 2 + (y - 50) ** 2 < 400] = [0.9, 0.2, 0.1]
    picture[20:40, 40:60] = [0.1, 0.8, 0.3]
    Image.fromarray((picture * 255).round().astype(numpy.uint8)).save(path)


def cases():
    lora = lambda name, model, scheduler, *loras: dict(
        name=name, model=model, scheduler=scheduler, loras=[list(each) for each in loras])
    yield lora("lora-peft", "tiny-sdxl", "euler", ("peft.safetensors", 0.8))
    yield lora("lora-kohya", "tiny-sd15", "ddim", ("kohya.safetensors", 1.0))
    yield lora("lora-released", "tiny-sdxl", "euler", ("released.safetensors", -0.6))
    yield lora("lora-old", "tiny-sd15", "ddim", ("old.safetensors", 1.2))
    yield lora("lora-two", "tiny-sdxl", "euler", ("peft.safetensors", 0.5), ("released.safetensors", 0.7))
    picture = lambda name, model, scheduler, strength, **more: dict(
        name=name, model=model, scheduler=scheduler, strength=strength, loras=[],
        picture="picture.png" if model == "tiny-sdxl" else "small.png", **more)
    for scheduler in SCHEDULERS:
        yield picture(f"sdxl-{scheduler}", "tiny-sdxl", scheduler, 0.6)
    yield picture("sdxl-default", "tiny-sdxl", "euler", None, steps=7)
    yield picture("sd15-default", "tiny-sd15", "ddim", None)
    yield picture("sd15-whole", "tiny-sd15", "pndm", 1.0, steps=4)
    yield picture("sdxl-one-step", "tiny-sdxl", "dpmpp_2m", 0.2, steps=5)
    both = picture("sdxl-both", "tiny-sdxl", "unipc", 0.5)
    yield dict(both, loras=[["peft.safetensors", 1.0]])


def render(case):
    pipe = pipe_of(case["model"], "picture" in case)
    pipe.set_progress_bar_config(disable=True)
    kind, change = SCHEDULERS[case["scheduler"]]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **change)
    names, scales = [], []
    for index, (file, scale) in enumerate(case["loras"]):
        pipe.load_lora_weights(OUT, weight_name=file, adapter_name=f"a{index}")
        names.append(f"a{index}")
        scales.append(scale)
    if names:
        pipe.set_adapters(names, adapter_weights=scales)
    latents, first = [], []

    def after(pipe, index, timestep, kwargs):
        latents.append(kwargs["latents"].clone())
        return kwargs

    if "picture" in case:
        size, prepare = {}, pipe.prepare_latents
        pipe.prepare_latents = lambda *a, **k: first.append(prepare(*a, **k)) or first[-1]
        size["image"] = Image.open(os.path.join(OUT, case["picture"]))
        if case["strength"] is not None:
            size["strength"] = case["strength"]
    else:
        size = {"width": case["width"], "height": case["height"]}
    image = pipe(
        case["prompt"], negative_prompt=case["negative"], num_inference_steps=case["steps"],
        guidance_scale=case["guidance"], generator=torch.Generator().manual_seed(case["seed"]),
        output_type="pt", callback_on_step_end=after, **size).images[0]
    assert image.shape[1:] == (case["height"], case["width"]), image.shape
    tensors = {"latents": torch.cat(latents), "image": image}
    if first:
        tensors["first"] = first[0]
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    save_file(tensors, os.path.join(OUT, f"{case['name']}.safetensors"))


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_grad_enabled(False)
    for name, save in [("peft", save_peft), ("kohya", save_kohya), ("released", save_released), ("old", save_old)]:
        save(os.path.join(OUT, f"{name}.safetensors"))
    draw_picture(os.path.join(OUT, "picture.png"), 71, 99)
    draw_picture(os.path.join(OUT, "small.png"), 66, 98)  # the factor of tiny-sd15's VAE is 4
    listed = []
    for case in cases():
        case = {"steps": 6, "guidance": 5.0, "height": SIZE[1], "width": SIZE[0], "seed": 11, "prompt": PROMPT,
                "negative": "blurry", **case}
        render(case)
        listed.append(case)
        print(case["name"], file=sys.stderr)
    with open(os.path.join(OUT, "given.json"), "w") as out:
        json.dump(listed, out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    main()
