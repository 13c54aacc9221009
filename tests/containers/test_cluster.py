"""Rollouts on Kubernetes' own control plane, under load: not a request may fail, and nothing worse comes in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.containers.cluster import Cluster, Way, control_plane
from tests.containers.conftest import TOKEN, Shipped
from tests.containers.node import Node, pods
from tests.serving import Load, load
from tests.test_serve import INFER, picture_request

from tenfold.ship.kubernetes import CANARY, STABLE, TRACK

NEWER = {"policy/v1": "policy/v1beta1", "autoscaling/v2": "autoscaling/v2beta2"}
"""Versions that Debian's Kubernetes, 1.20, does not have yet, and what they were called."""


@pytest.fixture(scope="session")
def programs() -> Path:
    """The control plane's."""
    return Path.home() / ".cache" / "tenfold-tests" / "control-plane"


@pytest.fixture(scope="module")
def cluster(programs: Path, tmp_path_factory) -> Iterator[Cluster]:
    with control_plane(programs, tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="module")
def node(cluster: Cluster, shipped: dict[str, Shipped], images) -> Iterator[Node]:
    """With the bundle's manifests applied, as they were written, and two pods that are ready."""
    written = [(p.name, p.read_text()) for p in sorted((shipped["one"].folder / "kubernetes").iterdir())]
    labels = _labels(shipped["one"])
    made = Node(cluster.api, images, labels)
    made.start()
    for name, text in written:
        cluster.kubectl("apply", "--validate=false", "--filename=-", given=older(text))
        if name.startswith("00"):
            cluster.kubectl("create", "secret", "generic", "small-token", "--namespace=tenfold", f"--from-literal=token={TOKEN}")
    until(lambda: len(ready(cluster)) == 2, seconds=90)
    yield made
    made.end()
    assert set(made.ended) <= {0}, "a pod that was asked to end ended otherwise"


def older(text: str) -> str:
    for new, old in NEWER.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    return text


def _labels(shipped: Shipped) -> dict[str, str]:
    from tenfold.bundle import Bundle
    from tenfold.ship.kubernetes import node_features

    return node_features(str(Bundle.load(shipped.bundle).manifest["cpu_class"]))


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.2)


