"""Renders jobs on four workers, each in a network namespace of its own, while at random moments workers are
killed, stopped, cut off from each other and kept from memory, and packets are lost; counts what becomes of
the jobs, and how long after a fault the next step is done.

    cargo build --release --locked
    sudo python3 chaos.py target/release --fabrics tcp,quic,shm          # the tables of docs/reliability.md
    sudo python3 chaos.py target/release --fabrics tcp --jobs 20 --seed 7

The faults, one every `--gap` seconds on the mean, as long as one worker is left that nothing is wrong with:

    kill       kill -9; the worker is started again after 0.5 to 6 s
    stop       SIGSTOP for 10 s
    loss       5 % of all packets for 30 s
    cut        nothing between two workers for 30 s
    blackhole  nothing between a worker and everyone, the coordinator too, for 30 s
    memory     the memory that its control group may have is what it has, for 10 s or until the kernel kills it
    space      its address space may not grow any more for 10 s: what it asks for is refused

Workers that exchange over shm have no network between them that could be disturbed: there are only kill, stop, memory
and space. Jobs come from two clients, so that one always waits. Their images are compared with those of an undisturbed
cluster: exact ones (full-sync) must be the same but for rounding. A job is lost that was accepted and ends without an
image; but for one whose worker said that it cannot have the memory, which is refused.
"""

import argparse
import collections
import contextlib
import heapq
import itertools
import json
import math
import os
import random
import resource
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from emulated_link import Namespace, inside
from namespaces import COORDINATOR, PORT, Cluster, end, stop
from picture import compare, pixels

WORKERS = 4
PROCESSES = {"kill": 5, "stop": 2, "memory": 1, "space": 1}
NETWORK = {"loss": 1, "cut": 1, "blackhole": 1}
# For how long, in seconds.
LASTS = {"kill": 0, "stop": 10, "memory": 10, "space": 10, "loss": 30, "cut": 30, "blackhole": 30}
# How long after that a job may still break off for it: links and leases run out, workers come back.
ECHO = 15
LOST_SHARE = 0.05
# All that jobs are asked in: exact and displaced, in one branch and in two.
VARIANTS = [[f"--mode={mode}", f"--cfg-split={split}"] for mode in ("full-sync", "corrected") for split in ("off", "on")]
# The largest difference between two exact images of the same seed, of 255: bands are summed in another order.
ROUNDING = 2
CLIENTS = 2
# A job that has no end after this time hangs: an undisturbed one takes seconds.
HANGS = 180


class Worker:
    def __init__(self, number):
        self.number, self.address, self.namespace = number, f"10.78.0.{number + 1}", Namespace()
        self.process, self.memory, self.started, self.fault = None, None, 0, None

    def name(self):
        return f"w{self.number}"


class MemoryGroup:
    """A control group for the memory of one worker."""

    # Of both versions: where they are, and what limits and use are called.
    UNIFIED = "/sys/fs/cgroup", "memory.max", "memory.current", "max"
    OLD = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "-1"

    def __init__(self, name):
        unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        root, self.limited, self.used, self.unlimited = self.UNIFIED if unified else self.OLD
        self.folder = f"{root}/chaos-{os.getpid()}-{name}"
        if unified:
            with open(f"{root}/cgroup.subtree_control", "w") as control:
                control.write("+memory")
        os.mkdir(self.folder)

    def write(self, name, value):
        with open(f"{self.folder}/{name}", "w") as file:
            file.write(str(value))

    def take(self, process):
        self.write("cgroup.procs", process.pid)

    def limit(self):
        """To what is used now, and a few pages: version 1 refuses less."""
        with open(f"{self.folder}/{self.used}") as used:
            self.write(self.limited, int(used.read()) + (64 << 10))

    def lift(self):
        self.write(self.limited, self.unlimited)


