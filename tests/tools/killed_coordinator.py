"""Kills a coordinator again and again while jobs are submitted to it and rendered, and counts what becomes of them.

    cargo build --workspace --bins
    python3 tests/tools/killed_coordinator.py target/debug                      # jobs are kept in a folder
    python3 tests/tools/killed_coordinator.py target/debug --store postgres     # in a database of a server of its own

Fifty jobs, each submitted under an idempotency key of its own until it is answered, by one client; twenty times `kill -9`, each
within seconds of the coordinator's start, at a moment drawn from `--seed`. With Postgres its server is killed as well, every
fifth time. Two workers stay and come back by themselves. In the end every key must be one job's and every job some key's, each
must have ended once, with an image, and its latent must have the bits that the same request had when nothing was killed: half of
the jobs are displaced and deterministic, half synchronous. Needs nothing but Python, and for Postgres its server.
"""

import argparse
import contextlib
import glob
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import page

# As long as it takes a debug build to render some of it, and to be killed at each of its stages.
IMAGE = {"width": 128, "height": 128, "steps": 20, "workers": 2, "bands": "even", "cfg_split": "off"}
KINDS = [
    {"mode": "corrected", "warmup": 3, "deterministic": True},
    {"mode": "full-sync", "deterministic": True},
]
SEEDS = 3
# A job that has no end after this time hangs.
HANGS = 240
NOBODY = 65534


def requests():
    kinds = [IMAGE | kind | {"prompt": "red apple", "seed": seed} for seed in range(SEEDS) for kind in KINDS]
    return itertools.cycle(kinds)


class Postgres:
    """A server of this trial's own."""

    def __init__(self, stack):
        folders = glob.glob("/usr/lib/postgresql/*/bin") + os.environ["PATH"].split(":")
        found = [folder for folder in sorted(folders) if os.path.exists(f"{folder}/initdb") and os.path.exists(f"{folder}/postgres")]
        if not found:
            sys.exit("Postgres is not installed: Debian's package is postgresql")
        self.programs, self.server = found[0], None
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="killed-"))
        os.chmod(self.folder, 0o755)
        # It refuses to run as root.
        self.user = NOBODY if os.getuid() == 0 else None
        if self.user:
            os.chown(self.folder, self.user, self.user)
        self.port = page.free_port()
        self.url = f"postgres://tessera@127.0.0.1:{self.port}/postgres"
        data = f"{self.folder}/data"
        made = ["--auth=trust", "--username=tessera", "--encoding=UTF8", "--pgdata", data]
        subprocess.run([f"{self.programs}/initdb", *made], check=True, capture_output=True, user=self.user, cwd=self.folder)
        self.start()
        stack.callback(self.kill)

    def start(self):
        command = ["-D", f"{self.folder}/data", "-k", self.folder, "-p", str(self.port), "-c", "listen_addresses=127.0.0.1"]
        with open(f"{self.folder}/log", "a") as log:
            self.server = subprocess.Popen([f"{self.programs}/postgres", *command], stderr=log, user=self.user, cwd=self.folder)

    def kill(self):
        """Ends all its processes where they are."""
        self.server.send_signal(signal.SIGQUIT)
        self.server.wait()