def ready(cluster: Cluster, track: str = STABLE) -> list[str]:
    found = pods(cluster.api, **{TRACK: track})
    return [p["metadata"]["name"] for p in found if any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", ()))]


def image_of(cluster: Cluster) -> str:
    return str(cluster.api("GET", "/apis/apps/v1/namespaces/tenfold/deployments/small")["spec"]["template"]["spec"]["containers"][0]["image"])


@contextmanager
def unharmed(cluster: Cluster, clients: int = 4) -> Iterator[list[Load]]:
    """Under load of which not a request may fail."""
    way = Way(cluster.api, "small")
    way.start()
    until(lambda: bool(way.addresses))
    try:
        with load(way.port, INFER, picture_request(), clients=clients, headers={"Authorization": f"Bearer {TOKEN}"}) as found:
            time.sleep(1)
            yield found
            time.sleep(1)
        assert [f for c in found for f in c.failed] == []
        assert sum(c.answered for c in found) > 100
    finally:
        way.end()


def upgrade(cluster: Cluster, new: Shipped, old: Shipped, *options: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable, "-m", "tenfold.cli", "upgrade", str(new.bundle), "--kubernetes", "tenfold/small", "--image", new.image, "--from", str(old.bundle),
        "--uncertified", "--dearer", "--watch", "5s", "--most", "150s", *options,
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, check=False, env=cluster.environment())


def test_a_new_image_is_rolled_out_under_load(cluster, node, shipped) -> None:
    with unharmed(cluster):
        cluster.kubectl("set", "image", "deployment/small", f"serve={shipped['two'].image}", "--namespace=tenfold")
        cluster.kubectl("rollout", "status", "deployment/small", "--namespace=tenfold", "--timeout=180s")
    assert image_of(cluster) == shipped["two"].image
    with unharmed(cluster):
        cluster.kubectl("rollout", "undo", "deployment/small", "--namespace=tenfold")
        cluster.kubectl("rollout", "status", "deployment/small", "--namespace=tenfold", "--timeout=180s")
    assert image_of(cluster) == shipped["one"].image


def test_an_image_that_cannot_be_pulled_stalls_and_harms_nothing(cluster, node, shipped) -> None:
    with unharmed(cluster):
        cluster.kubectl("set", "image", "deployment/small", f"serve=test.example/small@sha256:{'1' * 64}", "--namespace=tenfold")
        time.sleep(8)
        assert len(ready(cluster)) == 2
        cluster.kubectl("rollout", "undo", "deployment/small", "--namespace=tenfold")
        cluster.kubectl("rollout", "status", "deployment/small", "--namespace=tenfold", "--timeout=180s")
    assert image_of(cluster) == shipped["one"].image


def test_a_pod_that_is_deleted_drops_nothing(cluster, node) -> None:
    until(lambda: len(ready(cluster)) == 2)
    with unharmed(cluster):
        gone = ready(cluster)[0]
        cluster.kubectl("delete", "pod", gone, "--namespace=tenfold", "--wait=true", "--timeout=90s")
        until(lambda: len(ready(cluster)) == 2 and gone not in ready(cluster))


def test_a_pod_that_is_killed_begins_anew(cluster, node) -> None:
    until(lambda: len(ready(cluster)) == 2)
    node.kill(killed := ready(cluster)[0])
    until(lambda: killed not in ready(cluster))
    until(lambda: killed in ready(cluster))


def test_an_upgrade_is_promoted_and_rolled_back_under_load(cluster, node, shipped) -> None:
    until(lambda: len(ready(cluster)) == 2)
    planned = upgrade(cluster, shipped["two"], shipped["one"], "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert image_of(cluster) == shipped["one"].image
    with unharmed(cluster):
        done = upgrade(cluster, shipped["two"], shipped["one"], "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["in_service"] == str(shipped["two"].bundle)
        assert image_of(cluster) == shipped["two"].image
        assert ready(cluster, CANARY) == []
    with unharmed(cluster):
        back = subprocess.run([sys.executable, "-m", "tenfold.cli", "rollback", "--kubernetes", "tenfold/small"], capture_output=True, text=True, check=False, env=cluster.environment())
        assert back.returncode == 0, back.stderr
        cluster.kubectl("rollout", "status", "deployment/small", "--namespace=tenfold", "--timeout=180s")
    assert image_of(cluster) == shipped["one"].image


def test_a_worse_bundle_is_taken_away_under_load(cluster, node, shipped) -> None:
    until(lambda: len(ready(cluster)) == 2)
    with unharmed(cluster):
        done = upgrade(cluster, shipped["other"], shipped["one"])
        assert done.returncode == 3, done.stderr
        assert "other classes" in done.stderr
    assert image_of(cluster) == shipped["one"].image
    assert pods(cluster.api, **{TRACK: CANARY}) == []


def test_what_is_not_there_or_not_allowed_is_named(cluster, node, shipped, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tenfold.cli", "rollback", "--kubernetes", "tenfold/small"]
    stranger = tmp_path / "stranger.conf"
    account = cluster.kubectl("get", "secret", "--namespace=tenfold", "--output=json")
    found = [s for s in json.loads(account)["items"] if s["type"] == "kubernetes.io/service-account-token" and s["metadata"]["annotations"]["kubernetes.io/service-account.name"] == "small"]
    from base64 import b64decode

    token = b64decode(found[0]["data"]["token"]).decode()
    text = cluster.configuration.read_text()
    stranger.write_text(text.replace(text.split("token: ")[1].split("}")[0], token))
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=cluster.environment() | {"KUBECONFIG": str(stranger)})
    assert (done.returncode, "does not let you get deployments.apps in tenfold" in done.stderr) == (2, True), done.stderr
    nowhere = tmp_path / "nowhere.conf"
    nowhere.write_text(text.replace("https://127.0.0.1:", "https://127.0.0.1:1").replace("127.0.0.1:1" + text.split("127.0.0.1:")[1].split('"')[0], "127.0.0.1:1"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=cluster.environment() | {"KUBECONFIG": str(nowhere)})
    assert (done.returncode, "kubectl auth failed" in done.stderr) == (2, True), done.stderr
    assert done.stderr.count("\n") == 1
