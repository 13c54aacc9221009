"""Named data sets: where each may lie, in which order they are looked for.

`--data`, then `$TENFOLD_DATA/<name>`, a system copy, the user's cache, then a download with a checksum.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from tenfold.data.split import Array, Split
from tenfold.errors import WorkloadError
from tenfold.store import cache_dir, write_atomic

FASHION_MNIST_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_FASHION_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
# SHA-256 of the unpacked content, which is the same at Zalando Research and in Debian's package
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def fashion_mnist(data: Path | None) -> tuple[Split, Split]:
    """Train (60,000) and test (10,000) of Fashion-MNIST: uint8 (n, 1, 28, 28) and labels 0–9."""
    folder = find(
        "fashion-mnist", data, Path("/usr/share/datasets/fashion-mnist"), _FASHION_URL, _FASHION_FILES,
        hint="apt-get install dataset-fashion-mnist puts it under /usr/share/datasets",
    )  # fmt: skip
    return tuple(
        Split(
            inputs=(read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None],),
            targets=read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64),
        )
        for part in ("train", "t10k")
    )  # type: ignore[return-value]


def find(
    name: str, data: Path | None, system: Path | None, url: str, files: dict[str, str], *, hint: str
) -> Path:
    """The folder that holds all `files` (name to SHA-256), downloaded where it must be.

    Raises:
        WorkloadError: not in `data` though named there; or nowhere, and there is no network.
    """
    if data is not None:
        if missing := [f for f in files if not (data / f).is_file()]:
            raise WorkloadError(f"{data} lacks {missing[0]}: give the folder that holds {name} with --data")
        return data
    cached = cache_dir() / "data" / name
    shared = os.environ.get("TENFOLD_DATA")
    for folder in (Path(shared) / name if shared else None, system, cached):
        if folder is not None and all((folder / f).is_file() for f in files):
            return folder
    try:
        cached.mkdir(parents=True, exist_ok=True)
        for file, checksum in files.items():
            if not (cached / file).is_file():
                write_atomic(cached / file, _download(url + file, checksum))
    except OSError as error:
        raise WorkloadError(
            f"{name} is not on this machine and cannot be downloaded ({getattr(error, 'reason', error)}): "
            f"put {', '.join(files)} in a folder and name it with --data, or {hint}"
        ) from error
    return cached


def _download(url: str, checksum: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the address is ours, and https
        total = int(answer.headers.get("Content-Length") or 0)
        body = bytearray()
        while chunk := answer.read(1 << 18):
            body += chunk
            if sys.stderr.isatty() and total:
                print(f"\r{url.rpartition('/')[2]} {len(body) * 100 // total:3d} %", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    try:
        content = gzip.decompress(body)
    except (OSError, EOFError, zlib.error):
        content = b""
    if hashlib.sha256(content).hexdigest() != checksum:
        raise WorkloadError(f"{url} is not what was expected (its SHA-256 differs): fetch it by hand and use --data")
    return bytes(body)


def read_idx(path: Path) -> Array:
    """An array from a gzipped IDX file (http://yann.lecun.com/exdb/mnist, "the IDX file format").

    Raises:
        WorkloadError: the file is truncated, corrupt or no IDX file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        zero, kind, rank = int.from_bytes(raw[:2], "big"), raw[2], raw[3]
        shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
        if zero or kind != 8 or rank == 0:
            raise ValueError("wrong magic number")
        return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise WorkloadError(f"{path} is corrupt ({error}): download it again") from error
