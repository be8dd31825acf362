"""Measures how fast each fabric carries 1 MiB values over loopback, by turns with other software that does
the same with nothing of ours around it: tcp beside iperf3, shm beside memcpy, quic beside quinn's bulk.

    cargo build --release --locked -p protocol --example throughput
    python3 throughput.py --example target/release/examples/throughput

`EXAMPLE WHAT --mib N --slots N` carries N MiB from one end to the other of WHAT (tcp, shm, quic, or the yardsticks
memcpy and quinn) and prints {"fabric": WHAT, "mb_per_s": ..., "cpu_s_per_gb": ...}: megabytes of 10^6 bytes,
processor time of both ends together. iperf3 sends in one stream in writes of 1 MiB. A figure is the median
over rounds; before the first, each is run once without being counted.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys

YARDSTICKS = {"tcp": "iperf3", "shm": "memcpy", "quic": "quinn"}
# No measurement takes longer than this many seconds.
LIMIT = 300


def example(program, what, mib, slots):
    command = [program, what, "--mib", str(mib), "--slots", str(slots)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != 1 or lines[0]["fabric"] != what:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode} and said:\n{done.stdout}{done.stderr}")
    return {name: float(lines[0][name]) for name in ("mb_per_s", "cpu_s_per_gb")}


def iperf3(mib, port):
    server = subprocess.Popen(
        ["iperf3", "--server", "--one-off", "--bind", "127.0.0.1", "--port", str(port), "--forceflush"],
        stdout=subprocess.PIPE, text=True,
    )
    try:
        while "listening" not in (line := server.stdout.readline()):
            if not line:
                raise SystemExit(f"iperf3 cannot listen on port {port}: give another with --port")
        command = ["iperf3", "--client", "127.0.0.1", "--port", str(port), "--length", "1M", "--bytes", f"{mib}M", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        return iperf3_figures(json.loads(done.stdout))
    finally:
        server.kill()
        server.wait()


def iperf3_figures(said):
    """Of its report: what arrived a second, and the processors of both ends."""
    if "error" in said:
        raise SystemExit(f"iperf3: {said['error']}")
    end = said["end"]
    received, used = end["sum_received"], end["cpu_utilization_percent"]
    processor = (used["host_total"] + used["remote_total"]) / 100 * received["seconds"]
    return {"mb_per_s": received["bits_per_second"] / 8e6, "cpu_s_per_gb": processor / (received["bytes"] / 1e9)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", required=True, metavar="PATH", help="protocol's example `throughput`")
    parser.add_argument("--fabrics", default=",".join(YARDSTICKS), help="[default: %(default)s]")
    parser.add_argument("--mib", type=int, default=2048, help="what each measurement carries [default: 2048]")
    parser.add_argument("--slots", type=int, default=16, help="values of a call; a link has two buffers for each [default: 16]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=5201, help="iperf3's [default: 5201]")
    parser.add_argument("--json", metavar="FILE", help="also write every round's figures")
    asked = parser.parse_args()
    fabrics = asked.fabrics.split(",")
    if not set(fabrics) <= set(YARDSTICKS):
        parser.error(f"--fabrics {asked.fabrics}: give some of {', '.join(YARDSTICKS)}")
    if "tcp" in fabrics and not shutil.which("iperf3"):
        parser.error("tcp is measured beside iperf3, which is not installed (Debian: apt-get install iperf3)")

    def once(what):
        return iperf3(asked.mib, asked.port) if what == "iperf3" else example(asked.example, what, asked.mib, asked.slots)

    whats = [what for fabric in fabrics for what in (fabric, YARDSTICKS[fabric])]
    rounds = {what: [] for what in whats}
    for number in range(asked.rounds + 1):
        for what in whats:
            figures = once(what)
            print(f"round {number} of {asked.rounds}: {what} {figures['mb_per_s']:.0f} MB/s", file=sys.stderr, flush=True)
            if number > 0:
                rounds[what].append(figures)
    median = lambda what, name: statistics.median(figures[name] for figures in rounds[what])
    print("| fabric | MB/s | CPU s/GB | beside | MB/s | CPU s/GB | share of its MB/s |\n|---|---|---|---|---|---|---|")
    for fabric in fabrics:
        beside = YARDSTICKS[fabric]
        (own, own_cpu), (other, other_cpu) = ((median(what, "mb_per_s"), median(what, "cpu_s_per_gb")) for what in (fabric, beside))
        print(f"| {fabric} | {own:.0f} | {own_cpu:.3f} | {beside} | {other:.0f} | {other_cpu:.3f} | {own / other:.2f} |")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(rounds, file, indent=1)


if __name__ == "__main__":
    main()