class Lan(Cluster):
    """A coordinator and workers with a namespace each, on one bridge."""

    def __init__(self, asked, fabric, stack):
        self.asked, self.fabric, self.stack = asked, fabric, stack
        if asked.keep:
            self.folder = os.path.join(asked.keep, fabric)
            os.makedirs(self.folder)
        else:
            self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))
        self.middle, self.workers = Namespace(), [Worker(number + 1) for number in range(WORKERS)]
        self.environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}
        for namespace in self.namespaces():
            stack.callback(os.close, namespace.file)
            inside(namespace, "link set dev lo up")
        inside(self.middle, "link add lan type bridge")
        inside(self.middle, f"addr add {COORDINATOR}/24 dev lan")
        inside(self.middle, "link set dev lan gso_max_segs 1 up")
        for worker in self.workers:
            port = worker.name()
            inside(self.middle, f"link add {port} type veth peer name wire netns {worker.namespace.path()}")
            # Packets cross one by one, so that each is lost by itself.
            inside(self.middle, f"link set dev {port} master lan gso_max_segs 1 up")
            inside(worker.namespace, "link set dev wire gso_max_segs 1 up")
            inside(worker.namespace, f"addr add {worker.address}/24 dev wire")
            worker.memory = MemoryGroup(worker.name())
            stack.callback(os.rmdir, worker.memory.folder)

    def namespaces(self):
        return [self.middle, *(worker.namespace for worker in self.workers)]

    def start(self):
        token = self.identity()
        self.spawn("coordinator", self.middle, ["coordinator", "serve", "--http=off", "--listen", f"0.0.0.0:{PORT}"])
        self.wait_for("coordinator", lambda: "listening on" in self.log("coordinator"))
        for worker in self.workers:
            self.join(worker, token)
        self.wait_for_all()

    def wait_for_all(self):
        self.wait_for("workers", lambda: len(self.status().get("workers", [])) == WORKERS)

    def join(self, worker, token=None):
        """Starts a worker, the first time with the token that makes it a member."""
        worker.started += 1
        command = ["worker", "join", "--coordinator", f"{COORDINATOR}:{PORT}", "--listen", f"{worker.address}:0"]
        command += ["--threads", "1", "--name", worker.name(), "--fabric", self.fabric]
        command += ["--identity", f"{self.folder}/{worker.name()}"]
        worker.process = self.spawn(f"{worker.name()}-{worker.started}", worker.namespace, command, token)
        worker.memory.lift()
        worker.memory.take(worker.process)

    def submit(self, number, variant):
        command = ["coordinator", "submit", "--coordinator", f"{COORDINATOR}:{PORT}", "--json", "red apple"]
        command += ["--out", f"{self.folder}/{number}.png", "--steps", str(self.asked.steps), "--seed", "1"]
        command += ["--width", str(self.asked.size), "--height", str(self.asked.size), "--bands", "even"]
        with open(f"{self.folder}/job-{number}.log", "w") as log:
            process = subprocess.Popen(
                self.command(command + VARIANTS[variant]), preexec_fn=self.middle.enter, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log, env=self.environment,
            )
        self.stack.callback(end, process)
        return process

    def image(self, job):
        return pixels(f"{self.folder}/{job.number}.png")

    def drop(self, namespace, rule, change="-A"):
        """Lets packets go missing where they arrive: their sender does not learn of it."""
        command = ["iptables", "-w", change, "INPUT", *rule.split(), "-j", "DROP"]
        subprocess.run(command, preexec_fn=namespace.enter, check=True)


class Job:
    def __init__(self, number, variant, process):
        self.number, self.variant, self.process = number, variant, process
        self.since, self.rest, self.bands, self.events = time.monotonic(), b"", {}, []
        self.began, self.broke, self.goes_on = None, [], False
        self.outcome, self.likeness, self.difference = None, None, None

    def find(self, name):
        return next((event for _, event in self.events if event["event"] == name), None)


class Fault:
    def __init__(self, kind, victims, at):
        self.kind, self.victims, self.at, self.seconds = kind, victims, at, []


