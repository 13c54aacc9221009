"""The image of a bundle: Debian's interpreter, the packages that serving needs, Tenfold without what trains, and the bundle."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tenfold import __version__
from tenfold.bundle import Bundle
from tenfold.errors import TenfoldError
from tenfold.ship.oci import File, content_of, digest_of, layer, packed, tree, write_layout
from tenfold.ship.packages import compiled, installed, pins
from tenfold.ship.root import PYTHON, Root, root
from tenfold.store import write_atomic

UID = 65532
"""Of the process, and of its group; nobody else's."""
PORT, METRICS_PORT = 8080, 8081
AT, BUNDLE = "app", "bundle"
"""Where code and bundle are in the image."""
MODULES = ("__init__", "bundle", "device", "engine", "errors", "limits", "recipe", "statistics", "store", "py.typed", "data/__init__", "data/sources", "data/split", "serve/*")
"""Of Tenfold, that serving imports."""
IMAGE = re.compile(r"(?P<name>(?:[a-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:(?:[._-]+|/)[a-z0-9]+)*):(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})")


class BrokenImageError(TenfoldError):
    """What was built does not serve."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    machine: str
    """By the kernel's name."""
    name: str
    """By Go's and Debian's."""
    loader: str
    """Of programs, a file beside Debian's libraries."""

    @property
    def libraries(self) -> str:
        return f"usr/lib/{self.machine}-linux-gnu"