class Trial:
    def __init__(self, asked, stack):
        self.asked, self.random = asked, random.Random(asked.seed)
        self.service = page.Service(asked.programs, stack)
        self.postgres = Postgres(stack) if asked.store == "postgres" else None
        self.further = ["--database", self.postgres.url] if self.postgres else []
        self.accepted, self.again = {}, 0

    def start(self):
        # A server that recovers lets nobody in for a moment, and a coordinator says so and ends.
        for attempt in range(20):
            try:
                return self.service.start(*self.further)
            except page.Failure as failure:
                if attempt == 19 or not self.postgres or "cannot reach" not in str(failure):
                    raise
                time.sleep(0.5)

    def post(self, request, key):
        connection = http.client.HTTPConnection(self.service.http, timeout=30)
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/jobs", json.dumps(request), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def submit(self, request, key):
        """Until it is accepted, whatever becomes of the coordinator meanwhile."""
        deadline = time.monotonic() + HANGS
        while time.monotonic() < deadline:
            # Cut off in the middle of an answer, too.
            with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
                status, job = self.post(request, key)
                if status in (200, 202):
                    self.again += status == 200
                    return job["id"]
                if status != 503:
                    sys.exit(f"{key} was answered with {status}: {job}")
            time.sleep(0.05)
        sys.exit(f"{key} is not accepted after {HANGS} s")

    def submit_all(self):
        for number, request in zip(range(self.asked.jobs), requests()):
            self.accepted[f"key-{number}"] = request, self.submit(request, f"key-{number}")
            # So that some are submitted at each moment of the trial.
            time.sleep(self.random.uniform(0, 2 * 2.5 * self.asked.kills / self.asked.jobs))

    def wait_for_end(self, job):
        deadline = time.monotonic() + HANGS
        while True:
            record = self.service.job(job)
            if record["state"] not in ("queued", "running"):
                return record
            if time.monotonic() > deadline:
                sys.exit(f"job {job} hangs: {record}")
            time.sleep(0.1)

    def undisturbed(self):
        """The latent of each request."""
        latents = {}
        for request in itertools.islice(requests(), SEEDS * len(KINDS)):
            job = self.submit(request, f"undisturbed-{json.dumps(request)}")
            latents[json.dumps(request)] = self.wait_for_end(job)["result"]["latent"]
        return latents

    def listed(self):
        jobs, before = [], ""
        while True:
            _, told = self.service.call("GET", f"/v1/jobs?limit=100{before}")
            jobs += told["jobs"]
            if told.get("next") is None:
                return jobs
            before = f"&before={told['next']}"

    def run(self):
        self.start()
        self.service.join(2)
        latents = self.undisturbed()
        print(f"undisturbed: {len(set(latents.values()))} images of {len(latents)} requests", flush=True)
        submitting = threading.Thread(target=self.submit_all, daemon=True)
        since = time.monotonic()
        submitting.start()
        for number in range(self.asked.kills):
            time.sleep(self.random.uniform(0.1, 5))
            self.service.coordinator.kill()
            self.service.coordinator.wait()
            if self.postgres and number % 5 == 4:
                self.postgres.kill()
                self.postgres.start()
            self.start()
        submitting.join(HANGS)
        if len(self.accepted) < self.asked.jobs:
            sys.exit(f"{len(self.accepted)} of {self.asked.jobs} jobs were accepted")
        wrong, resumed, times = [], 0, 0
        for key, (request, job) in self.accepted.items():
            record = self.wait_for_end(job)
            if record["state"] != "finished":
                wrong.append(f"{key}, job {job}: {record}")
            elif record["result"]["latent"] != latents[json.dumps(request)]:
                wrong.append(f"{key}, job {job} has other bits: {record['result']}")
            else:
                recoveries = record["result"]["recoveries"]
                resumed += bool(recoveries)
                times += len(recoveries)
        seconds = time.monotonic() - since
        listed = [job["id"] for job in self.listed()]
        known = set(self.accepted_jobs())
        undisturbed = len(latents)
        if len(listed) != len(set(listed)) or len(listed) != len(known) + undisturbed or not known <= set(listed):
            wrong.append(f"{len(listed)} jobs are listed, {len(known)} were accepted, and {undisturbed} before: {sorted(listed)}")
        print(
            f"{self.asked.store}: {self.asked.kills} kills in {seconds:.0f} s; {len(known)} jobs accepted, of them {self.again} "
            f"answered for the second time; {resumed} were taken up by later coordinators, {times} times as far as the last knows; {len(wrong)} wrong"
        )
        if wrong:
            sys.exit("\n".join(wrong))

    def accepted_jobs(self):
        return [job for _, job in self.accepted.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the folder of coordinator and worker")
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=["folder", "postgres"], default="folder")
    with contextlib.ExitStack() as stack:
        Trial(parser.parse_args(), stack).run()


if __name__ == "__main__":
    main()
