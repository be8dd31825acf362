"""Puts a link that has the rate, delay and loss that were asked for between the two nodes of deploy/compose.link.yaml,
until it is ended: then the nodes no longer reach each other, though the coordinator still does.

    docker-compose -f deploy/compose.yaml -f deploy/compose.link.yaml up -d
    sudo python3 compose_link.py --rate 1gbit --delay 2ms --loss 1%

Workers that did not find the link's address when they started are started again by Docker, within seconds.
"""

import argparse
import os
import signal
import subprocess

import namespaces
from emulated_link import Link, Namespace, Setting


class ContainersNamespace(Namespace):
    """The network of a container, which stays Docker's."""

    def __init__(self, project, service):
        labels = {"project": project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        said = lambda *command: subprocess.run(["docker", *command], capture_output=True, text=True, check=True).stdout.split()
        found = said("ps", "--quiet", *filters)
        if len(found) != 1:
            raise SystemExit(f"{len(found)} containers of the service {service} run in the project {project}")
        [process] = said("inspect", "--format={{.State.Pid}}", *found)
        self.file = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="deploy", help="Compose's name of it [%(default)s]")
    parser.add_argument("--rate", type=namespaces.rate, default=None, help="such as 1gbit [no limit]")
    parser.add_argument("--delay", type=namespaces.delay, default=0.0, help="of a round trip, such as 2ms [none]")
    parser.add_argument("--loss", type=namespaces.loss, default=0.0, help="each way, such as 1%% [none]")
    asked = parser.parse_args()
    setting = Setting(asked.rate, asked.delay, asked.loss)
    nodes = [ContainersNamespace(asked.project, node) for node in ("node-a", "node-b")]
    link = Link(nodes, "wire", namespaces.NODES, setting)
    try:
        print(f"linked: {setting}", flush=True)
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)
    finally:
        ways = link.read()
        link.close()
        print(*(f"{end}: {way}" for end, way in zip(namespaces.NODES, ways)), sep="\n")


if __name__ == "__main__":
    main()
