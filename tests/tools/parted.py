"""Cuts two nodes of workers off from each other for good in the middle of a job, while the coordinator reaches both, and
prints what becomes of the job: it must go on with the faster node's workers and end with an image.

    cargo build --release --locked
    sudo python3 parted.py target/release --workers-per-node 2,3

The nodes are network namespaces on this machine, as namespaces.py makes them.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import namespaces
from emulated_link import Setting

# After so many calls the link carries nothing any more.
CUT_AFTER = 5


def follow(cluster, process):
    """Reads a job's events, prints those that matter, and cuts the link; gives the events with their times."""
    events, cut = [], None
    for line in process.stdout:
        event = json.loads(line)
        now = time.monotonic()
        events.append(event)
        kind = event["event"]
        if kind == "step" and cut is None and event["call"] >= CUT_AFTER:
            for carrier in cluster.link.processes:
                os.kill(carrier, signal.SIGSTOP)
            cut = now
            print("  0.0 s: the nodes no longer reach each other", flush=True)
        elif cut is not None and kind in ("notice", "interrupted", "resumed", "finished", "failed"):
            what = event.get("text") or event.get("cause") or event.get("reason") or ""
            print(f"{now - cut:5.1f} s: {kind} {what}", flush=True)
    return events


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the folder of the coordinator and the worker")
    parser.add_argument("--workers-per-node", type=namespaces.workers, default=[2, 3], help="[2,3]")
    parser.add_argument("--size", type=int, default=256, help="of the image [%(default)s]")
    parser.add_argument("--steps", type=int, default=60, help="[%(default)s]")
    asked = parser.parse_args()
    asked.threads, asked.model = 1, None
    with contextlib.ExitStack() as stack:
        cluster = namespaces.Cluster(asked, Setting(None, 0, 0), stack)
        cluster.start()
        command = ["coordinator", "submit", "--coordinator", f"{namespaces.COORDINATOR}:{namespaces.PORT}", "--json"]
        command += ["--fabric", "quic,tcp", "red apple", "--out", f"{cluster.folder}/image.png", "--width", str(asked.size), "--height", str(asked.size)]
        process = subprocess.Popen(
            cluster.command([*command, "--steps", str(asked.steps), "--seed", "1"]), preexec_fn=cluster.middle.enter,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cluster.environment,
        )
        stack.callback(namespaces.end, process)
        signal.alarm(namespaces.JOB_LIMIT)
        events = follow(cluster, process)
        if process.wait():
            raise SystemExit(f"no image: {process.stderr.read().strip()}\n{cluster.logs()}")
        finished = next(event for event in events if event["event"] == "finished")
        breaks = sum(event["event"] == "interrupted" for event in events)
        print(f"an image after {breaks} break-offs, on {finished['recoveries'][-1]['workers'][1]} workers")


if __name__ == "__main__":
    sys.exit(main())
