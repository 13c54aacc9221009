"""An OCI image as a layout on disk, written with the standard library: layers of sorted files, the same bytes each time.

https://github.com/opencontainers/image-spec: image layout, manifest and configuration.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tenfold.store import write_atomic

MANIFEST, CONFIG, LAYER, INDEX = (
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.index.v1+json",
)  # fmt: skip
LEVEL = 6
"""Of gzip: 9 takes three times as long for a hundredth less."""


@dataclass(frozen=True, kw_only=True)
class File:
    """What a layer holds at a path."""

    path: str
    """Without a leading slash."""
    content: bytes | Path
    """Bytes, or another file's."""
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class Layer:
    data: bytes
    """Compressed."""
    diff_id: str
    """Digest of what it is unpacked."""
    created_by: str


def layer(files: Iterable[File], created_by: str, *, epoch: int) -> Layer:
    """Files as a layer: in the order of their paths, all of root's and of one time; folders on the way to them are added."""
    buffer = io.BytesIO()
    by_path: dict[str, File | None] = {f.path: f for f in files}
    for path in list(by_path):
        by_path |= {str(folder): None for folder in PurePosixPath(path).parents if str(folder) != "."}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(by_path):
            file, info = by_path[path], tarfile.TarInfo(path)
            info.mtime = epoch
            if file is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
                continue
            data = content_of(file)
            info.size, info.mode = len(data), file.mode
            tar.addfile(info, io.BytesIO(data))
    return packed(buffer.getvalue(), created_by)


def content_of(file: File) -> bytes:
    return file.content.read_bytes() if isinstance(file.content, Path) else file.content


def packed(tar: bytes, created_by: str) -> Layer:
    """A tar as a layer."""
    return Layer(data=gzip.compress(tar, compresslevel=LEVEL, mtime=0), diff_id=digest_of(tar), created_by=created_by)


def tree(folder: Path, at: str) -> list[File]:
    """All files of a folder, at a path of the image. What is linked to from within stands in the place of the link; links that lead out are left."""
    inside = folder.resolve()
    return [
        File(path=f"{at}/{path.relative_to(folder).as_posix()}", content=path, mode=0o755 if path.stat().st_mode & 0o100 else 0o644)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.resolve().is_relative_to(inside)
    ]


def write_layout(
    folder: Path, tag: str, layers: Sequence[Layer], config: Mapping[str, Any], labels: Mapping[str, str], *, architecture: str, created: str
) -> str:
    """Write an image layout, and give the digest of its manifest. What the folder held of another image is gone.

    Args:
        config: of the process: User, Env, Entrypoint, Cmd, WorkingDir, ExposedPorts, StopSignal.
        architecture: by Go's name, amd64 or arm64.
        created: a time, ISO 8601.
    """
    shutil.rmtree(folder, ignore_errors=True)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = digest_of(data)
        write_atomic(blobs / digest.partition(":")[2], data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    described = [put(one.data, LAYER) for one in layers]
    image = {
        "created": created, "architecture": architecture, "os": "linux", "config": {**config, "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        "history": [{"created": created, "created_by": one.created_by} for one in layers],
    }  # fmt: skip
    manifest = put(
        _json({"schemaVersion": 2, "mediaType": MANIFEST, "config": put(_json(image), CONFIG), "layers": described, "annotations": dict(labels)}), MANIFEST
    )
    platform = {"architecture": architecture, "os": "linux"}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**manifest, "platform": platform, "annotations": {"org.opencontainers.image.ref.name": tag}}]}
    write_atomic(folder / "index.json", _json(index))
    write_atomic(folder / "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    digest: str = manifest["digest"]
    return digest


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
