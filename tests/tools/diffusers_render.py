"""Renders one image with stock diffusers on the CPU in f32 and prints what it took.

    python diffusers_render.py MODEL --prompt "red apple" --steps 30 --size 256 --threads 2
"""

import argparse
import resource
import time

import torch
from diffusers import DiffusionPipeline


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    pipe = DiffusionPipeline.from_pretrained(arguments.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    ends = []
    generator = torch.Generator().manual_seed(arguments.seed)
    image = pipe(
        arguments.prompt, num_inference_steps=arguments.steps, height=arguments.size,
        width=arguments.size, guidance_scale=arguments.guidance, generator=generator,
        callback_on_step_end=lambda _p, _i, _t, kwargs: ends.append(time.perf_counter()) or kwargs,
    ).images[0]
    done = time.perf_counter()
    if arguments.out:
        image.save(arguments.out)
    steps = (ends[-1] - ends[0]) / max(len(ends) - 1, 1)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"load {loaded - started:.2f} s, render {done - loaded:.2f} s, {steps:.4f} s/step, "
          f"cpu {usage.ru_utime + usage.ru_stime:.1f} s, peak {usage.ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
