"""Named data sets: where each may lie, in which order they are looked for.

`--data`, then `$TENFOLD_DATA/<name>`, a system copy, the user's cache, then a download with a checksum.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tenfold.data.sources import to_split
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
        "fashion-mnist", data, Path("/usr/share/datasets/fashion-mnist"), [tuple(_FASHION_FILES)],
        {file: partial(_download, _FASHION_URL + file, _unpacks_to(checksum)) for file, checksum in _FASHION_FILES.items()},
        hint="apt-get install dataset-fashion-mnist puts it under /usr/share/datasets",
    )  # fmt: skip
    return tuple(
        Split(
            inputs=(read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:, None],),
            targets=read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64),
        )
        for part in ("train", "t10k")
    )  # type: ignore[return-value]


CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/" + _CIFAR10_ARCHIVE
_CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as its page states, https://www.cs.toronto.edu/~kriz/cifar.html
_CIFAR10_PARQUET = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
_CIFAR10_BINARY = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_CIFAR10_FOLDER = "cifar-10-batches-bin"
_CIFAR10_RECORD = 1 + 3 * 32 * 32
"""Bytes: the label, then the red, green and blue plane, each by rows."""


def cifar10(data: Path | None) -> tuple[Split, Split]:
    """Train (50,000) and test (10,000) of CIFAR-10: uint8 (n, 3, 32, 32) and labels 0–9.

    From Hugging Face style parquet, or from the original binary version, as an archive or unpacked.
    """
    unpacked = tuple(f"{_CIFAR10_FOLDER}/{f}" for f in _CIFAR10_BINARY)
    folder = find(
        "cifar10", data, None, [_CIFAR10_PARQUET, _CIFAR10_BINARY, unpacked, (_CIFAR10_ARCHIVE,)],
        {_CIFAR10_ARCHIVE: lambda: _download(_CIFAR10_URL, lambda body: hashlib.md5(body).hexdigest() == _CIFAR10_MD5)},  # noqa: S324
        hint=f"fetch {_CIFAR10_URL} where there is a network",
    )  # fmt: skip
    if all((folder / f).is_file() for f in _CIFAR10_PARQUET):
        train, test = (to_split(folder / f, f) for f in _CIFAR10_PARQUET)
        assert train is not None
        assert test is not None
        return train, test
    if all((folder / f).is_file() for f in unpacked):
        folder /= _CIFAR10_FOLDER
    if all((folder / f).is_file() for f in _CIFAR10_BINARY):
        raw = [(folder / f).read_bytes() for f in _CIFAR10_BINARY]
    else:
        raw = _members(folder / _CIFAR10_ARCHIVE, unpacked)
    return _cifar10_records(b"".join(raw[:-1]), folder), _cifar10_records(raw[-1], folder)


def _members(archive: Path, names: Sequence[str]) -> list[bytes]:
    """The content of files in a tar archive, which is not unpacked."""
    try:
        with tarfile.open(archive) as opened:
            found = [opened.extractfile(name) for name in names]
            return [f.read() for f in found if f is not None]
    except (KeyError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = str(error).splitlines()[0].rstrip(":") or type(error).__name__
        raise WorkloadError(f"{archive} is corrupt ({reason}): download it again") from error


def _cifar10_records(raw: bytes, folder: Path) -> Split:
    if not raw or len(raw) % _CIFAR10_RECORD:
        raise WorkloadError(f"{folder}: the batches of CIFAR-10 are not whole records of {_CIFAR10_RECORD:,} bytes: download them again")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _CIFAR10_RECORD)
    return Split(inputs=(rows[:, 1:].reshape(-1, 3, 32, 32).copy(),), targets=rows[:, 0].astype(np.int64))


_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def tinyshakespeare() -> Path:
    """The file of tinyshakespeare: 1,115,394 characters of plays."""
    folder = find(
        "tinyshakespeare", None, None, [("input.txt",)],
        {"input.txt": lambda: _download(_SHAKESPEARE_URL, lambda body: hashlib.sha256(body).hexdigest() == _SHAKESPEARE_SHA256)},
        hint=f"fetch {_SHAKESPEARE_URL} where there is a network",
    )  # fmt: skip
    return folder / "input.txt"


def brown() -> Path:
    """The folder of the Brown corpus as text: train.txt, valid.txt and test.txt, one sentence a line. It is not downloaded."""
    return find(
        "brown", None, None, [("train.txt", "valid.txt", "test.txt")], {},
        hint="give another text with --data",
    )  # fmt: skip


def find(
    name: str,
    data: Path | None,
    system: Path | None,
    forms: Sequence[Sequence[str]],
    fetch: Mapping[str, Callable[[], bytes]],
    *,
    hint: str,
) -> Path:
    """The folder that holds a named set, downloaded where it must be.

    Args:
        forms: files in which the set may come: one of these lists must be there whole.
        fetch: how each file of one of the forms is downloaded and checked; empty: it is not.

    Raises:
        WorkloadError: not in `data` though named there; or nowhere, and there is no network.
    """

    def holds(folder: Path) -> bool:
        return any(all((folder / f).is_file() for f in form) for form in forms)

    if data is not None:
        if not holds(data):
            lacks = next(f for f in forms[0] if not (data / f).is_file())
            raise WorkloadError(f"{data} lacks {lacks}: give the folder that holds {name} with --data")
        return data
    cached = cache_dir() / "data" / name
    shared = os.environ.get("TENFOLD_DATA")
    for folder in (Path(shared) / name if shared else None, system, cached):
        if folder is not None and holds(folder):
            return folder
    if not fetch:
        raise WorkloadError(f"{name} is not on this machine: put {', '.join(forms[0])} in a folder and name it with --data, or {hint}")
    try:
        cached.mkdir(parents=True, exist_ok=True)
        for file, download in fetch.items():
            if not (cached / file).is_file():
                write_atomic(cached / file, download())
    except OSError as error:
        raise WorkloadError(
            f"{name} is not on this machine and cannot be downloaded ({getattr(error, 'reason', error)}): "
            f"put {', '.join(fetch)} in a folder and name it with --data, or {hint}"
        ) from error
    return cached


def _download(url: str, is_right: Callable[[bytes], bool]) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the address is ours, and https
        total = int(answer.headers.get("Content-Length") or 0)
        body = bytearray()
        while chunk := answer.read(1 << 18):
            body += chunk
            if sys.stderr.isatty() and total:
                print(f"\r{url.rpartition('/')[2]} {len(body) * 100 // total:3d} %", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if not is_right(bytes(body)):
        raise WorkloadError(f"{url} is not what was expected (its checksum differs): fetch it by hand and use --data")
    return bytes(body)


def _unpacks_to(checksum: str) -> Callable[[bytes], bool]:
    """Whether a gzipped file's content has this SHA-256."""

    def check(body: bytes) -> bool:
        try:
            return hashlib.sha256(gzip.decompress(body)).hexdigest() == checksum
        except (OSError, EOFError, zlib.error):
            return False

    return check


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
