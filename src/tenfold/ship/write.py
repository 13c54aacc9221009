"""`tenfold ship`: a bundle as an image and as manifests, in a folder.

    OUT/image/                 the OCI layout
    OUT/containerfile/         the same, for docker, podman or buildah
    OUT/kubernetes/*.yaml      for kubectl apply -f
    OUT/chart/                 for helm
    OUT/training/*.yaml        updates by the clock, where they are asked for
    OUT/ship.json              what was written, with digests and what was measured
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold import __version__
from tenfold.bundle import Bundle
from tenfold.errors import TenfoldError
from tenfold.ship import kubernetes, training
from tenfold.ship.image import BrokenImageError, Image, build, named, write_containerfile
from tenfold.ship.kubernetes import Shipped
from tenfold.ship.measured import Taken, measure
from tenfold.ship.yaml import plain, schema, template, values_file
from tenfold.store import unwritable, write_atomic

CHART_VERSION = "0.1.0"
NAME = re.compile(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?")
"""Of what is on a cluster: with room for what is put behind it in names of 52 (CronJobs) and 63."""
NOTES = """\
{name} is served at {{{{ ternary "http" "https" (empty .Values.tls.secretName) }}}}://{name}.{{{{ .Release.Namespace }}}}.svc within the cluster, by the Open Inference Protocol v2.
Its pods go to nodes that node-feature-discovery has labelled with what they need; without it, set nodeSelector=null.

It lets in who has a token. If there is none yet:

    kubectl create secret generic {{{{ .Values.token.secretName }}}} --namespace {{{{ .Release.Namespace }}}} --from-file=token=FILE

where FILE has a token a line, such as `openssl rand -hex 32` writes.
"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be shipped, and how."""

    image: str
    """NAME:TAG."""
    out: Path
    name: str | None = None
    """On the cluster; None: of the bundle."""
    namespace: str = "tenfold"
    rate: float = 20.0
    """Requests a second that a pod is planned for."""
    push: bool = False
    sign: str | None = None
    """A key of cosign's."""
    training_image: str | None = None
    claim: str = "tenfold-data"
    schedule: str = "0 3 * * *"
    workers: int = 2


