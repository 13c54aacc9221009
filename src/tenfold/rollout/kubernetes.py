"""A Deployment on a cluster as a fleet, by kubectl and its configuration."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenfold.errors import TenfoldError
from tenfold.rollout.seen import Seen, read
from tenfold.ship.image import METRICS_PORT
from tenfold.ship.kubernetes import CANARY, CONTAINER, STABLE, TRACK, labels_of

ROLLOUT_SECONDS = 600
TRIES, AGAIN_SECONDS = 4, 3.0
"""To reach the cluster."""
UNREACHABLE = ("Unable to connect", "connection refused", "i/o timeout", "TLS handshake timeout", "context deadline exceeded", "was refused", "EOF")
BEFORE = "tenfold.dev/image-before"
"""Annotation of the deployment: what it ran before it was last promoted."""
NOT_COPIED = ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink", "annotations", "ownerReferences")
NEEDED = (
    ("get", "deployments.apps", ""), ("list", "deployments.apps", ""), ("watch", "deployments.apps", ""), ("create", "deployments.apps", ""),
    ("patch", "deployments.apps", ""), ("delete", "deployments.apps", ""), ("list", "pods", ""), ("get", "pods", "proxy"),
)  # fmt: skip
"""Verbs, what they are of, and the part of that."""


@dataclass(frozen=True)
class KubernetesFleet:
    """The pods of a Deployment that `tenfold ship` has described, and of a canary's beside it, behind the one Service.

    A canary's pods come beside the others, whose number an autoscaler may rule, so that its share is servers / (total + servers).
    """

    namespace: str
    name: str
    image: str | None
    """Of the new bundle, NAME@DIGEST; None: of a fleet that only goes back."""

    def check(self) -> None:
        """
        Raises:
            TenfoldError: kubectl, the cluster, the deployment or a right is not there, or the deployment is none of ours; which, is said.
        """
        for verb, what, part in NEEDED:
            words = [verb, what, *([f"--subresource={part}"] if part else []), f"--namespace={self.namespace}"]
            if self._kubectl("auth", "can-i", *words, allowed=(0, 1)).strip().splitlines()[-1:] != ["yes"]:
                raise TenfoldError(f"the cluster does not let you {verb} {what}{'/' + part if part else ''} in {self.namespace}: have the right given to you, or another --kubernetes")
        spec = self._get(self.name)["spec"]
        if spec["selector"]["matchLabels"].get(TRACK) != STABLE or [c["name"] for c in spec["template"]["spec"]["containers"]] != [CONTAINER]:
            raise TenfoldError(f"{self.namespace}/{self.name} is no deployment that tenfold ship has written: upgrade it with what wrote it")

    @property
    def has_canary(self) -> bool:
        return bool(self._kubectl("get", "deployment", f"{self.name}-{CANARY}", "--ignore-not-found", "--output=name").strip())

    def running(self) -> str:
        """The image of the stable track."""
        return str(self._get(self.name)["spec"]["template"]["spec"]["containers"][0]["image"])

    def count(self) -> int:
        return max(1, int(self._get(self.name)["status"].get("readyReplicas", 0)))

    def of_canary(self, stable: Mapping[str, Any], count: int) -> dict[str, Any]:
        """The canary's deployment: that of the stable track with another image and label."""
        found = copy.deepcopy(dict(stable))
        found.pop("status", None)
        meta = {k: v for k, v in found["metadata"].items() if k not in NOT_COPIED}
        found["metadata"] = meta | {"name": f"{self.name}-{CANARY}", "labels": {**meta.get("labels", {}), TRACK: CANARY}}
        spec = found["spec"]
        spec["replicas"] = count
        spec["selector"]["matchLabels"][TRACK] = CANARY
        spec["template"]["metadata"]["labels"][TRACK] = CANARY
        spec["template"]["spec"]["containers"][0]["image"] = self.image
        return found

    def canary(self, count: int) -> None:
        if count:
            self._kubectl("apply", "--filename=-", given=json.dumps(self.of_canary(self._get(self.name), count)))
        else:
            self._kubectl("delete", "deployment", f"{self.name}-{CANARY}", "--ignore-not-found", "--wait=false")

    def promote(self) -> None:
        before = self.running()
        assert self.image is not None
        try:
            self._run(self.image, before)
            self._kubectl("rollout", "status", f"deployment/{self.name}", f"--timeout={ROLLOUT_SECONDS}s", seconds=ROLLOUT_SECONDS + 10)
        except BaseException:
            self._run(before, "")
            raise
        self.canary(0)

    def back(self) -> str:
        """Take a canary away; or else run what ran before the last promotion. In words, which.

        Raises:
            TenfoldError: nothing is known of what ran before.
        """
        if self.has_canary:
            self.canary(0)
            return "the canary is taken away"
        before = self._get(self.name)["metadata"].get("annotations", {}).get(BEFORE)
        if not before:
            raise TenfoldError(f"{self.namespace}/{self.name} does not say what ran before (annotation {BEFORE}): name it with tenfold upgrade")
        self._run(before, "")
        return f"{before} is put in service again"

    def _run(self, image: str, before: str) -> None:
        patch = {"metadata": {"annotations": {BEFORE: before}}, "spec": {"template": {"spec": {"containers": [{"name": CONTAINER, "image": image}]}}}}
        self._kubectl("patch", "deployment", self.name, "--type=strategic", f"--patch={json.dumps(patch)}")

    def settled(self) -> bool:
        found = self._get(self.name)
        status, wanted = found["status"], found["spec"]["replicas"]
        done = status.get("observedGeneration") == found["metadata"]["generation"] and status.get("updatedReplicas") == status.get("availableReplicas") == status.get("replicas") == wanted
        return bool(done) and not self._pods(CANARY)

    def ready(self, track: str) -> int:
        return sum(_is_ready(pod) for pod in self._pods(track))

    def seen(self, track: str) -> Mapping[str, Seen]:
        return {_name_of(pod): self._asked(pod["metadata"]["name"]) for pod in self._pods(track) if _is_ready(pod)}

    def _asked(self, pod: str) -> Seen:
        """
        Raises:
            TenfoldError: the pod is there, and its metrics cannot be read.
        """
        try:
            return read(self._kubectl("get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{METRICS_PORT}/proxy/metrics"))
        except TenfoldError as error:
            if not self._kubectl("get", "pod", pod, "--ignore-not-found", "--output=name").strip():
                return Seen()  # it has just gone
            raise TenfoldError(f"{error}; metrics are read through the API server: let its addresses in with the chart's value metrics.cidrs") from error

    def _pods(self, track: str) -> list[dict[str, Any]]:
        chosen = ",".join(f"{k}={v}" for k, v in (labels_of(self.name) | {TRACK: track}).items())
        found: list[dict[str, Any]] = json.loads(self._kubectl("get", "pods", f"--selector={chosen}", "--output=json"))["items"]
        return found

    def _get(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._kubectl("get", "deployment", name, "--output=json"))
        return found

    def _kubectl(self, *words: str, given: str | None = None, allowed: tuple[int, ...] = (0,), seconds: float = 10.0) -> str:
        """What kubectl says, in the namespace; tried anew where the cluster is out of reach.

        Args:
            given: on its standard input.
            allowed: exit codes.

        Raises:
            TenfoldError: it is not installed, cannot reach the cluster, or refuses.
        """
        if shutil.which("kubectl") is None:
            raise TenfoldError("kubectl is not installed: install it, or upgrade the servers of a --pool")
        for left in reversed(range(TRIES)):
            words_ = ["kubectl", *words, f"--namespace={self.namespace}", f"--request-timeout={seconds:.0f}s"]
            done = subprocess.run(words_, input=given, capture_output=True, text=True, check=False)
            if done.returncode in allowed and not (done.returncode and any(sign in done.stderr for sign in UNREACHABLE)):
                return done.stdout
            if not left or not any(sign in done.stderr for sign in UNREACHABLE):
                break
            time.sleep(AGAIN_SECONDS)
        raise TenfoldError(f"kubectl {words[0]} failed: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")


def fleet_of(text: str, image: str | None) -> KubernetesFleet:
    """Of NAMESPACE/NAME.

    Raises:
        TenfoldError: it is none, or cannot be reached.
    """
    namespace, slash, name = text.partition("/")
    if not slash or not namespace or not name:
        raise TenfoldError(f"{text!r} is no deployment: give NAMESPACE/NAME")
    if image is not None and "@sha256:" not in image:
        raise TenfoldError(f"{image!r} may mean another image tomorrow: give NAME@sha256:…, as tenfold ship prints it")
    fleet = KubernetesFleet(namespace, name, image)
    fleet.check()
    return fleet


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _name_of(pod: Mapping[str, Any]) -> str:
    """With how often its container began anew, as its counters do then."""
    return f"{pod['metadata']['name']}#{sum(c.get('restartCount', 0) for c in pod['status'].get('containerStatuses', ()))}"
