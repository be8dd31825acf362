"""Measures two nodes of workers on this machine, in network namespaces with a link between them that has
the rate, delay and loss that were asked for: seconds per step and communication that computing does not
hide, exact and displaced, for each fabric.

    cargo build --release --locked
    sudo python3 namespaces.py target/release                       # the four links of docs/performance.md
    sudo python3 namespaces.py target/release --rate 1gbit --delay 2ms --loss 1% --sizes 256,512

The coordinator has a namespace of its own, and links to both nodes that are not slowed down. Workers of a
node reach each other over its loopback device. Each call of a figure is of one of `--rounds` jobs, the ways
taking turns; a figure is the median over jobs of the mean over a job's calls (the mean, so that a call
which a lost packet held up counts). Exposed is what a call takes longer than its slowest worker computes; that
worker's peers wait for it besides, most of all where workers share cores, as long as the longest wait says.
Nothing is left behind, however this ends: namespaces have no names.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from emulated_link import Link, Namespace, Setting, inside

# What the project's documentation shows, and first what is waited for without any link's help.
SETTINGS = [Setting(None, 0, 0), Setting(10e9, 0.2e-3, 0), Setting(1e9, 2e-3, 0), Setting(1e9, 2e-3, 0.01)]
COORDINATOR, PORT = "10.78.0.1", 7411
NODES = ["10.77.0.1", "10.77.0.2"]
MODES = ["full-sync", "corrected"]
# Jobs before a prediction: a worker's rate is half the last job's, a quarter the one's before, ...
LEARNING_JOBS = 3
# How long workers may take to load and join, and a job to render.
JOIN_LIMIT, JOB_LIMIT = 120, 900


def amount(text, units):
    found = re.fullmatch(r"([\d.]+) *([a-z%]+)", text.lower())
    if not found or found[2] not in units:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number and one of {', '.join(units)}")
    return float(found[1]) * units[found[2]]


def rate(text):
    return 0.0 if text == "none" else amount(text, {"gbit": 1e9, "mbit": 1e6, "kbit": 1e3})


def delay(text):
    return amount(text, {"ms": 1e-3, "us": 1e-6, "s": 1.0})


def loss(text):
    return amount(text, {"%": 0.01})


def workers(text):
    counts = [int(number) for number in text.split(",")]
    if not 1 <= len(counts) <= 2 or min(counts) < 0 or sum(counts) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give N for both nodes, or N,M")
    return counts * (2 // len(counts))


class Cluster:
    """A coordinator and its workers, spread over two nodes with a link between them."""

    def __init__(self, asked, setting, stack):
        self.asked, self.setting, self.stack = asked, setting, stack
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="namespaces-"))
        self.middle, *self.nodes = [Namespace() for _ in range(3)]
        for namespace in (self.middle, *self.nodes):
            stack.callback(os.close, namespace.file)
            inside(namespace, "link set dev lo up")
        inside(self.middle, f"addr add {COORDINATOR}/32 dev lo")
        for number, node in enumerate(self.nodes):
            self.reach(node, number)
        self.link = Link(self.nodes, "wire", NODES, setting)
        stack.callback(self.link.close)
        self.environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}

    def reach(self, node, number):
        """Gives a node its way to the coordinator."""
        inside(self.middle, f"link add node{number} type veth peer name control netns {node.path()}")
        inside(self.middle, f"addr add 10.78.{number + 1}.1/30 dev node{number}")
        inside(self.middle, f"link set dev node{number} up")
        inside(node, f"addr add 10.78.{number + 1}.2/30 dev control")
        inside(node, "link set dev control up")
        inside(node, f"route add {COORDINATOR}/32 via 10.78.{number + 1}.1")

    def start(self):
        """Starts the processes and waits until all workers have joined."""
        token = self.identity()
        self.spawn("coordinator", self.middle, ["coordinator", "serve", "--http=off", "--listen", f"0.0.0.0:{PORT}"])
        self.wait_for("coordinator", lambda: "listening on" in self.log("coordinator"))
        for node, (namespace, address, count) in enumerate(zip(self.nodes, NODES, self.asked.workers_per_node)):
            for number in range(count):
                name = f"{'ab'[node]}{number + 1}"
                command = ["worker", "join", "--coordinator", f"{COORDINATOR}:{PORT}", "--listen", f"{address}:0"]
                command += ["--threads", str(self.asked.threads), "--name", name]
                command += ["--model", self.asked.model] if self.asked.model else []
                command += ["--identity", "memory"]
                self.spawn(name, namespace, command, token)
        self.wait_for("workers", lambda: len(self.status().get("workers", [])) == sum(self.asked.workers_per_node))

    def identity(self):
        """The environment with which workers get in."""
        self.environment["TESSERA_IDENTITY"] = f"{self.folder}/identity"
        self.coordinator(["init"])
        return {"TESSERA_TOKEN": self.coordinator(["token", "--uses", "64"]).split()[-1]}

    def command(self, arguments):
        program, *rest = arguments
        return [os.path.join(self.asked.programs, program), *rest]

    def spawn(self, name, namespace, arguments, environment=None):
        log = self.stack.enter_context(open(f"{self.folder}/{name}.log", "w"))
        process = subprocess.Popen(
            self.command(arguments), preexec_fn=namespace.enter, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**self.environment, **(environment or {})},
        )
        self.stack.callback(end, process)
        return process

    def log(self, name):
        with open(f"{self.folder}/{name}.log") as log:
            return log.read()

    def logs(self):
        names = sorted(name[:-4] for name in os.listdir(self.folder) if name.endswith(".log"))
        return "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in names)

    def wait_for(self, what, there):
        deadline = time.monotonic() + JOIN_LIMIT
        while not there():
            if time.monotonic() > deadline:
                raise SystemExit(f"no {what} after {JOIN_LIMIT} s:\n{self.logs()}")
            time.sleep(0.1)

    def coordinator(self, arguments):
        """What a command of the coordinator's prints."""
        done = subprocess.run(
            self.command(["coordinator", *arguments]), preexec_fn=self.middle.enter, capture_output=True, text=True,
            env=self.environment, timeout=JOB_LIMIT,
        )
        if done.returncode:
            raise SystemExit(f"coordinator {' '.join(arguments)}: {done.stderr.strip()}\n{self.logs()}")
        return done.stdout

    def status(self):
        return json.loads(self.coordinator(["status", "--json", "--coordinator", f"{COORDINATOR}:{PORT}"]))

    def render(self, size, further):
        """Renders one image; gives the job's events, each step with what the link had carried by then."""
        asked = self.asked
        command = ["coordinator", "submit", "--coordinator", f"{COORDINATOR}:{PORT}", "--json", asked.prompt]
        command += ["--out", f"{self.folder}/image.png", "--width", str(size), "--height", str(size), "--seed", "1"]
        command += ["--steps", str(asked.steps), "--warmup", str(asked.warmup), "--bands", "auto" if asked.predict else "even"]
        process = subprocess.Popen(
            self.command(command + ["--cfg-split", "off", *further]), preexec_fn=self.middle.enter,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(end, process)
            signal.alarm(JOB_LIMIT)
            stack.callback(signal.alarm, 0)
            events = []
            for line in process.stdout:
                events.append({**json.loads(line), "carried": [way["wire_bytes"] for way in self.link.read()]})
            if process.wait():
                raise SystemExit(f"{' '.join(command)}: {process.stderr.read().strip()}\n{self.logs()}")
        return events

    def exposed(self, job):
        """Of each call of a job, the seconds by which it took longer than its slowest worker computed."""
        path = f"{self.folder}/trace.json"
        self.coordinator(["trace", str(job), "--out", path, "--coordinator", f"{COORDINATOR}:{PORT}"])
        calls = {}
        with open(path) as trace:
            for event in json.load(trace)["traceEvents"]:
                if event["name"].startswith("call "):
                    calls.setdefault(int(event["name"][5:]), []).append(event["args"])
        longest = lambda parts, seconds: max(seconds(part) for part in parts) / 1e6
        took = lambda part: part["took_us"]
        return {call: longest(parts, took) - longest(parts, lambda part: took(part) - part["waited_us"]) for call, parts in calls.items()}


def end(process):
    process.kill()
    process.wait()


def job(cluster, size, mode, further):
    """A job's means over its calls of one kind: displaced ones, or synchronous ones but the first."""
    start = cluster.link.processor_seconds()
    events = cluster.render(size, ["--mode", mode, *further])
    steps = [event for event in events if event["event"] == "step"]
    displaced = mode != "full-sync"
    counted = [at for at in range(1, len(steps)) if steps[at]["displaced"] == displaced]
    if not counted:
        raise SystemExit(f"no call of {mode} was {'displaced' if displaced else 'synchronous'}: give more --steps")
    exposed = cluster.exposed(next(event["job"] for event in events if event["event"] == "accepted"))
    for step in steps:
        step["exposed"] = exposed[step["call"] - 1]
    mean = lambda name: statistics.fmean(steps[at][name] for at in counted)
    crossed = [(steps[counted[-1]]["carried"][way] - steps[counted[0] - 1]["carried"][way]) / len(counted) for way in (0, 1)]
    finished = next(event for event in events if event["event"] == "finished")
    return {
        "seconds": mean("seconds"), "exposed": mean("exposed"), "waited": mean("waited"), "calls": len(counted), "crossed_bytes": max(crossed),
        "posted_bytes": sum(wait["posted_bytes"] for wait in finished["waits"]) / len(steps),
        "link_processor_seconds": cluster.link.processor_seconds() - start,
        "job_seconds": sum(step["seconds"] for step in steps),
    }


def predict(cluster, asked, size, fabric):
    """What netcheck says of a call of all workers, once some displaced jobs have shown how fast they are."""
    for _ in range(LEARNING_JOBS):
        job(cluster, size, "corrected", ["--fabric", fabric])
    command = ["netcheck", "--json", "--coordinator", f"{COORDINATOR}:{PORT}", "--fabric", fabric, "--cfg-split", "off"]
    command += ["--width", str(size), "--height", str(size), "--steps", str(asked.steps), "--warmup", str(asked.warmup)]
    return json.loads(cluster.coordinator(command))["predictions"][-1]


def measure(cluster, asked, size):
    """All ways by turns; of each, the median of every figure, and the rounds' own."""
    predicted = {fabric: predict(cluster, asked, size, fabric) if asked.predict else None for fabric in asked.fabrics}
    ways = {("", "one worker"): ["--workers", "1"]}
    for fabric in asked.fabrics:
        for mode in MODES:
            ways[fabric, mode] = ["--fabric", fabric] if asked.restricts else []
    jobs = {way: [] for way in ways}
    for number in range(1, asked.rounds + 1):
        for (fabric, mode), further in ways.items():
            found = job(cluster, size, "full-sync" if mode == "one worker" else mode, further)
            jobs[fabric, mode].append(found)
            figures = f"{found['seconds']:.4f} s/step, {found['exposed']:.4f} exposed, {found['waited']:.4f} the longest wait"
            print(f"{cluster.setting}, {size}, round {number}: {f'{fabric} {mode}'.strip()}: {figures}", file=sys.stderr, flush=True)
    median = lambda way: {name: statistics.median(one[name] for one in jobs[way]) for name in jobs[way][0]}
    alone, rows = median(("", "one worker")), []
    for fabric in asked.fabrics:
        exact, displaced = median((fabric, "full-sync")), median((fabric, "corrected"))
        shared = min(sum(asked.workers_per_node) * asked.threads, os.cpu_count()) / asked.threads
        rows.append({
            "link": str(cluster.setting), "size": size, "fabric": fabric, "one_worker": alone, "full_sync": exact, "displaced": displaced,
            "compute_seconds": alone["seconds"] / shared,
            "transfer_seconds": 8 * displaced["crossed_bytes"] / cluster.setting.rate if cluster.setting.rate else 0.0,
            "hidden": 1 - displaced["exposed"] / exact["exposed"] if exact["exposed"] else None,
            "predicted": predicted[fabric],
            "rounds": {mode: jobs[fabric, mode] for mode in MODES},
        })
    return rows


def sanity(cluster):
    """What other software sees of the link, while nothing else runs."""
    near, far = cluster.nodes
    found = {"link": str(cluster.setting), "ping_ms": None, "iperf3_gbit": None}
    if shutil.which("ping"):
        command = ["ping", "-q", "-c", "50", "-i", "0.02", NODES[1]]
        said = subprocess.run(command, preexec_fn=near.enter, capture_output=True, text=True).stdout
        answer = re.search(r"= [\d.]+/([\d.]+)/", said)
        found["ping_ms"] = float(answer[1]) if answer else None
    if shutil.which("iperf3"):
        server = subprocess.Popen(["iperf3", "-s", "-1"], preexec_fn=far.enter, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        command = ["iperf3", "-J", "-t", "3", "-c", NODES[1]]
        said = subprocess.run(command, preexec_fn=near.enter, capture_output=True, text=True).stdout
        end(server)
        found["iperf3_gbit"] = json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9
    return found


def text(value, form):
    return "" if value is None else format(value, form)


def tables(checks, rows):
    yield "| link | ping, ms | iperf3, Gbit/s | packets lost, both ways | dropped: queue full |"
    yield "|---|---|---|---|---|"
    for check in checks:
        ways = check["carried"]
        lost, full = (sum(way[name] for way in ways) / max(1, sum(way["packets"] for way in ways)) for name in ("lost", "overflowed"))
        yield f"| {check['link']} | {text(check['ping_ms'], '.2f')} | {text(check['iperf3_gbit'], '.2f')} | {lost:.2%} | {full:.2%} |"
    yield ""
    yield (
        "| link | image | fabric | one worker, s/step | its share of compute, s | crosses the link per step and way, MB | transfer, s |"
        " full-sync, s/step | exposed, s | longest wait, s | displaced, s/step | exposed, s | longest wait, s | hidden | the emulated link's own share of a core |"
    )
    yield "|" + "---|" * 15
    for row in rows:
        exact, displaced = row["full_sync"], row["displaced"]
        own = displaced["link_processor_seconds"] / displaced["job_seconds"]
        cells = [
            row["link"], f"{row['size']}x{row['size']}", row["fabric"], f"{row['one_worker']['seconds']:.3f}", f"{row['compute_seconds']:.3f}",
            f"{displaced['crossed_bytes'] / 1e6:.2f}", f"{row['transfer_seconds']:.4f}", f"{exact['seconds']:.3f}", f"{exact['exposed']:.4f}",
            f"{exact['waited']:.4f}", f"{displaced['seconds']:.3f}", f"{displaced['exposed']:.4f}",
            f"{displaced['waited']:.4f}", text(row["hidden"], ".0%"), f"{own:.0%}",
        ]
        yield f"| {' | '.join(cells)} |"
    if any(row["predicted"] for row in rows):
        yield ""
        yield "| link | image | fabric | workers | full-sync, s/step | predicted | off by | displaced, s/step | predicted | off by |"
        yield "|" + "---|" * 10
    for row in rows:
        if not row["predicted"]:
            continue
        cells = [row["link"], f"{row['size']}x{row['size']}", row["fabric"], f"{row['predicted']['workers']}"]
        for way, name in (("full_sync", "synchronous_seconds"), ("displaced", "displaced_seconds")):
            measured, predicted = row[way]["seconds"], row["predicted"]["prediction"][name]
            cells += [f"{measured:.3f}", f"{predicted:.3f}", f"{predicted / measured - 1:+.0%}"]
        yield f"| {' | '.join(cells)} |"


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the folder of coordinator and worker")
    parser.add_argument("--rate", type=rate, help="one link instead of the four: such as 10gbit, 500mbit or none, each way")
    parser.add_argument("--delay", type=delay, default=0.0, help="its round trip, half of it each way, such as 0.2ms")
    parser.add_argument("--loss", type=loss, default=0.0, help="the share of packets that each way loses, such as 1%%")
    parser.add_argument("--fabrics", type=lambda text: text.split(","), default=["tcp"], help="such as tcp,quic [default: tcp]")
    parser.add_argument("--workers-per-node", type=workers, default=[2, 2], metavar="N[,M]", help="on both nodes, or on each [default: 2]")
    parser.add_argument("--threads", type=int, default=1, help="of each worker [default: 1]")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[256, 512], help="[default: 256,512]")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=2, help="displaced jobs' first K+1 calls are synchronous [default: 2]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--predict", action="store_true", help="have `netcheck` predict what is then measured, with bands as tall as workers are fast")
    parser.add_argument("--model", help="a checkpoint in the diffusers layout [default: the built-in emoji-xl]")
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--then", action="append", default=[], metavar="COMMAND", help="a command of the coordinator's to run after the jobs, such as 'netcheck'")
    parser.add_argument("--json", metavar="FILE", help="also write everything that was measured")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("namespaces and their devices need root")
    asked.settings = SETTINGS if asked.rate is None else [Setting(asked.rate or None, asked.delay, asked.loss)]
    if asked.rate is None and (asked.delay or asked.loss):
        parser.error("--delay and --loss need --rate (none: unlimited)")
    for program in ("coordinator", "worker"):
        if not os.access(os.path.join(asked.programs, program), os.X_OK):
            parser.error(f"{asked.programs} has no program {program}: build it, and give the folder that it is in")
    said = subprocess.run([f"{asked.programs}/coordinator", "submit", "--help"], capture_output=True, text=True).stdout
    asked.restricts = "--fabric" in said
    if not asked.restricts and asked.fabrics != ["tcp"]:
        parser.error(f"this release has tcp alone, not {','.join(asked.fabrics)}")
    return asked


def stop(number, _):
    raise SystemExit(f"ended by signal {number}" + (f": a job took more than {JOB_LIMIT} s" if number == signal.SIGALRM else ""))


def main():
    asked = options()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, stop)
    checks, rows = [], []
    for setting in asked.settings:
        with contextlib.ExitStack() as stack:
            cluster = Cluster(asked, setting, stack)
            check = sanity(cluster)
            cluster.start()
            for size in asked.sizes:
                rows += measure(cluster, asked, size)
            checks.append({**check, "carried": cluster.link.read()})
            for command in asked.then:
                said = cluster.coordinator([*command.split(), "--coordinator", f"{COORDINATOR}:{PORT}"])
                print(f"{setting}: coordinator {command}\n{said}", flush=True)
    print("\n".join(tables(checks, rows)))
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"links": checks, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