def ship(path: Path, asked: Asked, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Write it all, and say what was written.

    Raises:
        TenfoldError: the bundle, a name or a tool is not to be used.
    """
    bundle = Bundle.load(path)
    repository, tag = named(asked.image)
    name = _name(asked.name or str(bundle.manifest.get("workload") or path.resolve().name))
    if not NAME.fullmatch(asked.namespace) or len(asked.schedule.split()) != 5:
        raise TenfoldError(f"namespace {asked.namespace!r} or schedule {asked.schedule!r} is none: give a name of small letters, digits and hyphens, and five fields as cron has them")
    _check_empty(asked.out)
    say("measuring what its server takes")
    taken = measure(bundle)
    try:
        write_containerfile(bundle, repository, tag, asked.out / "containerfile")
        say("building the image")
        image, missing = _image(bundle, repository, tag, asked.out / "image")
        shipped = Shipped(
            name=name, namespace=asked.namespace, repository=repository, digest=image.digest if image else f"sha256:{'0' * 64}",
            cpu_class=str(bundle.manifest["cpu_class"]), threads=bundle.session.threads, dearest_seconds=kubernetes.dearest_seconds(bundle.costs),
            peak_bytes=taken.peak_bytes, rate=asked.rate,
        )  # fmt: skip
        write_plain(shipped, asked.out / "kubernetes")
        write_chart(shipped, str(bundle.manifest.get("workload", name)), asked.out / "chart")
        if asked.training_image is not None:
            write_training(asked, name, asked.out / "training")
        document = _document(asked, shipped, image, taken, missing)
        _put(asked.out / "ship.json", json.dumps(document, indent=1))
    except OSError as error:
        raise unwritable(asked.out, error) from error
    if missing is not None:
        say(missing)
    if asked.push or asked.sign is not None:
        if image is None:
            raise TenfoldError(f"there is no image to push: {missing}")
        push(image)
        say(f"pushed {image.name}@{image.digest}")
    if asked.sign is not None and image is not None:
        sign(image, asked.sign)
        say(f"signed {image.name}@{image.digest}")
    return document


def _image(bundle: Bundle, repository: str, tag: str, folder: Path) -> tuple[Image | None, str | None]:
    """The image; or none and why, where a tool for it is missing: the rest is of use all the same."""
    try:
        return build(bundle, repository, tag, folder), None
    except BrokenImageError:
        raise
    except TenfoldError as error:
        return None, f"no image was written: {error}; put its digest into the manifests once it is built"


def _name(text: str) -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if not NAME.fullmatch(name):
        raise TenfoldError(f"{text!r} is no name on a cluster: give --name, of small letters, digits and hyphens, 45 at the most")
    return name


def _check_empty(out: Path) -> None:
    if out.is_file():
        raise TenfoldError(f"{out} is a file: choose another --out")
    if out.exists() and any(out.iterdir()) and not (out / "ship.json").exists():
        raise TenfoldError(f"{out} holds something that was not shipped: choose another --out")
    shutil.rmtree(out, ignore_errors=True)


def write_plain(shipped: Shipped, folder: Path) -> None:
    """Files for `kubectl apply -f`."""
    for file, tree in kubernetes.objects(shipped, in_chart=False).items():
        _put(folder / file, plain(tree))


def write_chart(shipped: Shipped, model: str, folder: Path) -> None:
    """A Helm chart."""
    values = list(kubernetes.values(shipped).values())
    chart = {
        "apiVersion": "v2", "name": shipped.name, "version": CHART_VERSION, "appVersion": shipped.digest[7:19], "type": "application",
        "description": f"{model}, served by Tenfold", "kubeVersion": f">={kubernetes.OLDEST}.0-0",
    }  # fmt: skip
    _put(folder / "Chart.yaml", plain(chart))
    _put(folder / "values.yaml", values_file(values))
    _put(folder / "values.schema.json", json.dumps(schema(values), indent=1))
    _put(folder / "templates" / "NOTES.txt", NOTES.format(name=shipped.name))
    for file, tree in kubernetes.objects(shipped, in_chart=True).items():
        _put(folder / "templates" / file, template(tree))


def write_training(asked: Asked, name: str, folder: Path) -> None:
    """Updates by the clock."""
    assert asked.training_image is not None
    wanted = training.Training(
        name=name, namespace=asked.namespace, image=asked.training_image, claim=asked.claim, schedule=asked.schedule, workers=asked.workers, cpu=2, memory="8Gi",
    )  # fmt: skip
    for file, tree in training.objects(wanted).items():
        _put(folder / file, plain(tree))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def push(image: Image) -> None:
    """By skopeo, which keeps the digest.

    Raises:
        TenfoldError: skopeo is not installed, or fails.
    """
    _tool("skopeo", ["copy", "--preserve-digests", f"oci:{image.folder}:{image.tag}", f"docker://{image.name}:{image.tag}"], "push the layout with another tool")


def sign(image: Image, key: str) -> None:
    """By cosign, the digest.

    Raises:
        TenfoldError: cosign is not installed, or fails.
    """
    _tool("cosign", ["sign", "--yes", "--tlog-upload=false", f"--key={key}", f"{image.name}@{image.digest}"], "sign the digest with another tool")


def _tool(name: str, words: list[str], otherwise: str) -> None:
    if shutil.which(name) is None:
        raise TenfoldError(f"{name} is not installed: install it, or {otherwise}; what was written stands")
    done = subprocess.run([name, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TenfoldError(f"{name} failed ({(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}): what was written stands")


def _document(asked: Asked, shipped: Shipped, image: Image | None, taken: Taken, missing: str | None) -> dict[str, Any]:
    requests, limits = kubernetes.resources(shipped)
    return {
        "schema": 1, "tenfold": __version__, "name": shipped.name, "namespace": shipped.namespace,
        "image": None if image is None else {"name": image.name, "tag": image.tag, "digest": image.digest, "bytes": image.bytes},
        "no_image_because": missing, "measured": dataclasses.asdict(taken), "rate": asked.rate, "requests": requests, "limits": limits,
    }  # fmt: skip
