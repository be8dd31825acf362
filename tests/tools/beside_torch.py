"""Times kernels by turns with PyTorch's, at SDXL's shapes; or the UNet and the decoder of a
checkpoint with diffusers'.

    cargo build --release -p worker --example op
    python beside_torch.py target/release/examples/op [--rounds 7] [--only conv2,conv4]
    python beside_torch.py target/release/examples/op --model sdxl-sized --part unet --side 64 [--dtype bf16]

One thread each. A figure is the median of processor time, so that being descheduled does not count;
PyTorch's convolution is the better of its two layouts. Prints GFLOP/s (of the plain operation's
work, for Winograd's too) and our share of PyTorch's time.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def conv(channels, side, dtype=torch.float32):
    x, w = torch.randn(1, channels, side, side, dtype=dtype), torch.randn(channels, channels, 3, 3, dtype=dtype)
    xl, wl = (t.to(memory_format=torch.channels_last) for t in (x, w))
    work = 2 * 9 * channels * channels * side * side
    return [lambda: F.conv2d(x, w, padding=1), lambda: F.conv2d(xl, wl, padding=1)], work


def linear(rows, depth, outputs, dtype=torch.float32):
    x, w, b = (torch.randn(*s, dtype=dtype) for s in ((rows, depth), (outputs, depth), (outputs,)))
    return [lambda: F.linear(x, w, b)], 2 * rows * depth * outputs


def attention(tokens, heads, dim, dtype=torch.float32):
    q, k, v = (torch.randn(1, heads, tokens, dim, dtype=dtype) for _ in range(3))
    return [lambda: F.scaled_dot_product_attention(q, k, v)], 4 * heads * tokens * tokens * dim


def norm(channels, side):
    x, w, b = torch.randn(1, channels, side, side), torch.ones(channels), torch.zeros(channels)
    return [lambda: F.silu(F.group_norm(x, 32, w, b))], 0


def linear_bf16(rows, depth, outputs):
    return linear(rows, depth, outputs, torch.bfloat16)


TORCH = {"conv": conv, "conv2": conv, "conv4": conv, "linear": linear, "linear-bf16": linear_bf16, "linear-int8": linear, "attention": attention, "norm": norm}
CONV = ["320 128", "640 64", "1280 32"]
LINEAR = ["4096 640 640", "1024 1280 1280", "4096 640 5120", "1024 1280 10240", "1024 5120 1280"]
CASES = [(way, sizes) for way in ("conv", "conv2", "conv4") for sizes in CONV] + [(numbers, s) for numbers in ("linear", "linear-bf16", "linear-int8") for s in LINEAR]
CASES += [("attention", "4096 10 64"), ("attention", "1024 20 64"), ("norm", "320 128")]


def unet(folder, side, dtype):
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=dtype)
    x, text = torch.randn(1, 4, side, side, dtype=dtype), torch.randn(1, 77, 2048, dtype=dtype)
    added = {"text_embeds": torch.randn(1, 1280, dtype=dtype), "time_ids": torch.full((1, 6), 8.0 * side, dtype=dtype)}
    return lambda: model(x, 500, encoder_hidden_states=text, added_cond_kwargs=added)


def vae(folder, side, dtype):
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=dtype)
    x = torch.randn(1, 4, side, side, dtype=dtype)
    return lambda: model.decode(x)


def processor_ms(run):
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


def beside(runs, own, rounds):
    """Medians of both, by turns: of the best of `runs`, and of `own`. The first turn warms up."""
    times, owns = [[] for _ in runs], []
    for _ in range(rounds + 1):
        for run, taken in zip(runs, times):
            taken.append(processor_ms(run))
        owns.append(own())
    return min(statistics.median(taken[1:]) for taken in times), statistics.median(owns[1:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="some of the kinds of operations, such as conv2,conv4")
    parser.add_argument("--model")
    parser.add_argument("--part", choices=["unet", "vae"], default="unet")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--dtype", default="auto", help="the type our weights are held in; bf16 is diffusers', too")
    arguments = parser.parse_args()
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    program = subprocess.Popen([arguments.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ours(line):
        program.stdin.write(line + "\n")
        program.stdin.flush()
        return float(program.stdout.readline())

    if arguments.model:
        line = f"{arguments.part} {arguments.model} {arguments.dtype} {arguments.side}"
        dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
        part = {"unet": unet, "vae": vae}[arguments.part]
        run = part(arguments.model, arguments.side, dtype)
        theirs, own = beside([run], lambda: ours(line), arguments.rounds)
        print(f"{line}: diffusers {theirs / 1e3:.3f} s, ours {own / 1e3:.3f} s, share {own / theirs:.2f}")
        return
    print(f"{'operation':32} {'torch ms':>9} {'GF/s':>6} {'ours ms':>9} {'GF/s':>6} {'share':>6}")
    for kind, sizes in CASES:
        if arguments.only and kind not in arguments.only.split(","):
            continue
        runs, work = TORCH[kind](*map(int, sizes.split()))
        line = f"{kind} {sizes}"
        try:
            theirs, own = beside(runs, lambda: ours(line), arguments.rounds)
        except ValueError:
            raise SystemExit(f"{arguments.program} ended at {line!r}: what it says is above") from None
        print(f"{line:32} {theirs:9.2f} {work / theirs / 1e6:6.0f} {own:9.2f} {work / own / 1e6:6.0f} {own / theirs:6.2f}", flush=True)


if __name__ == "__main__":
    main()
