"""Puts a coordinator under load: a thousand queued jobs and two hundred followers of events.

    cargo build --release && python3 tests/tools/load.py target/release

One worker renders the first of them; the rest wait. Prints how long a submission takes, what the coordinator takes of
processor and memory, and checks that nobody is dropped and that jobs are told to be where they were put. Needs nothing but Python.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import statistics
import sys
import threading
import time

import page

# So long that it is rendered all the time.
REQUEST = {"prompt": "red apple", "width": 256, "height": 256, "steps": 500, "seed": 1}


def call(address, method, path, body=None):
    connection = http.client.HTTPConnection(address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def usage(process):
    """Processor seconds and resident MiB so far."""
    with open(f"/proc/{process}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    with open(f"/proc/{process}/status") as status:
        resident = next(line for line in status if line.startswith("VmRSS")).split()[1]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(resident) / 1024


class Follower(threading.Thread):
    """Reads the events of a job until it is told that it has ended, or hung up on."""

    def __init__(self, address, job):
        super().__init__(daemon=True)
        self.address, self.job, self.heard, self.last = address, job, [], None
        self.start()

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("GET", f"/v1/jobs/{self.job}/events")
        for line in connection.getresponse():
            if line.startswith(b"event: "):
                self.last = line[7:].strip().decode()
                self.heard.append(self.last)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", help="the folder of coordinator and worker")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--followers", type=int, default=200)
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        service = page.Service(asked.programs, stack)
        service.start()
        service.join(1)
        address, process = service.http, service.coordinator.pid
        before = usage(process)
        began = time.monotonic()
        took, jobs = [], []

        def submit(number):
            since = time.monotonic()
            status, job = call(address, "POST", "/v1/jobs", REQUEST)
            took.append(time.monotonic() - since)
            if status != 202:
                sys.exit(f"submission {number} was answered with {status}: {job}")
            jobs.append(job["id"])

        # The first is rendered, and does not wait.
        submit(0)
        followers = [Follower(address, jobs[0])]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            half = list(pool.map(submit, range(1, asked.jobs // 2 + 1)))
            followers += [Follower(address, job) for job in sorted(jobs)[1 : asked.followers]]
            list(pool.map(submit, range(len(half) + 1, asked.jobs + 1)))
        seconds = time.monotonic() - began
        cpu, resident = usage(process)
        took.sort()
        print(f"{len(took)} submissions by 8 callers in {seconds:.1f} s, each stored: median {statistics.median(took) * 1e3:.1f} ms, "
              f"p99 {took[len(took) * 99 // 100] * 1e3:.1f} ms, longest {took[-1] * 1e3:.1f} ms")
        print(f"the coordinator: {cpu - before[0]:.1f} s of processor time for that, {resident:.0f} MiB (before: {before[1]:.0f})")

        since, (cpu, _) = time.monotonic(), usage(process)
        time.sleep(10)
        share = (usage(process)[0] - cpu) / (time.monotonic() - since)
        print(f"with {len(followers)} followers and one job that is rendered: {100 * share:.1f} % of one core")

        status, told = call(address, "GET", f"/v1/jobs?state=queued&limit=200&before={max(jobs) + 1}")
        places = [(job["id"], job["ahead"]) for job in reversed(told["jobs"])]
        if status != 200 or [place for _, place in places] != sorted(place for _, place in places):
            sys.exit(f"jobs are not in the order in which they came: {places}")
        for job in sorted(jobs, reverse=True):
            call(address, "DELETE", f"/v1/jobs/{job}")
        for follower in followers:
            follower.join(60)
        dropped = [follower.job for follower in followers if follower.last != "failed"]
        if dropped:
            sys.exit(f"followers of {dropped} were not told the end")
        steps = followers[0].heard.count("step")
        if not steps:
            sys.exit("the first job was not rendered")
        print(f"every follower was told its job's end; that of the one that was rendered heard {steps} steps")


if __name__ == "__main__":
    main()
