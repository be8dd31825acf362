"""Asks a coordinator for images with the clients that people use, unmodified: the packages `openai` and `webuiapi`.

    python3 http_clients.py target/debug

Starts a coordinator with two workers of the built-in model and an API key, asks, and ends with the first thing that is not
as it should be.
"""

import base64
import contextlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import openai
import webuiapi
from PIL import Image

SIDE = 128
STEPS = 6
# So many that there is time to ask how far an image is, and to end it.
MANY_STEPS = 400
PATIENCE = 120
# Of 255.
ROUNDING = 2


class Processes(contextlib.ExitStack):
    """What is started here ends here."""

    def start(self, *command):
        log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.enter_context(log)
        process = subprocess.Popen(command, stdout=log, stderr=log)

        def end():
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)

        self.callback(end)
        return log.name


def wait_for(log, pattern):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with open(log) as lines:
            text = lines.read()
        if found := re.search(pattern, text):
            return found.group(1)
        time.sleep(0.1)
    sys.exit(f"{pattern} is not in the log:\n{text}")


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


def raises(kind, ask):
    try:
        ask()
    except kind as error:
        return error
    return None


def picture(file):
    return Image.open(io.BytesIO(base64.b64decode(file)))


def same(one, other):
    """Whether two exact images of one seed are: where bands lie changes how sums are rounded."""
    pair = one.convert("RGB").tobytes(), other.convert("RGB").tobytes()
    return one.size == other.size and max(abs(a - b) for a, b in zip(*pair)) <= ROUNDING


