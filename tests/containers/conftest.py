"""Images that `tenfold ship` makes, in podman: as root, with mmdebstrap, and a network for Debian's and Python's packages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.containers.node import podman
from tests.serving import images_bundle

TOKEN = "a-token-of-the-tests-0123456789"  # noqa: S105 - it opens nothing else


@dataclass(frozen=True)
class Shipped:
    bundle: Path
    folder: Path
    """What was written."""
    image: str
    """NAME@DIGEST."""

    @property
    def digest(self) -> str:
        return self.image.partition("@")[2]


def ship(bundle: Path, folder: Path) -> Shipped:
    words = [sys.executable, "-m", "tenfold.cli", "ship", str(bundle), "--image", "test.example/small:1", "--out", str(folder), "--quiet", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    image = json.loads(done.stdout)["image"]
    assert image is not None, done.stdout
    return Shipped(bundle, folder, f"{image['name']}@{image['digest']}")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory) -> dict[str, Shipped]:
    """Two that answer the same, and one that answers other classes."""
    folder = tmp_path_factory.mktemp("shipped")
    bundles = {"one": images_bundle(folder / "one"), "two": images_bundle(folder / "two"), "other": images_bundle(folder / "other", seed=9)}
    for name in ("two", "other"):  # another content, so that it has another digest
        manifest = bundles[name] / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"recipe": {"id": name}}))
    return {name: ship(bundle, folder / f"{name}-shipped") for name, bundle in bundles.items()}


@pytest.fixture(scope="session")
def images(shipped) -> Mapping[str, str]:
    """What podman calls them, by digest."""
    return {one.digest: podman("pull", "--quiet", f"oci:{one.folder / 'image'}").splitlines()[-1] for one in shipped.values()}