ARCHITECTURES = {a.machine: a for a in (
    Architecture(machine="x86_64", name="amd64", loader="ld-linux-x86-64.so.2"), Architecture(machine="aarch64", name="arm64", loader="ld-linux-aarch64.so.1"),
)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Image:
    """One that was written."""

    name: str
    """Without a tag."""
    tag: str
    folder: Path
    """Of the layout."""
    digest: str
    bytes: int
    """Compressed."""


def named(text: str) -> tuple[str, str]:
    """Name and tag.

    Raises:
        TenfoldError: it is no name of an image.
    """
    match = IMAGE.fullmatch(text)
    if match is None:
        raise TenfoldError(f"{text!r} is no image: give NAME:TAG, such as registry.example.org/team/model:1")
    return match["name"], match["tag"]


def architecture_of(bundle: Bundle) -> Architecture:
    """Of the machine that a bundle was certified on.

    Raises:
        TenfoldError: it is another.
    """
    machine = str(bundle.manifest["cpu_class"]).partition("+")[0]
    if machine not in ARCHITECTURES:
        raise TenfoldError(f"an image for {machine} is not known how to be made: certify the bundle on {' or '.join(ARCHITECTURES)}")
    return ARCHITECTURES[machine]


def epoch() -> int:
    """Seconds, the time of all files: SOURCE_DATE_EPOCH, or 0, so that the same content has the same digest."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not (text.isascii() and text.isdigit()):
        raise TenfoldError(f"SOURCE_DATE_EPOCH is {text!r}: give seconds, a whole number")
    return int(text)


def build(bundle: Bundle, name: str, tag: str, folder: Path) -> Image:
    """Write the image of a bundle as a layout.

    Raises:
        TenfoldError: a tool or a package is missing.
    """
    architecture, when = architecture_of(bundle), epoch()
    versions = pins(bundle.session.engine)
    base = root(when, architecture.name)
    with _unpacked(base) as inside:
        python = _interpreter(inside, architecture)
        packages = [*_library(inside, python), *installed(versions, AT, architecture.machine, python)]
        own = _tenfold(python)
        _try(inside, python, [*packages, *own, *_bundle(bundle)])
    sbom = sbom_of(bundle, versions, base)
    model = [*_bundle(bundle), File(path="usr/share/sbom/image.cdx.json", content=json.dumps(sbom, indent=1).encode())]
    layers = [
        packed(base.tar, f"Debian: {' '.join(base.packages)}"), layer(packages, f"Python packages: {' '.join(versions)}", epoch=when),
        layer([*own, *model], "Tenfold, and the bundle", epoch=when),
    ]  # fmt: skip
    created = datetime.fromtimestamp(when, UTC).isoformat().replace("+00:00", "Z")
    digest = write_layout(folder, tag, layers, config(), labels(bundle, created), architecture=architecture.name, created=created)
    return Image(name=name, tag=tag, folder=folder, digest=digest, bytes=sum(len(one.data) for one in layers))


def config() -> dict[str, Any]:
    """Of the process."""
    environment = {"PYTHONPATH": f"/{AT}", "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "ORT_DISABLE_TELEMETRY": "1", "HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 - nothing is written there
    return {
        "User": f"{UID}:{UID}", "WorkingDir": "/", "StopSignal": "SIGTERM",
        "Env": [f"{k}={v}" for k, v in environment.items()],
        "Entrypoint": [f"/usr/bin/python{PYTHON}", "-m", "tenfold.serve"],
        "Cmd": ["--host=0.0.0.0", f"--port={PORT}", f"--metrics-port={METRICS_PORT}", "--token-file=/run/tenfold/token", f"/{BUNDLE}"],
        "ExposedPorts": {f"{PORT}/tcp": {}, f"{METRICS_PORT}/tcp": {}},
    }  # fmt: skip


def labels(bundle: Bundle, created: str) -> dict[str, str]:
    kind = "org.opencontainers.image"
    return {
        f"{kind}.title": str(bundle.manifest.get("workload", "model")), f"{kind}.created": created, f"{kind}.version": __version__,
        f"{kind}.description": "A model, served by Tenfold", "dev.tenfold.manifest": digest_of((bundle.path / "manifest.json").read_bytes()),
        "dev.tenfold.certified": str(bool(bundle.manifest.get("certified"))).lower(), "dev.tenfold.cpu-class": str(bundle.manifest["cpu_class"]),
    }  # fmt: skip


@contextmanager
def _unpacked(base: Root) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(base.tar)) as source:
            source.extractall(folder, filter="tar")
        yield Path(folder)


def _interpreter(folder: Path, architecture: Architecture) -> list[str]:
    """The command of the image's own interpreter, run here by its own loader; empty where it is of another machine."""
    if platform.machine() != architecture.machine:
        return []
    libraries = folder / architecture.libraries
    return ["env", "-i", f"PYTHONHOME={folder}/usr", "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1", str(libraries / architecture.loader), "--library-path", str(libraries), f"{folder}/usr/bin/python{PYTHON}"]


def _library(folder: Path, python: list[str]) -> list[File]:
    """Byte code of the interpreter's own modules, which Debian would have made when it installed them."""
    at = f"usr/lib/python{PYTHON}"
    compiled(folder / at, f"/{at}", python)
    return [File(path=f.path, content=content_of(f)) for f in tree(folder / at, at) if f.path.endswith(".pyc")]


def _try(inside: Path, python: list[str], files: list[File]) -> None:
    """Replay the golden outputs with what will be in the image and nothing else.

    Raises:
        TenfoldError: its server does not come up.
    """
    if not python:
        return
    for file in files:
        path = inside / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(file))
    environment = [f"PYTHONPATH={inside / AT}", *(e for e in config()["Env"] if not e.startswith("PYTHONPATH="))]
    command = [*python[:2], *environment, *python[2:], "-m", "tenfold.serve", "--check", "--force", str(inside / BUNDLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise BrokenImageError(f"the server in the image does not come up ({said}): install the versions that Tenfold's constraints.txt pins, and ship again")


def _bundle(bundle: Bundle) -> list[File]:
    """What its manifest names, and nothing that lies beside."""
    return [File(path=f"{BUNDLE}/{name}", content=bundle.path / name) for name in ("manifest.json", *bundle.manifest["files"])]


def _tenfold(python: list[str]) -> list[File]:
    """Of Tenfold what serves."""
    source = Path(str(resources.files("tenfold")))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tenfold"
        for pattern in MODULES:
            for path in source.glob(pattern if "." in pattern or "*" in pattern else f"{pattern}.py"):
                if path.is_file():
                    copy = target / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
        compiled(target, f"/{AT}/tenfold", python)
        return [File(path=f.path, content=content_of(f)) for f in tree(target, f"{AT}/tenfold")]


def sbom_of(bundle: Bundle, versions: Mapping[str, str], base: Root | None) -> dict[str, Any]:
    """CycloneDX 1.6: Debian's packages, Python's, Tenfold and the model."""
    debian = [] if base is None else [("deb/debian", n, v) for n, v in sorted(base.packages.items())]
    found = [*debian, *(("pypi", n, v) for n, v in versions.items()), ("pypi", "tenfold", __version__)]
    components: list[dict[str, Any]] = [{"type": "library", "bom-ref": (ref := f"pkg:{kind}/{n}@{quote(v, safe='~.-_')}"), "name": n, "version": v, "purl": ref} for kind, n, v in found]
    model = str(bundle.manifest["files"]["model.onnx"])
    components.append({"type": "machine-learning-model", "bom-ref": f"model-{model[:16]}", "name": str(bundle.manifest.get("workload", "model")), "hashes": [{"alg": "SHA-256", "content": model}]})
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, "components": components}


CONTAINERFILE = """\
# The same image by docker, podman or buildah, where mmdebstrap is not at hand: {build} -t {name}:{tag} {folder}
ARG BUILD=docker.io/library/python:{python}-slim-bookworm
ARG BASE=gcr.io/distroless/python3-debian12:nonroot
FROM $BUILD AS packages
COPY requirements.txt /requirements.txt
RUN python -m pip install --no-cache-dir --no-deps --only-binary=:all: --target=/{at} -r /requirements.txt
FROM $BASE
COPY --from=packages /{at} /{at}
COPY tenfold /{at}/tenfold
COPY bundle /{bundle}
COPY image.cdx.json /usr/share/sbom/image.cdx.json
{rest}
"""


def write_containerfile(bundle: Bundle, name: str, tag: str, folder: Path) -> None:
    """A Containerfile and what it takes, in a folder."""
    asked = config()
    rest = [
        f"LABEL {' '.join(f'{k}={json.dumps(v)}' for k, v in labels(bundle, '1970-01-01T00:00:00Z').items())}",
        f"ENV {' '.join(f'{k}={json.dumps(v)}' for k, _, v in (e.partition('=') for e in asked['Env']))}", f"USER {asked['User']}", "WORKDIR /",
        f"EXPOSE {PORT} {METRICS_PORT}", f"ENTRYPOINT {json.dumps(asked['Entrypoint'])}", f"CMD {json.dumps(asked['Cmd'])}",
    ]  # fmt: skip
    sbom = File(path="image.cdx.json", content=json.dumps(sbom_of(bundle, pins(bundle.session.engine), None), indent=1).encode())
    for file in [*_tenfold([]), *_bundle(bundle), sbom]:
        path = folder / file.path.removeprefix(f"{AT}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(file))
    write_atomic(folder / "requirements.txt", "".join(f"{n}=={v}\n" for n, v in pins(bundle.session.engine).items()))
    write_atomic(
        folder / "Containerfile",
        CONTAINERFILE.format(build="podman build", name=name, tag=tag, folder=folder.name, python=PYTHON, at=AT, bundle=BUNDLE, rest="\n".join(rest)),
    )
