"""Uses the web page as a person does, in a headless Chromium, on a coordinator and workers that it starts.

    cargo build && python3 tests/tools/page.py target/debug --out screenshots

Needs `chromium` and `chromedriver` (Debian: chromium-driver), and nothing from PyPI: it speaks WebDriver itself. Where there is
no browser it says so and ends well. Ends with 1 if something is not as it should be; everything else is tried none the less.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib

# How long anything on the page may take, on a machine that does other things as well.
PATIENCE = 90
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
CONTROL, ENTER, ESCAPE, TAB = "\ue009", "\ue007", "\ue00c", "\ue004"
DESK, PHONE = (1440, 1000), (360, 780)
# As far as things may move while nobody touches them; 0.1 is called good.
SHIFT = 0.1


class Failure(Exception):
    pass


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, there, patience=PATIENCE):
    """What `there` gives, once it gives something."""
    deadline = time.monotonic() + patience
    while True:
        found = there()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not after {patience} s")
        time.sleep(0.05)


def end(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def png(side, colour):
    """A square picture of what `colour` says of each pixel."""
    rows = b"".join(b"\0" + bytes(value for x in range(side) for value in colour(x, y)) for y in range(side))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def lora(layer="down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q", width=192):
    """A LoRA of rank 1 for a layer of the built-in model that is as wide as it is long."""
    half = 4 * width
    tensor = lambda shape, first: {"dtype": "F32", "shape": shape, "data_offsets": [first, first + half]}
    header = {f"unet.{layer}.lora_A.weight": tensor([1, width], 0), f"unet.{layer}.lora_B.weight": tensor([width, 1], half)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<{2 * width}f", *[0.1] * (2 * width))


class Service:
    """A coordinator with a page, and its workers."""

    def __init__(self, programs, stack):
        self.programs, self.stack = os.path.abspath(programs), stack
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="page-"))
        self.listen, self.http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.address, self.coordinator, self.count = f"http://{self.http}/", None, 0
        self.environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}

    def spawn(self, name, command):
        log = self.stack.enter_context(open(f"{self.folder}/{name}.log", "a"))
        command[0] = os.path.join(self.programs, command[0])
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)
        self.stack.callback(end, process)
        return process

    def start(self, *further):
        """Starts the coordinator, the first time or again: its jobs are kept."""
        command = ["coordinator", "serve", "--listen", self.listen, "--http", self.http, "--insecure"]
        self.coordinator = self.spawn("coordinator", [*command, "--data", f"{self.folder}/data", *further])
        wait_for("the coordinator answers", lambda: self.answers(), 30)

    def answers(self):
        if self.coordinator.poll() is not None:
            raise Failure(f"the coordinator ended with {self.coordinator.returncode}:\n{self.log('coordinator')}")
        with contextlib.suppress(OSError):
            return self.call("GET", "/healthz")[0] == 200

    def key(self, name):
        """The file of a new key, and the key."""
        file, program = f"{self.folder}/keys", os.path.join(self.programs, "coordinator")
        made = subprocess.run([program, "key", "--file", file, "new", name], capture_output=True, text=True, env=self.environment)
        if made.returncode:
            raise Failure(f"coordinator key new: {made.stderr.strip()}")
        return file, made.stdout.split()[-1]

    def join(self, workers):
        for _ in range(workers):
            self.count += 1
            name = f"render-{self.count}"
            command = ["worker", "join", "--coordinator", self.listen, "--insecure", "--threads", "1", "--name", name]
            self.spawn(name, command)
        wait_for("all workers join", lambda: len(self.call("GET", "/v1/cluster")[1]["workers"]) == self.count)

    def call(self, method, path):
        connection = http.client.HTTPConnection(self.http, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text

    def job(self, number):
        return self.call("GET", f"/v1/jobs/{number}")[1]

    def log(self, name):
        with open(f"{self.folder}/{name}.log") as log:
            return log.read()[-2000:]


class Browser:
    """A browser, by WebDriver."""

    def __init__(self, driver, binary, stack):
        port = free_port()
        log = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen([driver, f"--port={port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(end, process)
        self.port, self.session = port, None
        wait_for("chromedriver answers", self.ready, 30)
        # A container's user is root and its shared memory small.
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]
        options = {"binary": binary, "args": [*flags, "--window-size={},{}".format(*DESK)]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        stack.callback(self.leave)

    def ready(self):
        with contextlib.suppress(OSError):
            return self.ask("GET", "/status")["ready"]

    def leave(self):
        with contextlib.suppress(OSError, Failure):
            self.ask("DELETE", f"/session/{self.session}")

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            text = None if method == "GET" or method == "DELETE" else json.dumps(body or {})
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = json.loads(connection.getresponse().read())["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise Failure(f"{path.rsplit('/', 1)[-1]}: {answer['error']}: {answer['message'].splitlines()[0]}")
        return answer

    def do(self, method, what, body=None):
        return self.ask(method, f"/session/{self.session}/{what}", body)

    def devtools(self, command, **parameters):
        return self.do("POST", "goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, size, scheme="light"):
        """Sets the size of the screen and the system's colours."""
        width, height = size
        is_phone = size == PHONE
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, address):
        # From a blank page, so that an address that differs in its fragment only is loaded, too.
        self.do("POST", "url", {"url": "about:blank"})
        self.do("POST", "url", {"url": address})

    def run(self, script, *arguments):
        return self.do("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        return self.do("POST", "element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector)
        self.do("POST", f"element/{self.find(selector)}/click")

    def write(self, selector, text):
        element = self.find(selector)
        self.do("POST", f"element/{element}/clear")
        self.do("POST", f"element/{element}/value", {"text": text})

    def choose(self, selector, path):
        """Chooses a file, as if in the browser's own dialog."""
        self.do("POST", f"element/{self.find(selector)}/value", {"text": os.path.abspath(path)})

    def press(self, *keys):
        """Presses keys together, wherever the focus is."""
        actions = [{"type": "keyDown", "value": key} for key in keys] + [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self.do("POST", "actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def text(self, selector):
        """What is to be read there; nothing, if it is not shown."""
        return self.run("const found = document.querySelector(arguments[0]); return found && found.checkVisibility() ? found.innerText.trim() : ''", selector)

    def shows(self, selector):
        return self.run("const found = document.querySelector(arguments[0]); return Boolean(found && found.checkVisibility())", selector)

    def picture(self):
        return self.run("return document.querySelector('#picture').getAttribute('src') ?? ''")

    def errors(self):
        """What the console says is wrong since it was last asked."""
        return [entry["message"] for entry in self.do("POST", "se/log", {"type": "browser"}) if entry["level"] in ("SEVERE", "WARNING")]

    def save(self, path, whole=True):
        clip = {}
        if whole:
            size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"captureBeyondViewport": True, "clip": {**size, "x": 0, "y": 0, "scale": 1}}
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.devtools("Page.captureScreenshot", **clip)["data"]))


