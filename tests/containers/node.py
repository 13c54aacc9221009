"""A node of a test cluster: runs the pods that are bound to it through podman, as hardened as they ask to be, and says how they are.

What it does of a kubelet's work: containers by digest, secrets as files, limits, the startup and readiness probes, restarts, an end with grace. What it does not: any
network but podman's bridge, liveness probes, exec, logs.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.containers.api import Api

NAME = "node-1"
LOOK_SECONDS = 0.25


def podman(*words: str, check: bool = True) -> str:
    done = subprocess.run(["podman", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


def address_of(container: str) -> str:
    return podman("inspect", "--format={{.NetworkSettings.Networks.podman.IPAddress}}", container)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class _Running:
    container: str = ""
    address: str = ""
    restarts: int = 0
    started: bool = False
    """Whether its startup probe has held."""
    ready: bool = False
    waits: str = "ContainerCreating"
    """Why it does not run."""
    ending: bool = False
    probed: float = 0.0
    said: Any = None
    files: list[Path] = field(default_factory=list)


class Node(threading.Thread):
    """Works until it is told to end; then its containers are gone."""

    def __init__(self, api: Api, images: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """
        Args:
            images: what podman calls them, by digest; others cannot be pulled.
        """
        super().__init__(daemon=True)
        self.api, self.images, self.labels = api, images, dict(labels)
        self.ending = threading.Event()
        self.ended: list[int] = []
        """Exit codes of what was asked to end."""
        self._pods: dict[str, _Running] = {}
        self._folder = Path(tempfile.mkdtemp())

    def run(self) -> None:
        self.api("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME} | self.labels}})
        beaten = 0.0
        while not self.ending.is_set():
            if time.monotonic() - beaten > 5:
                beaten = time.monotonic()
                self._beat()
            found = self.api("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={NAME}")
            for pod in found["items"]:
                self._look(pod)
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        self.ending.set()
        self.join(30)
        for one in self._pods.values():
            if one.container:
                podman("rm", "--force", "--time=0", one.container, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self, pod: str) -> None:
        """SIGKILL to the process of a pod."""
        uid = self.api("GET", f"/api/v1/namespaces/tenfold/pods/{pod}")["metadata"]["uid"]
        podman("kill", "--signal=KILL", self._pods[uid].container)

    def _beat(self) -> None:
        amounts = {"cpu": "16", "memory": "16Gi", "pods": "50"}
        condition = {"type": "Ready", "status": "True", "reason": "Test", "lastHeartbeatTime": now(), "lastTransitionTime": now()}
        self.api.patch(f"/api/v1/nodes/{NAME}/status", {"status": {"capacity": amounts, "allocatable": amounts, "conditions": [condition]}})

    def _look(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        one = self._pods.setdefault(uid, _Running())
        if one.ending:
            return
        if "deletionTimestamp" in pod["metadata"]:
            one.ending = True
            threading.Thread(target=self._end, args=(pod, one), daemon=True).start()
            return
        if not one.container:
            self._begin(pod, one)
        elif podman("inspect", "--format={{.State.Running}}", one.container, check=False) != "true":
            one.started = one.ready = False
            one.restarts += 1
            podman("start", one.container)
            one.address = address_of(one.container)
        else:
            self._probe(pod["spec"]["containers"][0], one)
        self._say(pod, one)

    def _begin(self, pod: dict[str, Any], one: _Running) -> None:
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        image = self.images.get(container["image"].partition("@")[2])
        if image is None:
            one.waits = "ErrImagePull"
            return
        rights, limits = container["securityContext"], container["resources"]["limits"]
        assert rights["readOnlyRootFilesystem"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert not rights["allowPrivilegeEscalation"]
        words = [
            "run", "--detach", "--network=podman", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", f"--user={rights['runAsUser']}:{rights['runAsGroup']}",
            f"--memory={limits['memory'].lower().removesuffix('i')}", f"--cpus={limits['cpu']}", "--pids-limit=128",
        ]  # fmt: skip
        for mount in container["volumeMounts"]:
            volume = next(v for v in spec["volumes"] if v["name"] == mount["name"])
            secret = self.api("GET", f"/api/v1/namespaces/{pod['metadata']['namespace']}/secrets/{volume['secret']['secretName']}")
            if secret is None:
                one.waits = "CreateContainerConfigError"
                return
            folder = self._folder / f"{pod['metadata']['uid']}-{volume['name']}"
            folder.mkdir(exist_ok=True)
            for name, content in secret["data"].items():
                (folder / name).write_bytes(b64decode(content))
            words.append(f"--volume={folder}:{mount['mountPath']}:ro")
        one.container = podman(*words, image, *container["args"])
        one.address = address_of(one.container)

    def _probe(self, container: dict[str, Any], one: _Running) -> None:
        probe = container["readinessProbe" if one.started else "startupProbe"]
        if time.monotonic() - one.probed < probe["periodSeconds"] and one.started:
            return
        one.probed = time.monotonic()
        port = next(p["containerPort"] for p in container["ports"] if p["name"] == probe["httpGet"]["port"])
        try:
            with urllib.request.urlopen(f"http://{one.address}:{port}{probe['httpGet']['path']}", timeout=probe["timeoutSeconds"]):
                one.started = one.ready = True
        except (urllib.error.URLError, OSError):
            one.ready = False

    def _end(self, pod: dict[str, Any], one: _Running) -> None:
        if one.container:
            podman("stop", f"--time={pod['metadata'].get('deletionGracePeriodSeconds', 30)}", one.container, check=False)
            self.ended.append(int(podman("inspect", "--format={{.State.ExitCode}}", one.container)))
            podman("rm", "--force", one.container, check=False)
            one.container = ""
        where = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self.api("DELETE", where, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}})

    def _say(self, pod: dict[str, Any], one: _Running) -> None:
        """Its status, where that has changed."""
        ready = "True" if one.ready else "False"
        said = (bool(one.container), ready, one.restarts, one.address, one.waits)
        if said == one.said:
            return
        one.said = said
        conditions = [{"type": t, "status": s, "lastTransitionTime": now()} for t, s in (("Initialized", "True"), ("PodScheduled", "True"), ("ContainersReady", ready), ("Ready", ready))]
        state = {"running": {"startedAt": now()}} if one.container else {"waiting": {"reason": one.waits}}
        container = pod["spec"]["containers"][0]
        status = {
            "phase": "Running" if one.container else "Pending", "conditions": conditions, "hostIP": "127.0.0.1", "podIP": one.address or None,
            "podIPs": [{"$patch": "replace"}, {"ip": one.address}] if one.address else None,
            "containerStatuses": [{
                "name": container["name"], "image": container["image"], "imageID": container["image"], "ready": one.ready, "restartCount": one.restarts, "started": one.started, "state": state,
            }],
        }  # fmt: skip
        self.api.patch(f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status", {"status": status})


def pods(api: Api, **labels: str) -> list[dict[str, Any]]:
    chosen = ",".join(f"{k}={v}" for k, v in labels.items())
    found: list[dict[str, Any]] = api("GET", f"/api/v1/namespaces/tenfold/pods?labelSelector={chosen}")["items"]
    return [p for p in found if "deletionTimestamp" not in p["metadata"]]

