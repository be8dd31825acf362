"""Times the UNet steps of an SDXL checkpoint by turns with stable-diffusion.cpp's.

    python single_file.py sdxl-sized sdxl-sized.safetensors
    python beside_sdcpp.py sdxl-sized.safetensors --coordinator target/release/coordinator --model sdxl-sized

stable-diffusion.cpp is PyPI's stable-diffusion-cpp-python, built on the machine that is measured.
Both render txt2img with euler and without guidance, so that a step is one prediction of one image,
each in a process of its own that starts anew every time. A figure is the median wall time of the
steps after the first; stable-diffusion.cpp's is that of the fastest of the `--ways` (with flash
attention, with direct convolutions, with both, or plain).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

WAYS = {
    "plain": {},
    "flash": {"diffusion_flash_attn": True},
    "direct": {"diffusion_conv_direct": True},
    "flash-direct": {"diffusion_flash_attn": True, "diffusion_conv_direct": True},
}


def child(file, way, side, steps, threads):
    """Renders in this process, prints the steps' seconds and ends before the decode."""
    from stable_diffusion_cpp import StableDiffusion

    clock = []

    def progress(step, total, _):
        if total != steps or step != len(clock):
            return
        clock.append(time.perf_counter())
        if step == steps:
            print(json.dumps([end - start for start, end in zip(clock, clock[1:])]), flush=True)
            os._exit(0)

    model = StableDiffusion(model_path=file, n_threads=threads, vae_decode_only=True, **WAYS[way])
    model.generate_image(
        "a", width=side, height=side, sample_method="euler", sample_steps=steps, cfg_scale=1.0, seed=1,
        progress_callback=progress,
    )


def typical(seconds, steps, command, said):
    if len(seconds) != steps:
        raise SystemExit(f"{' '.join(command)} gave {len(seconds)} of {steps} steps:\n{said[-2000:]}")
    return statistics.median(seconds[1:])


def theirs(arguments, way):
    """Seconds per step, and the version that it took the checkpoint for."""
    numbers = [str(n) for n in (arguments.side, arguments.steps, arguments.threads)]
    command = [sys.executable, __file__, "--child", arguments.file, way, *numbers]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    version = re.search(r"Version: *([^\n]*?) *$", said, re.MULTILINE)
    lines = [line for line in done.stdout.splitlines() if re.fullmatch(r"\[[\d., e-]+\]", line)]
    seconds = json.loads(lines[-1]) if lines else []
    return typical(seconds, arguments.steps, command, said), version[1] if version else "unknown"


def ours(arguments):
    with tempfile.TemporaryDirectory() as folder:
        command = [
            arguments.coordinator, "submit", "--local", "1", "--threads", str(arguments.threads),
            "--model", arguments.model, "--width", str(arguments.side), "--height", str(arguments.side),
            "--steps", str(arguments.steps), "--guidance", "1", "--scheduler", "euler", "--seed", "1",
            "--json", "--out", f"{folder}/image.png", "a",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    seconds = [event["seconds"] for event in events if event["event"] == "step"]
    return typical(seconds, arguments.steps, command, done.stdout + done.stderr)


def main():
    if sys.argv[1:2] == ["--child"]:
        file, way, *numbers = sys.argv[2:]
        return child(file, way, *map(int, numbers))
    parser = argparse.ArgumentParser()
    parser.add_argument("file", help="the checkpoint as single_file.py writes it")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="plain,flash", help="some of " + ",".join(WAYS))
    parser.add_argument("--coordinator", required=True, help="our binary; the worker lies beside it")
    parser.add_argument("--model", required=True, help="the diffusers folder of the same checkpoint")
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    if arguments.steps < 2 or not set(ways) <= set(WAYS):
        parser.error("at least two steps are needed, and ways that --help names")
    times, own = {way: [] for way in ways}, []
    for number in range(1, arguments.rounds + 1):
        for way in ways:
            seconds, version = theirs(arguments, way)
            if "SDXL" not in version:
                raise SystemExit(f"stable-diffusion.cpp took {arguments.file} for {version}")
            times[way].append(seconds)
        own.append(ours(arguments))
        figures = ", ".join(f"{way} {taken[-1]:.2f} s" for way, taken in times.items())
        print(f"round {number}: stable-diffusion.cpp ({version}) {figures}; ours {own[-1]:.2f} s", flush=True)
    best = min(times, key=lambda way: statistics.median(times[way]))
    them, us = statistics.median(times[best]), statistics.median(own)
    print(f"median: stable-diffusion.cpp {them:.2f} s a step ({best}), ours {us:.2f} s, share {us / them:.2f}")


if __name__ == "__main__":
    main()