class Trial:
    """What is tried, in order: later parts use the jobs of earlier ones."""

    def __init__(self, service, browser, asked):
        self.service, self.browser, self.asked, self.failed, self.pictures = service, browser, asked, [], 0

    def part(self, what, attempt):
        began = time.monotonic()
        try:
            attempt()
            errors = self.browser.errors()
            if errors:
                raise Failure("the console says: " + "; ".join(errors))
        except (Failure, OSError, KeyError, TypeError) as failure:
            self.failed.append(what)
            print(f"FAILED: {what}: {failure}", flush=True)
            if not isinstance(failure, Failure):
                traceback.print_exc()
            self.shoot("failed")
            self.browser.errors()
        else:
            print(f"ok: {what} ({time.monotonic() - began:.1f} s)", flush=True)

    def shoot(self, name, whole=True):
        if self.asked.out:
            self.pictures += 1
            with contextlib.suppress(OSError, Failure):
                self.browser.save(os.path.join(self.asked.out, f"{self.pictures:02}-{name}.png"), whole)

    def check(self, right, what):
        if not right:
            raise Failure(what)

    def wait(self, what, there, patience=PATIENCE):
        return wait_for(what, there, patience)

    def load(self, fragment="", size=DESK):
        self.browser.look(size)
        self.browser.open(self.service.address + fragment)
        self.wait("the page hears of the cluster", lambda: "Connecting" not in self.browser.text("#pulse span"))

    def fits(self, where):
        width = self.browser.run("return document.documentElement.scrollWidth")
        self.check(width <= PHONE[0], f"{where} is {width} pixels wide on a screen of {PHONE[0]}")

    def submit(self, prompt, steps=None, size=None):
        """Submits by keys alone; gives the job's number."""
        browser = self.browser
        browser.write("#prompt", prompt)
        browser.write("#steps", str(steps or self.asked.steps))
        if not browser.shows("#width"):
            browser.run("document.querySelector('[data-preset=custom]').click()")
        for side in ("#width", "#height"):
            browser.write(side, str(size or self.asked.size))
        browser.run("document.querySelector('#answer').textContent = ''; document.querySelector('#prompt').focus()")
        browser.press(CONTROL, ENTER)
        answer = self.wait("the job is taken in", lambda: browser.text("#answer"))
        self.check(answer.startswith("Job "), f"the form says: {answer}")
        return int(answer.split()[1])

    def state(self):
        return self.browser.text("#stage-state")

    def waits_until(self, number, state):
        self.wait(f"job {number} is {state}", lambda: self.service.job(number)["state"] == state)

    # What is tried.

    def without_workers(self):
        self.load()
        self.wait("the page says how workers join", lambda: "worker join" in self.browser.text("#empty code"))
        self.check("No worker" in self.browser.text("#pulse"), "the head does not say that there are no workers")
        self.shoot("no-worker")
        self.load("#cluster")
        self.wait("the cluster's view says how workers join", lambda: "worker join" in self.browser.text("#join-few code"))
        for fragment in ("", "#cluster"):
            self.load(fragment, PHONE)
            self.wait("a phone says how workers join", lambda: "worker join" in self.browser.text(".view:not([hidden]) .command code"))
            self.fits(f"the page {fragment}")
            self.shoot("no-worker-phone")

    def first_worker(self):
        self.load()
        number = self.submit("red apple", steps=12)
        self.wait("the job waits in the queue", lambda: self.browser.shows(f"#queue-list [data-job='{number}']"))
        self.check("worker join" in self.browser.text("#empty code"), "a job that waits hides how workers join")
        self.service.join(self.asked.workers)
        self.waits_until(number, "finished")
        self.wait("the stage shows the image", lambda: f"/v1/jobs/{number}/image" in self.browser.picture())
        self.wait("the gallery shows it", lambda: self.browser.run(
            "const image = document.querySelector('#gallery-list img'); return image && image.complete && image.naturalWidth"))
        self.shoot("finished")

    def previews(self):
        self.browser.run("""
            const picture = document.querySelector('#picture');
            window.seen = new Set();
            new MutationObserver(() => window.seen.add(picture.getAttribute('src') ?? '')).observe(picture, { attributeFilter: ['src'] });""")
        number = self.submit("green apple")
        self.wait("the job is rendered", lambda: self.state() == "Rendering")
        bands = self.wait("bands are drawn", lambda: self.browser.run("return document.querySelectorAll('#bands .band').length"))
        self.check(bands == self.asked.workers, f"{bands} bands are drawn of {self.asked.workers} workers")
        names = self.browser.text("#who")
        self.check("render-1" in names, f"nobody says who renders what: {names}")
        seen = lambda: self.browser.run("return [...window.seen].filter((source) => source.startsWith('data:image/png')).length")
        if self.asked.without_previews:
            print("skipped: previews that change: --without-previews was given")
        else:
            self.wait("three previews differ", lambda: seen() >= 3)
        self.wait("the timeline has a lane for each worker", lambda: self.browser.run(
            "return document.querySelectorAll('#timeline-table tbody tr').length") == self.asked.workers)
        drawn = self.browser.run("""
            const canvas = document.querySelector('#lanes');
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;""")
        self.check(drawn > 8, f"the timeline has {drawn} colours")
        self.shoot("running")
        self.wait("calls are counted", lambda: (self.service.job(number)["progress"] or {}).get("call", 0) > 2)
        self.browser.click("#zoom-call")
        self.check("Call" in self.browser.text("#call-name"), "the timeline shows no call")
        self.browser.click("#zoom-run")
        self.browser.look(DESK, "dark")
        self.shoot("running-dark")
        self.browser.look(DESK)
        self.waits_until(number, "finished")
        self.wait("the stage says so", lambda: self.state() == "Finished")

    def cancel_one_of_two(self):
        running, waiting = self.submit("sunflower"), self.submit("zebra")
        self.wait("both are in the queue", lambda: self.browser.shows(f"#queue-list [data-job='{waiting}']"))
        self.browser.click(f"#queue-list [data-job='{waiting}'] [data-cancel]")
        self.waits_until(waiting, "cancelled")
        self.wait("it leaves the queue", lambda: not self.browser.shows(f"#queue-list [data-job='{waiting}']"))
        self.check(self.service.job(running)["state"] not in ("cancelled", "failed"), "the other job was cancelled, too")
        self.wait("it is among those without an image", lambda: self.browser.run(
            "return Boolean(document.querySelector(arguments[0]))", f"#ended-list [data-job='{waiting}']"))
        self.waits_until(running, "finished")
        stopped = self.submit("orange")
        self.wait("it is rendered", lambda: self.service.job(stopped)["progress"])
        self.wait("the stage shows it", lambda: self.browser.text("#stage-title") == "orange")
        self.browser.click("#stage-cancel")
        self.waits_until(stopped, "cancelled")
        self.wait("the stage says so", lambda: self.state() == "Cancelled")

    def reload(self):
        number = self.submit("snowman")
        self.wait("it is rendered", lambda: (self.service.job(number)["progress"] or {}).get("call", 0) > 2)
        self.load()
        self.wait("the page finds the job again", lambda: self.browser.text("#stage-title") == "snowman" and self.state() == "Rendering")
        self.check(self.service.job(number)["state"] == "running", "the job ended before the page was there again")
        call = lambda: self.browser.run("return Number(document.querySelector('#progress').getAttribute('aria-valuenow'))")
        first = self.wait("it shows how far it is", call)
        self.wait("it follows the job", lambda: call() > first)
        self.wait("previews come", lambda: self.asked.without_previews or self.browser.picture().startswith("data:"))
        self.check(self.browser.run("return document.querySelector('#prompt').value") == "snowman", "the form forgot the prompt")
        self.browser.look(PHONE)
        self.fits("the page of a running job")
        self.shoot("running-phone")
        self.browser.look(DESK)
        self.waits_until(number, "finished")
        shifted = self.browser.run("""
            let sum = 0;
            const observer = new PerformanceObserver(() => {});
            observer.observe({ type: 'layout-shift', buffered: true });
            for (const shift of observer.takeRecords()) if (!shift.hadRecentInput) sum += shift.value;
            return sum;""")
        self.check(shifted <= SHIFT, f"things moved by {shifted:.3f}; the most is {SHIFT}")

    def again(self):
        self.load()
        self.wait("the gallery is there", lambda: self.browser.shows("#gallery-list li"))
        number = int(self.browser.run("return document.querySelector('#gallery-list li').dataset.job"))
        self.browser.click("#gallery-list .thumb")
        self.wait("the image is shown large", lambda: self.browser.run(
            "const image = document.querySelector('#job-dialog img'); return document.querySelector('#job-dialog').open && image.complete && image.naturalWidth"))
        told = self.browser.text("#job-dialog")
        self.check("render-1" in told and "Seed" in told, "the image's parameters are not told")
        self.shoot("image", whole=False)
        self.browser.press(ESCAPE)
        self.check(not self.browser.run("return document.querySelector('#job-dialog').open"), "Escape does not close the image")
        self.browser.click("#gallery-list .line button")
        seed = self.browser.run("return document.querySelector('#seed').value")
        self.check(seed == str(self.service.job(number)["seed"]), f"the form has the seed {seed}")

    def wrong_values(self):
        self.browser.write("#steps", "1000000")
        self.browser.press(CONTROL, ENTER)
        said = self.wait("the page says what is wrong", lambda: self.browser.text("#error-steps") or self.browser.text("#answer.wrong"))
        self.check("1000000" in said, f"the page says: {said}")
        self.check(self.browser.text("#error-steps") == said, f"it is not said at the field: {said}")
        self.shoot("error", whole=False)
        self.browser.write("#steps", "12")
        self.browser.write("#prompt", " ")
        self.browser.press(CONTROL, ENTER)
        self.wait("an empty prompt is refused", lambda: self.browser.text("#error-prompt"))
        # The browser tells of every answer that is no success: here, of those that were asked for.
        others = [error for error in self.browser.errors() if "status of 400" not in error]
        self.check(not others, f"the console says: {others}")

    def given(self):
        """A picture to begin with and a LoRA file: chosen, rendered with, restored and removed."""
        browser = self.browser
        self.load()
        begun, ink = os.path.join(self.service.folder, "sketch.png"), os.path.join(self.service.folder, "ink.safetensors")
        size = self.asked.size
        with open(begun, "wb") as file:
            file.write(png(size, lambda x, y: (200, 40, 40) if (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 3) ** 2 else (240, 240, 230)))
        with open(ink, "wb") as file:
            file.write(lora())
        browser.choose("#init-file", begun)
        self.wait("the picture is shown", lambda: browser.run(
            "const image = document.querySelector('#init-shown img'); return image.checkVisibility() && image.complete && image.naturalWidth"))
        self.check(f"{size} × {size}" in browser.text("[data-preset=own]"), "its size is not the image's")
        browser.write("#strength", "0.5")
        browser.choose("#loras-file", ink)
        row = "#loras-list li"
        self.wait("the LoRA file is listed", lambda: "ink" in browser.text(row))
        browser.write(f"{row} input", "0.8")
        self.shoot("given", whole=False)
        browser.look(PHONE)
        self.fits("the form with a picture and a LoRA file")
        self.shoot("given-phone")
        browser.look(DESK)
        number = self.submit("red apple", steps=12)
        request = self.service.job(number)["request"]
        self.check(request["init"]["strength"] == 0.5, f"the job begins with {request['init']}")
        self.check([(each["name"], each["scale"]) for each in request["loras"]] == [("ink.safetensors", 0.8)], f"its LoRAs are {request['loras']}")
        self.waits_until(number, "finished")
        browser.run("document.querySelector('#loras-list button').focus()")
        browser.press(ENTER)
        self.check(not browser.shows(row), "a key does not remove the LoRA file")
        self.check(browser.run("return document.activeElement.id") == "loras-choose", "the focus is lost with it")
        with_lora, number = number, self.submit("red apple", steps=12)
        self.waits_until(number, "finished")
        browser.click("#init-remove")
        self.check(not browser.shows("#init-shown"), "the picture is not removed")
        self.load()
        self.wait("the gallery shows the image", lambda: browser.shows(f"#gallery-list [data-job='{number}']"))
        self.check(not browser.shows("#init-shown"), "a picture that was removed is there again")
        browser.click(f"#gallery-list [data-job='{with_lora}'] .line button")
        self.wait("its LoRA file is there again", lambda: "ink" in browser.text(row))
        self.check(browser.run("return document.querySelector('#loras-list input').value") == "0.8", "its scale is not")
        self.wait("its picture is there again", lambda: browser.run(
            "const image = document.querySelector('#init-shown img'); return image.checkVisibility() && image.complete && image.naturalWidth"))
        self.check(browser.run("return document.querySelector('#strength').value") == "0.5", "its strength is not")
        browser.choose("#init-file", ink)
        self.wait("a file of the other kind is refused", lambda: "LoRA" in browser.text("#error-init"))
        neither = os.path.join(self.service.folder, "notes.txt")
        with open(neither, "w") as file:
            file.write("a few words, which are no file of either kind")
        browser.choose("#loras-file", neither)
        self.wait("one of no kind is, too", lambda: "safetensors" in browser.text("#error-loras"))
        browser.click("#init-remove")
        browser.click(f"{row} button")
        others = [error for error in browser.errors() if "status of 400" not in error]
        self.check(not others, f"the console says: {others}")

    def keys(self):
        self.load()
        self.browser.run("document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
        order = []
        for _ in range(8):
            self.browser.press(TAB)
            order.append(self.browser.run("const at = document.activeElement; return at.className === 'skip' ? 'skip' : at.id || at.name || at.hash"))
        self.check(order[0] == "skip", f"the first key leads to {order[0]}")
        self.check("prompt" in order and "negative" in order and order.index("prompt") < order.index("negative"), f"the order of keys is {order}")
        outline = self.browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        self.check(outline != "none", "nobody sees where the focus is")

    def cluster(self):
        self.load("#cluster")
        rows = lambda: self.browser.run("return document.querySelectorAll('#workers-rows tr').length")
        self.wait("all workers are listed", lambda: rows() == self.asked.workers)
        fabric = self.service.call("GET", "/v1/cluster")[1]["pairs"][0]["fabric"]
        self.wait("their fabrics are", lambda: fabric in self.browser.text("#pairs"))
        self.shoot("cluster")
        self.browser.look(DESK, "dark")
        self.shoot("cluster-dark")
        self.browser.look(PHONE)
        self.fits("the cluster's view")
        self.shoot("cluster-phone")

    def away(self):
        self.load()
        images = lambda: self.browser.run("return document.querySelectorAll('#gallery-list li').length")
        before = self.wait("the gallery is there", images)
        end(self.service.coordinator)
        self.wait("the page says that nobody answers", lambda: self.browser.shows("#away"))
        self.shoot("away", whole=False)
        self.service.start()
        self.wait("the page goes on by itself", lambda: not self.browser.shows("#away"))
        self.wait("workers are there again", lambda: f"{self.asked.workers} worker" in self.browser.text("#pulse"))
        self.wait("so is the gallery", lambda: images() == before)
        others = [error for error in self.browser.errors() if "net::ERR_" not in error and "does not answer" not in error]
        self.check(not others, f"the console says: {others}")

    def locked(self):
        """On a coordinator of its own, which lets nobody in without a key."""
        with contextlib.ExitStack() as stack:
            service, browser = Service(self.service.programs, stack), self.browser
            file, key = service.key("page")
            service.start("--api-keys", file)
            browser.open(service.address)
            is_open = lambda: browser.run("return document.querySelector('#key-dialog').open")
            self.wait("the page asks for a key", is_open)
            browser.write("#key", "none-of-these")
            browser.press(ENTER)
            self.wait("a wrong key is said to be wrong", lambda: "does not know this key" in browser.text("#key-why"))
            self.shoot("key", whole=False)
            browser.write("#key", key)
            browser.press(ENTER)
            self.wait("the right one opens the page", lambda: not is_open() and "worker join" in browser.text("#empty code"))
            browser.open(service.address)
            self.wait("it is remembered", lambda: "worker join" in browser.text("#empty code"))
            self.check(not is_open(), "the page asks for the key that it has")
            browser.do("POST", "url", {"url": "about:blank"})
        others = [error for error in browser.errors() if "status of 401" not in error]
        self.check(not others, f"the console says: {others}")

    def all(self):
        self.part("a page without workers says how they join", self.without_workers)
        self.part("a job that waits for the first worker becomes an image", self.first_worker)
        self.part("previews, bands and the timeline change while an image is rendered", self.previews)
        self.part("one of two jobs is cancelled", self.cancel_one_of_two)
        self.part("a page that is loaded again follows the running job", self.reload)
        self.part("an image tells its parameters and is asked for again", self.again)
        self.part("what is wrong is said at its field", self.wrong_values)
        self.part("an image begins with a picture and is rendered with a LoRA file", self.given)
        self.part("keys lead through the page in order, and are seen", self.keys)
        self.part("the cluster is shown", self.cluster)
        self.part("a coordinator that goes away is waited for", self.away)
        self.part("a key is asked for where one is wanted", self.locked)


def stop(number, _):
    sys.exit(128 + number)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the folder of coordinator and worker")
    parser.add_argument("--out", metavar="DIR", help="save screenshots there")
    parser.add_argument("--workers", type=int, default=2, help="[default: 2]")
    parser.add_argument("--size", type=int, default=256, help="of the images, in pixels [default: 256]")
    parser.add_argument("--steps", type=int, default=150, help="of images that are to take a while [default: 150]")
    parser.add_argument("--without-previews", action="store_true", help="of a model that nothing tells how its latents look")
    asked = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    for what, there in (("chromium", binary), ("chromedriver", driver)):
        if not there:
            print(f"skipped: the page: this machine has no {what} (Debian: apt-get install chromium chromium-driver)")
            return
    if asked.out:
        os.makedirs(asked.out, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    with contextlib.ExitStack() as stack:
        service = Service(asked.programs, stack)
        service.start()
        trial = Trial(service, Browser(driver, binary, stack), asked)
        trial.all()
        if trial.failed:
            print(f"the coordinator's last words:\n{service.log('coordinator')}")
            sys.exit(f"{len(trial.failed)} parts failed: {'; '.join(trial.failed)}")


if __name__ == "__main__":
    main()