def ask_openai(url, key):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)
    asked = {"prompt": "red apple", "size": f"{SIDE}x{SIDE}", "extra_body": {"num_inference_steps": STEPS, "seed": 7}}

    models = [model.id for model in client.models.list()]
    check(models == ["emoji-xl"], "openai lists the model")

    answer = client.images.generate(**asked, model="emoji-xl", response_format="b64_json", user="someone")
    first = picture(answer.data[0].b64_json)
    check(first.size == (SIDE, SIDE) and first.format == "PNG", "openai generates an image of the size that it asked for")
    check(answer.data[0].url is None and answer.created > 0, "openai gets the file alone that it asked for alone")

    both = client.images.generate(**asked)
    check(same(picture(both.data[0].b64_json), first), "the same seed gives the same image")
    request = urllib.request.Request(both.data[0].url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as file:
        fetched = Image.open(io.BytesIO(file.read()))
    check(same(fetched, first), "an image is where its address says")

    two = client.images.generate(**asked, n=2, output_format="webp", response_format="b64_json")
    files = [picture(image.b64_json) for image in two.data]
    check([file.format for file in files] == ["WEBP", "WEBP"], "openai gets two images as WebP")
    check(same(files[0], first) and not same(files[1], first),
          "the first has the seed, and the second another")

    events = list(client.images.generate(**asked, stream=True, partial_images=2))
    kinds = [event.type for event in events]
    check(kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"],
          "a stream shows two partial images and the image")
    check([event.partial_image_index for event in events[:2]] == [0, 1], "partial images are counted")
    check(picture(events[0].b64_json).size[0] > 0, "a partial image is one")
    check(same(picture(events[-1].b64_json), first), "a stream ends with the same image")

    error = raises(openai.BadRequestError, lambda: client.images.generate(prompt="x", size="huge"))
    check(error and error.body["param"] == "size", "a size that is none is a bad request about `size`")
    error = raises(openai.BadRequestError, lambda: client.images.generate(prompt="x", quality="hd"))
    check(error and error.body["param"] == "quality", "a quality that there is not is refused by name")
    error = raises(openai.NotFoundError, lambda: client.images.generate(prompt="x", model="dall-e-3"))
    check(error and error.body["code"] == "model_not_found" and "emoji-xl" in error.message,
          "another model is not found, and the one that is there is named")
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    check(raises(openai.AuthenticationError, lambda: stranger.models.list()), "a wrong key is an authentication error")

    hasty = client.with_options(timeout=2)
    long = {**asked, "extra_body": {"num_inference_steps": MANY_STEPS}}
    check(raises(openai.APITimeoutError, lambda: hasty.images.generate(**long)), "a client that waits no longer leaves")
    deadline = time.monotonic() + PATIENCE
    while running(url, key) and time.monotonic() < deadline:
        time.sleep(0.2)
    check(not running(url, key), "and its job ends with it")


def running(url, key):
    request = urllib.request.Request(f"{url}/v1/jobs?state=running,queued", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        return b'"id"' in answer.read()


def ask_webui(url, key):
    host, port = url.removeprefix("http://").split(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler a", steps=STEPS)
    client.set_auth("someone", key)
    check("DPM++ 2M" in [sampler["name"] for sampler in client.get_samplers()], "webuiapi lists samplers")
    check("Karras" in [each["label"] for each in client.get_schedulers()], "webuiapi lists schedules")
    check(client.util_get_model_names() == [client.util_get_current_model()], "webuiapi lists the model that is chosen")
    check(client.get_progress()["progress"] == 0, "nothing is under way")

    asked = {"prompt": "red apple", "negative_prompt": "blue", "seed": 7, "width": SIDE, "height": SIDE}
    result = client.txt2img(**asked, batch_size=2)
    check([image.size for image in result.images] == [(SIDE, SIDE)] * 2, "webuiapi gets two images")
    check(result.info["all_seeds"] == [7, 8] and result.info["sampler_name"] == "Euler a", "and how they were made")
    check(result.parameters["steps"] == STEPS, "and what it asked for")
    karras = client.txt2img(**asked, sampler_name="DPM++ 2M", scheduler="Karras")
    check(not same(karras.image, result.images[0]), "another sampler makes another image")
    error = raises(RuntimeError, lambda: client.txt2img(**asked, enable_hr=True))
    check(error and error.args[0] == 400 and "enable_hr" in error.args[1], "what cannot be done is refused by name")

    outcome = []
    work = threading.Thread(
        target=lambda: outcome.append(raises(RuntimeError, lambda: client.txt2img(**asked, steps=MANY_STEPS)))
    )
    work.start()
    seen = []
    deadline = time.monotonic() + PATIENCE
    progress = client.get_progress()
    # What is left is known in seconds, so not within the first.
    while (len(seen) < 2 or progress["eta_relative"] == 0) and work.is_alive() and time.monotonic() < deadline:
        progress = client.get_progress()
        if progress["state"]["sampling_step"] > 0 and progress["progress"] not in seen:
            seen.append(progress["progress"])
        time.sleep(0.2)
    check(len(seen) >= 2 and 0 < seen[0] < seen[1] < 1, "webuiapi sees progress")
    check(progress["state"]["sampling_steps"] >= MANY_STEPS and progress["eta_relative"] > 0, "and how much is left")
    check(progress["current_image"] and picture(progress["current_image"]).size[0] > 0, "and the picture so far")
    client.interrupt()
    work.join(PATIENCE)
    check(not work.is_alive() and outcome[0].args[0] == 409, "an interrupted image says that it was")
    check(client.get_progress()["progress"] == 0, "and nothing is under way")


def lora(layer="down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q", width=192):
    """A LoRA of rank 1 for a layer of the built-in model that is as wide as it is long."""
    half = 4 * width
    tensor = lambda shape, first: {"dtype": "F32", "shape": shape, "data_offsets": [first, first + half]}
    header = {f"unet.{layer}.lora_A.weight": tensor([1, width], 0), f"unet.{layer}.lora_B.weight": tensor([width, 1], half)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<{2 * width}f", *[0.3] * (2 * width))


def ask_webui_of_pictures(url, key):
    host, port = url.removeprefix("http://").split(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler a", steps=STEPS)
    client.set_auth("someone", key)
    sketch = Image.new("RGB", (SIDE, SIDE), (240, 240, 230))
    sketch.paste((200, 40, 40), (SIDE // 4, SIDE // 4, SIDE * 3 // 4, SIDE * 3 // 4))
    asked = {"images": [sketch], "prompt": "red apple", "seed": 7, "width": SIDE, "height": SIDE}

    half = client.img2img(**asked, denoising_strength=0.5)
    check(half.image.size == (SIDE, SIDE), "webuiapi gets an image that begins with a picture")
    check(half.info["denoising_strength"] == 0.5 and "init_images" not in half.parameters, "and how it was made")
    check(same(client.img2img(**asked, denoising_strength=0.5).image, half.image), "the same seed gives the same image")
    whole = client.img2img(**asked, denoising_strength=1.0, batch_size=2)
    check(whole.info["all_seeds"] == [7, 8] and not same(whole.images[0], half.image), "more strength changes more, of two images as well")
    error = raises(RuntimeError, lambda: client.img2img(**asked, mask_image=sketch))
    check(error and error.args[0] == 400 and "mask" in error.args[1], "a mask is refused by name")
    error = raises(RuntimeError, lambda: client.img2img(**{**asked, "images": [sketch, sketch]}))
    check(error and error.args[0] == 400 and "init_images" in error.args[1], "so are two pictures")
    error = raises(RuntimeError, lambda: client.img2img(**asked, resize_mode=1))
    check(error and error.args[0] == 400 and "resize_mode" in error.args[1], "and a way to resize that there is not")

    request = urllib.request.Request(f"{url}/v1/files", data=lora(), headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        ink = json.load(answer)["id"]
    check([each["name"] for each in client.get_loras()] == [ink], "webuiapi lists a LoRA that was sent")
    asked = {"seed": 7, "width": SIDE, "height": SIDE}
    plain = client.txt2img(prompt="red apple", **asked).image
    changed = client.txt2img(prompt=f"red apple<lora:{ink}:1>", **asked).image
    check(not same(changed, plain), "and a prompt that names it is rendered with it")
    nothing = client.txt2img(prompt=f"red apple<lora:{ink}:0>", **asked).image
    check(same(nothing, plain), "as much as its scale says")
    error = raises(RuntimeError, lambda: client.txt2img(prompt="red apple <lora:ink:1>", **asked))
    check(error and error.args[0] == 400 and "/v1/files" in error.args[1], "a name that is no id is refused, with what to do")


def main():
    binaries = sys.argv[1]
    coordinator, worker = os.path.join(binaries, "coordinator"), os.path.join(binaries, "worker")
    with Processes() as processes:
        folder = processes.enter_context(tempfile.TemporaryDirectory())
        keys = os.path.join(folder, "keys.jsonl")
        made = subprocess.run([coordinator, "key", "new", "ann", "--file", keys], check=True, text=True, capture_output=True)
        key = made.stdout.split()[-1]
        log = processes.start(
            coordinator, "serve", "--insecure", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--api-keys", keys
        )
        address = wait_for(log, r"listening on ([0-9.:]+)")
        url = wait_for(log, r"HTTP is at (http://[0-9.:]+)")
        for _ in range(2):
            joined = processes.start(worker, "join", "--insecure", "--coordinator", address, "--threads", "1")
            wait_for(joined, r"(joined)")
        ask_openai(url, key)
        ask_webui(url, key)
        ask_webui_of_pictures(url, key)


if __name__ == "__main__":
    main()
