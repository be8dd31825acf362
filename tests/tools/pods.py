"""Runs the pods of deploy/kubernetes as a kubelet would, in the Docker engine, where there is no Kubernetes: the same
commands, variables, users, rights, volumes and probes, and what docs/kubernetes.md has people type. What it cannot do:
Services' addresses, policies of the network, whatever a kubelet knows besides.

    kubectl kustomize deploy/kubernetes/base >base.yaml
    kubectl kustomize deploy/kubernetes/overlays/http >http.yaml
    sudo python3 tests/tools/pods.py IMAGE base.yaml http.yaml
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

TOKEN = "tessera-token"  # the Secret
MODES = {"volume": 0o2775, "empty": 0o777, "secret": 0o755}


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"failed: docker {' '.join(arguments)}: {done.stderr}{done.stdout}")
    return done.stdout.strip()


def until(what: str, is_so, seconds: int = 60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := is_so():
            return found
        time.sleep(0.2)
    sys.exit(f"failed: in {seconds} s it did not come to: {what}")


def ask(url: str, key: str | None = None, body: dict | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


class Cluster:
    def __init__(self, image: str, folder: pathlib.Path):
        self.image, self.folder = image, folder
        self.name = f"tessera-pods-{os.getpid()}"
        self.sets: dict[str, dict] = {}
        self.services: dict[str, dict] = {}
        self.started: list[str] = []
        docker("network", "create", self.name)

    def apply(self, built: str):
        """Takes what is to be from a file of objects; pods that run stay as they are."""
        objects = [each for each in yaml.safe_load_all(pathlib.Path(built).read_text()) if each]
        named = {kind: {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == kind}
                 for kind in ("StatefulSet", "Service")}
        self.sets, self.services = named["StatefulSet"], named["Service"]

    def container(self, pod: str) -> str:
        return f"{self.name}-{pod}"

    def directory(self, kind: str, *name: str) -> pathlib.Path:
        path = self.folder.joinpath(*name)
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, 0, 65532)
            path.chmod(MODES[kind])
        return path

    def volumes(self, pod: str, spec: dict) -> dict[str, pathlib.Path]:
        """Where the volumes of a pod are on this machine."""
        claimed = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
        found = {name: self.directory("volume", pod, name) for name in claimed}
        for volume in spec["template"]["spec"]["volumes"]:
            name = volume["name"]
            if "secret" in volume:
                found[name] = self.directory("secret", volume["secret"]["secretName"])
            elif volume.get("emptyDir") == {}:
                found[name] = self.directory("empty", pod, name)
            else:
                sys.exit(f"failed: {pod}: a volume of a kind that this tool does not know: {volume}")
        return found

    def options(self, pod: str, spec: dict, container: dict) -> list[str]:
        """What `docker run` has to be told of a container."""
        template = spec["template"]["spec"]
        user, own = template["securityContext"], container["securityContext"]
        assert user["runAsNonRoot"] and user["runAsUser"] and own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"] and user["seccompProfile"] == {"type": "RuntimeDefault"}
        given = ["--network", self.name, "--network-alias", spec["serviceName"], "--hostname", pod, "--no-healthcheck"]
        given += ["--user", f"{user['runAsUser']}:{user['runAsGroup']}", "--group-add", str(user["fsGroup"])]
        given += ["--read-only", "--security-opt", "no-new-privileges", "--workdir", container["workingDir"]]
        given += [word for right in own["capabilities"]["drop"] for word in ("--cap-drop", right)]
        limits = container["resources"]["limits"]
        given += ["--memory", limits["memory"].replace("Mi", "m").replace("Gi", "g")]
        # The engine refuses more processors than there are.
        given += ["--cpus", str(min(int(limits["cpu"]), os.cpu_count() or 1))] if "cpu" in limits else []
        for mount in container["volumeMounts"]:
            path = self.volumes(pod, spec)[mount["name"]]
            given += ["--volume", f"{path}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"]
        for variable, value in self.variables(pod, container).items():
            given += ["--env", f"{variable}={value}"]
        return given

    @staticmethod
    def variables(pod: str, container: dict) -> dict[str, str]:
        fields = {"metadata.name": pod}
        return {
            each["name"]: each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in container.get("env", [])
        }

    def start(self, pod: str):
        spec = self.sets[pod.rsplit("-", 1)[0]]
        template = spec["template"]["spec"]
        for container in template.get("initContainers", []):
            docker("run", "--rm", *self.options(pod, spec, container), self.image, *container["args"])
        (container,) = template["containers"]
        variables = self.variables(pod, container)
        words = [*container.get("command", []), *container["args"]]
        words = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in words]
        name = self.container(pod)
        self.started.append(name)
        docker("run", "--detach", "--name", name, *self.options(pod, spec, container), self.image, *words)

    def stop(self, pod: str) -> int:
        """SIGTERM, and no more within the time that its pod has; the exit code."""
        spec = self.sets[pod.rsplit("-", 1)[0]]["template"]["spec"]
        name = self.container(pod)
        docker("stop", "--time", str(spec.get("terminationGracePeriodSeconds", 30)), name)
        code = int(docker("inspect", "--format", "{{ .State.ExitCode }}", name))
        docker("rm", name)
        self.started.remove(name)
        return code

    def exec(self, pod: str, *words: str) -> str:
        return docker("exec", self.container(pod), *words)

    def coordinator(self) -> dict:
        (container,) = self.sets["coordinator"]["template"]["spec"]["containers"]
        return container

    def probe(self, which: str) -> int:
        """What the coordinator's container says to a probe: a status of HTTP, 0 if there is none, or a command's exit code."""
        probe = self.coordinator()[which]
        if "exec" in probe:
            return subprocess.run(["docker", "exec", self.container("coordinator-0"), *probe["exec"]["command"]],
                                  capture_output=True, timeout=probe["timeoutSeconds"]).returncode
        return ask(f"{self.url(probe['httpGet']['port'])}{probe['httpGet']['path']}")[0]

    def url(self, port: str) -> str:
        (number,) = [each["containerPort"] for each in self.coordinator()["ports"] if each["name"] == port]
        template = "{{ range .NetworkSettings.Networks }}{{ .IPAddress }}{{ end }}"
        return f"http://{docker('inspect', '--format', template, self.container('coordinator-0'))}:{number}"

    def workers(self) -> list[str]:
        return [each["name"] for each in json.loads(self.exec("coordinator-0", "coordinator", "status", "--json"))["workers"]]

    def end(self, failed: bool):
        for name in self.started:
            if failed:
                print(f"{name}:", flush=True)
                subprocess.run(["docker", "logs", "--tail", "20", name])
            docker("rm", "--force", name, check=False)
        docker("network", "rm", self.name, check=False)


def render(cluster: Cluster, key: str):
    # The Service of the page sends to this port of the container.
    url = cluster.url(cluster.services["tessera"]["ports"][0]["targetPort"])
    body = {"prompt": "red apple", "seed": 1, "width": 128, "height": 128, "steps": 4, "workers": 2}
    status, answer = ask(f"{url}/v1/jobs", None, body)
    assert status == 401, (status, answer)
    status, answer = ask(f"{url}/v1/jobs", key, body)
    assert status == 202, (status, answer)
    image = f"{url}/v1/jobs/{json.loads(answer)['id']}/image"
    png = until("an image", lambda: (lambda got: got[0] == 200 and got[1])(ask(image, key)))
    assert png.startswith(b"\x89PNG"), png[:40]


def check(cluster: Cluster, base: str, http: str):
    cluster.apply(base)
    cluster.start("coordinator-0")
    until("a coordinator that lives", lambda: cluster.probe("startupProbe") == 0)
    assert cluster.probe("livenessProbe") == 0

    token = cluster.exec("coordinator-0", "coordinator", "token", "--uses", "2", "--for", "24h")
    (cluster.directory("secret", TOKEN) / "worker").write_text(token)
    cluster.start("worker-0")
    cluster.start("worker-1")
    until("two workers", lambda: sorted(cluster.workers()) == ["worker-0", "worker-1"])
    small = ["--width", "128", "--height", "128", "--steps", "4", "--workers", "2"]
    cluster.exec("coordinator-0", "coordinator", "submit", "red apple", "--out", "apple.png", *small)
    picture = cluster.directory("volume", "coordinator-0", "state") / "apple.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    print("- base: two workers came with a token, a command rendered an image")

    for worker in ("worker-0", "worker-1"):
        assert (code := cluster.stop(worker)) == 0, code
    key = cluster.exec("coordinator-0", "coordinator", "key", "new", "alice")
    assert (code := cluster.stop("coordinator-0")) == 0, code
    cluster.apply(http)
    cluster.start("coordinator-0")
    until("a coordinator that lives", lambda: cluster.probe("startupProbe") == 200)
    assert cluster.probe("livenessProbe") == 200
    assert cluster.probe("readinessProbe") == 503, "ready without a worker"
    # The token is used up: by their own keys.
    cluster.start("worker-0")
    cluster.start("worker-1")
    until("two workers", lambda: len(cluster.workers()) == 2)
    assert cluster.probe("readinessProbe") == 200
    render(cluster, key)
    print("- http: all stopped with 0, others in their places went on with their volumes; an image over HTTP with a key")


def main(image: str, base: str, http: str):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tessera-pods-"))
    cluster, failed = Cluster(image, folder), True
    try:
        check(cluster, base, http)
        failed = False
    finally:
        cluster.end(failed)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