class Trial:
    """Jobs and faults on one cluster, in one thread: what jobs print, and what is due by the clock."""

    def __init__(self, cluster, asked):
        self.cluster, self.asked, self.random = cluster, asked, random.Random(f"{asked.seed} {cluster.fabric}")
        able = {**PROCESSES, **({} if cluster.fabric == "shm" else NETWORK)}
        self.weights = {kind: weight for kind, weight in able.items() if kind in asked.faults}
        self.due, self.order, self.printed = [], itertools.count(), selectors.DefaultSelector()
        self.began, self.jobs, self.open, self.faults, self.surprises = time.monotonic(), [], set(), [], []

    def say(self, what):
        print(f"{self.cluster.fabric} {time.monotonic() - self.began:7.2f} s  {what}", file=sys.stderr, flush=True)

    def surprise(self, what):
        self.surprises.append(what)
        self.say(f"SURPRISE: {what}")

    def after(self, seconds, action):
        heapq.heappush(self.due, (time.monotonic() + seconds, next(self.order), action))

    def run(self, variants, disturbed):
        """Renders a job of each of `variants`, which are taken from the list as clients get free."""
        first, variants = len(self.jobs), list(variants)
        if disturbed:
            self.after(self.gap(), lambda: self.strike(variants))
        while variants or self.open:
            while variants and len(self.open) < CLIENTS:
                self.submit(variants.pop(0))
            wait = max(0.0, min(self.due[0][0] - time.monotonic(), 0.5)) if self.due else 0.5
            for key, _ in self.printed.select(wait):
                self.read(key.data)
            while self.due and self.due[0][0] <= time.monotonic():
                heapq.heappop(self.due)[2]()
            self.look()
        return self.jobs[first:]

    def submit(self, variant):
        number = len(self.jobs) + 1
        job = Job(number, variant, self.cluster.submit(number, variant))
        self.jobs.append(job)
        self.open.add(job)
        self.printed.register(job.process.stdout, selectors.EVENT_READ, job)

    def read(self, job):
        said = os.read(job.process.stdout.fileno(), 1 << 20)
        *lines, job.rest = (job.rest + said).split(b"\n")
        for line in lines:
            self.hear(job, json.loads(line), time.monotonic())
        if not said:
            self.end(job)

    def hear(self, job, event, now):
        job.events.append((now, event))
        if event["event"] == "started":
            job.began = now
        if event["event"] in ("started", "resumed"):
            job.bands, job.goes_on = {band["rank"]: band["worker"] for band in event["bands"]}, True
        if event["event"] == "interrupted":
            # Bands that are shared anew, because workers came back, are nobody's fault.
            if event["fault"]["kind"] != "replanned":
                job.broke.append(self.cause(job, event["fault"], now))
            job.goes_on = False
        # Only a step of the next run counts: the last of the broken one may be on its way.
        if event["event"] == "step" and job.goes_on and job.broke:
            for fault in filter(None, job.broke):
                fault.seconds.append(now - max(fault.at, job.began))
            job.broke = []

    def cause(self, job, said, now):
        """The fault that was done to a job which broke off."""
        named = {job.bands.get(said[end]) for end in ("rank", "peer")} - {None}
        self.say(f"job {job.number} breaks off: {said['kind']}: {said['cause']}")
        lately = [fault for fault in self.faults if now - fault.at <= LASTS[fault.kind] + ECHO]
        # What was done to those workers, or else to all.
        done = [fault for fault in lately if named & set(fault.victims)] or [fault for fault in lately if not fault.victims]
        if not done:
            self.surprise(f"job {job.number} breaks off though nothing was done to {named}: {said['cause']}")
        return done[-1] if done else None

    def end(self, job):
        self.printed.unregister(job.process.stdout)
        code, failed = job.process.wait(), job.find("failed")
        self.open.remove(job)
        if job.find("finished") and code == 0:
            job.outcome = "finished"
        elif failed and failed["fault"]["kind"] == "compute" and "memory" in failed["fault"]["cause"]:
            job.outcome = "refused"
        else:
            job.outcome = "lost" if job.find("accepted") else "not accepted"
        if job.outcome != "finished":
            with open(f"{self.cluster.folder}/job-{job.number}.log") as log:
                self.surprise(f"job {job.number} is {job.outcome} (exit {code}): {failed or log.read().strip()}")

    def look(self):
        """Finds jobs that hang, and workers that ended though nothing was done to them."""
        for job in list(self.open):
            if time.monotonic() - job.since > HANGS:
                self.surprise(f"job {job.number} has no end after {HANGS} s: {json.dumps(self.cluster.status())}")
                end(job.process)
                self.read(job)
                self.end(job) if job in self.open else None
        for worker in self.cluster.workers:
            if worker.process and worker.process.poll() is not None:
                code, worker.process = worker.process.returncode, None
                if worker.fault not in ("kill", "memory", "space"):
                    log = self.cluster.log(f"{worker.name()}-{worker.started}")[-1500:]
                    self.surprise(f"{worker.name()} ended by itself with {code}:\n{log}")
                elif worker.fault != "kill":
                    self.say(f"{worker.name()} ended for want of memory with {code}")
                self.after(self.random.uniform(0.5, 6), lambda worker=worker: self.restart(worker))

    def restart(self, worker):
        self.cluster.join(worker)
        worker.fault = None

    def gap(self):
        return self.random.expovariate(1 / self.asked.gap)

    def strike(self, variants):
        """Does a fault, and plans the next."""
        there = {worker["name"] for worker in self.cluster.status()["workers"]}
        well = [worker for worker in self.cluster.workers if worker.fault is None and worker.name() in there]
        kind = self.random.choices(list(self.weights), self.weights.values())[0]
        victims = self.random.sample(well, {"loss": 0, "cut": 2}.get(kind, 1)) if len(well) > 1 else None
        if victims is not None and not (kind == "loss" and self.lossy()):
            getattr(self, kind)(*victims)
            self.faults.append(Fault(kind, [worker.name() for worker in victims], time.monotonic()))
            self.say(" ".join([kind, *self.faults[-1].victims]))
        if variants:
            self.after(self.gap(), lambda: self.strike(variants))

    def lossy(self):
        return any(fault.kind == "loss" and time.monotonic() - fault.at <= LASTS["loss"] + 1 for fault in self.faults)

    def kill(self, worker):
        worker.fault = "kill"
        worker.process.send_signal(signal.SIGKILL)

    def stop(self, worker):
        worker.fault = "stop"
        worker.process.send_signal(signal.SIGSTOP)
        self.after(LASTS["stop"], lambda: self.heal(worker, lambda: worker.process.send_signal(signal.SIGCONT)))

    def memory(self, worker):
        worker.fault, process = "memory", worker.process
        worker.memory.limit()
        self.relieve(worker, process, worker.memory.lift)

    def space(self, worker):
        worker.fault, process = "space", worker.process
        with open(f"/proc/{process.pid}/statm") as sizes:
            mapped = int(sizes.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(process.pid, resource.RLIMIT_AS, (mapped, unlimited))
        self.relieve(worker, process, lambda: resource.prlimit(process.pid, resource.RLIMIT_AS, (unlimited, unlimited)))

    def relieve(self, worker, process, lift):
        """Lets a worker have memory again that did not end for want of it."""
        self.after(LASTS[worker.fault], lambda: self.heal(worker, lift) if worker.process is process else None)

    def loss(self):
        rule = f"-i {{}} -m statistic --mode random --probability {LOST_SHARE}"
        ways = [(self.cluster.middle, rule.format("lan"))]
        ways += [(worker.namespace, rule.format("wire")) for worker in self.cluster.workers]
        self.disturb("loss", ways)

    def cut(self, one, other):
        self.disturb("cut", [(one.namespace, f"-s {other.address}"), (other.namespace, f"-s {one.address}")])

    def blackhole(self, worker):
        worker.fault = "blackhole"
        others = [namespace for namespace in self.cluster.namespaces() if namespace is not worker.namespace]
        self.disturb("blackhole", [(worker.namespace, "-i wire"), *((other, f"-s {worker.address}") for other in others)])
        self.after(LASTS["blackhole"], lambda: self.heal(worker, lambda: None))

    def disturb(self, kind, ways):
        for way in ways:
            self.cluster.drop(*way)
        self.after(LASTS[kind], lambda: [self.cluster.drop(*way, "-D") for way in ways])

    def heal(self, worker, mend):
        """A worker may have ended meanwhile, for another reason: then `look` finds it."""
        with contextlib.suppress(ProcessLookupError):
            mend()
        worker.fault = None

    def settle(self):
        """Lets all faults pass, and all workers come back."""
        while self.due:
            time.sleep(max(0.0, self.due[0][0] - time.monotonic()))
            heapq.heappop(self.due)[2]()
            self.look()
        self.cluster.wait_for_all()


def chaos(asked, fabric):
    """All that was seen over a fabric."""
    with contextlib.ExitStack() as stack:
        cluster = Lan(asked, fabric, stack)
        cluster.start()
        trial = Trial(cluster, asked)
        kinds = range(len(VARIANTS))
        wanted = [cluster.image(job) for job in trial.run(kinds, disturbed=False)]
        began = time.monotonic()
        jobs = trial.run([trial.random.choice(kinds) for _ in range(asked.jobs)], disturbed=True)
        seconds = time.monotonic() - began
        trial.settle()
        after = trial.run(kinds, disturbed=False)
        for job in jobs + after:
            if job.outcome == "finished":
                job.difference, job.likeness = compare(cluster.image(job), wanted[job.variant])
                if "full-sync" in VARIANTS[job.variant][0] and job.difference > ROUNDING:
                    trial.surprise(f"the exact image of job {job.number} is off by {job.difference}")
        if any(job.outcome != "finished" for job in after):
            trial.surprise("not all jobs finish that come after the faults")
        return {
            "fabric": fabric, "seconds": seconds, "surprises": trial.surprises, "jobs": jobs, "faults": trial.faults,
            "recoveries": [once["fault"]["kind"] for job in jobs if job.outcome == "finished" for once in job.find("finished")["recoveries"]],
        }


def figures(seconds):
    """Median, 99th percentile (of few the largest) and maximum."""
    if not seconds:
        return ["", "", ""]
    ordered = sorted(seconds)
    return [f"{value:.2f}" for value in (statistics.median(ordered), ordered[math.ceil(0.99 * len(ordered)) - 1], ordered[-1])]


def tables(found):
    yield "| fabric | faults | jobs accepted | finished | refused for want of memory | lost | broke off and went on | workers taken in again | fault to next step, s: median | p99 | largest |"
    yield "|" + "---|" * 11
    for one in found:
        of = collections.Counter(job.outcome for job in one["jobs"])
        accepted = sum(job.find("accepted") is not None for job in one["jobs"])
        seconds = [value for fault in one["faults"] for value in fault.seconds]
        broke, grew = (sum((kind == "replanned") == planned for kind in one["recoveries"]) for planned in (False, True))
        cells = [f"`{one['fabric']}`", len(one["faults"]), accepted, of["finished"], of["refused"], of["lost"], broke, grew, *figures(seconds)]
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    yield "| fault | fabric | times | broke a job off | fault to next step, s: median | p99 | largest |"
    yield "|" + "---|" * 7
    for kind in {**PROCESSES, **NETWORK}:
        for one in found:
            faults = [fault for fault in one["faults"] if fault.kind == kind]
            seconds = [value for fault in faults for value in fault.seconds]
            if faults:
                cells = [kind, f"`{one['fabric']}`", len(faults), sum(bool(fault.seconds) for fault in faults), *figures(seconds)]
                yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    for one in found:
        done = [job for job in one["jobs"] if job.outcome == "finished"]
        broken = [job for job in done if job.find("finished")["recoveries"]]
        exact = [job.difference for job in done if "full-sync" in VARIANTS[job.variant][0]]
        displaced = [job.likeness for job in done if "full-sync" not in VARIANTS[job.variant][0]]
        yield (
            f"{one['fabric']}: {one['seconds']:.0f} s; {len(broken)} jobs broke off and went on; exact images are off by {max(exact, default=0)} of 255"
            f" at most, displaced ones are like the undisturbed to {min(displaced, default=math.inf):.1f} dB at least"
        )
        yield from (f"{one['fabric']}: SURPRISE: {surprise}" for surprise in one["surprises"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the folder of coordinator and worker")
    parser.add_argument("--fabrics", type=lambda text: text.split(","), default=["tcp", "quic", "shm"], help="[default: tcp,quic,shm]")
    parser.add_argument("--jobs", type=int, default=200, help="for each fabric [default: 200]")
    parser.add_argument("--faults", type=lambda text: text.split(","), default=list(LASTS), help=f"[default: {','.join(LASTS)}]")
    parser.add_argument("--gap", type=float, default=3, help="mean seconds from fault to fault [default: 3]")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and their moments [default: 1]")
    parser.add_argument("--size", type=int, default=256, help="of the images, in pixels [default: 256]")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--keep", metavar="DIR", help="keep logs and images there, in a new folder for each fabric")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("namespaces and their devices need root")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    print(f"seed {asked.seed}", file=sys.stderr)
    found = []
    for fabric in asked.fabrics:
        found.append(chaos(asked, fabric))
        # Each time, so that whoever has no more patience has what there is.
        print("\n".join(tables(found)), end="\n\n", flush=True)
    if any(job.outcome not in ("finished", "refused") for one in found for job in one["jobs"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
