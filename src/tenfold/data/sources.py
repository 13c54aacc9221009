"""Turns what users have into a `Split`: arrays, pandas frames, torch Datasets, image folders, parquet, csv."""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.split import Array, Split
from tenfold.errors import WorkloadError, first_line

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
MAX_PIXELS = 64_000_000  # of one image: a larger one is taken for a decompression bomb


def to_split(
    source: Any,
    name: str,
    *,
    target: str | None = None,
    group: str | None = None,
    image_size: tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
) -> Split | None:
    """A `Split` from any of the supported sources; None stays None.

    Args:
        source: `Split`; (x, y) or (x, y, groups) of arrays, x a tuple for several inputs; an array
            (no labels); a pandas frame; a torch `Dataset`; a path to a folder of class folders of
            images, to a parquet or csv file, or to a folder of parquet files.
        name: the split's name, for messages.
        target: column of the target, for tables (default "label", else "target", else the last).
        group: column of the groups, for tables.
        image_size: (height, width) that images are resized to; None: they must all be of one size.
        labels: class names in their order, where the source names classes by text.
        labelled: whether there have to be targets; if not, they are left out where there are some.

    Raises:
        WorkloadError: the source is unreadable or of no known kind.
    """
    if source is None or isinstance(source, Split):
        return source
    if isinstance(source, Mapping):
        raise WorkloadError(f"{name} is a {type(source).__name__}: give (x, y), (x, y, groups), a pandas frame, a Dataset or a path")
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source), name, target, group, image_size, labels, labelled=labelled)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return from_frame(source, name, target, group, labels, labelled=labelled)
    if group is not None and labelled and not (isinstance(source, tuple) and len(source) == 3):
        raise WorkloadError(f"groups={group!r} names a column of a table, and {name} is none: give (x, y, groups) instead")
    if isinstance(source, tuple) and len(source) in (2, 3):
        x, y, *rest = source
        inputs = x if isinstance(x, tuple) else (x,)
        return Split(
            inputs=tuple(_array(a, name) for a in inputs),
            targets=None if y is None else _array(y, name, labels),
            groups=_array(rest[0], name) if rest else None,
        )
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "dtype"):
        return _from_dataset(source, name, labelled=labelled)
    return Split(inputs=(_array(source, name),))


def _array(values: Any, name: str, labels: Sequence[str] | None = None) -> Array:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise WorkloadError(f"{name} has rows of different shapes: resize or pad them to one shape") from error
    if array.dtype.kind in "OUS" and labels is not None:
        return encode_labels(array, labels, name)
    if array.dtype.kind == "O":
        raise WorkloadError(
            f"{name} is an object array, which would have to be unpickled: convert it to numbers, all rows of one shape"
        )
    return array


def encode_labels(values: Any, labels: Sequence[str], name: str) -> Array:
    """Class indices (n,) of int64 for class names.

    Raises:
        WorkloadError: a value that `labels` does not list.
    """
    index = {str(label): i for i, label in enumerate(labels)}
    try:
        return np.array([index[str(v)] for v in values], dtype=np.int64)
    except KeyError as error:
        raise WorkloadError(f"{name} has the label {error.args[0]!r}, which labels= does not list: add it there") from error


# ---------------------------------------------------------------- tables


def from_frame(
    frame: Any, name: str, target: str | None = None, group: str | None = None, labels: Sequence[str] | None = None, *, labelled: bool = True
) -> Split:
    """A `Split` from a pandas frame: numeric columns as one float32 input (n, columns)."""
    if len(frame) == 0:
        raise WorkloadError(f"{name} is empty: give it at least one example")
    columns = [str(c) for c in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    if not labelled:
        judged = {*([target] if target else ["label", "target"]), group} & {*columns}
        return _table(frame, judged, name)
    target = target or next((c for c in ("label", "target") if c in columns), columns[-1])
    for wanted in (target, *([group] if group else [])):
        if wanted not in columns:
            raise WorkloadError(f"{name} has no column {wanted!r} (it has {', '.join(columns[:20])}): name another one")
    table = _table(frame, {target, group}, name)
    y = frame[target].to_numpy()
    if y.dtype.kind not in "biuf":
        if labels is None:
            raise WorkloadError(f"{name}: target {target!r} holds text: list its classes in labels=")
        y = encode_labels(y, labels, name)
    return dataclasses.replace(table, targets=y, groups=frame[group].to_numpy() if group else None)


def _table(frame: Any, others: Set[str | None], name: str) -> Split:
    """Columns of a frame, but for some, as one input of float32 (n, columns)."""
    features = [c for c in frame.columns if c not in others]
    if not features:
        raise WorkloadError(f"{name} has no column beside {', '.join(sorted(repr(c) for c in others if c))}: a table needs at least one feature")
    for column in features:
        if frame[column].dtype.kind not in "biuf":
            raise WorkloadError(
                f"{name}: column {column!r} holds {frame[column].dtype} values, not numbers: encode or drop it first"
            )
        finite = np.isfinite(frame[column].to_numpy(dtype=np.float64, na_value=np.nan))
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise WorkloadError(f"{name}: column {column!r} has NaN or infinity in row {row}: clean or impute it first")
    return Split(inputs=(frame[features].to_numpy(dtype=np.float32),), columns=tuple(features))


def _from_dataset(dataset: Any, name: str, *, labelled: bool) -> Split:
    """Every item of a torch `Dataset` of (x, y), or of x where nothing is labelled, once, in memory."""
    if len(dataset) == 0:
        raise WorkloadError(f"{name} is empty: give it at least one example")
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            items = list(pool.map(dataset.__getitem__, range(len(dataset))))
    except MemoryError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise WorkloadError(f"{name}: reading the Dataset raised {type(error).__name__}: {first_line(error)}") from error
    pairs = isinstance(items[0], (tuple, list)) and len(items[0]) == 2
    if labelled and not pairs:
        raise WorkloadError(f"{name}: each item of the Dataset must be (x, y)")
    x, y = zip(*items, strict=True) if pairs else (items, [0] * len(items))
    if hasattr(x[0], "convert"):
        raise WorkloadError(f"{name}: the Dataset yields PIL images: give it a transform that makes arrays of one shape")
    try:
        columns = zip(*x, strict=True) if isinstance(x[0], (tuple, list)) else [x]
        inputs = tuple(np.stack([np.asarray(v) for v in c]) for c in columns)
        return Split(inputs=inputs, targets=np.stack([np.asarray(v) for v in y]) if labelled else None)
    except ValueError as error:
        raise WorkloadError(f"{name}: the Dataset's items differ in shape: resize or pad them to one shape") from error


# ---------------------------------------------------------------- files


def _from_path(
    path: Path,
    name: str,
    target: str | None,
    group: str | None,
    image_size: tuple[int, int] | None,
    labels: Sequence[str] | None,
    *,
    labelled: bool,
) -> Split:
    if not path.exists():
        raise WorkloadError(f"{name}: {path} does not exist: check the path, or give the folder with --data")
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if files:
            return _parquet(files, name, target, group, image_size, labels, labelled=labelled)
        return image_folder(path, name, image_size, labels) if labelled else unsorted_images(path, name, image_size)
    if path.suffix == ".parquet":
        return _parquet([path], name, target, group, image_size, labels, labelled=labelled)
    if path.suffix == ".csv":
        pandas = _pandas(name)
        try:
            frame = pandas.read_csv(path)
        except (ValueError, OSError) as error:
            raise WorkloadError(f"{name}: {path} is not a csv table ({first_line(error)}): mend or replace it") from error
        return from_frame(frame, name, target, group, labels, labelled=labelled)
    if path.suffix == ".npy":
        return Split(inputs=(load_npy(path),))
    raise WorkloadError(f"{name}: {path} is of no known kind: use .parquet, .csv, .npy or a folder of class folders of images")


def _pandas(name: str) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise WorkloadError(f"{name}: tables are read with pandas, which is not installed: pip install 'tenfold[pandas]'") from error
    return pd


def load_npy(path: Path) -> Array:
    """An array from an .npy file; object arrays (pickles) are refused."""
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        what = "holds an object array, which is never unpickled" if "allow_pickle" in str(error) else "is no .npy array"
        raise WorkloadError(f"{path} {what}: save it with np.save from a numeric array") from error
    return array


def _parquet(
    files: list[Path],
    name: str,
    target: str | None,
    group: str | None,
    image_size: tuple[int, int] | None,
    labels: Sequence[str] | None,
    *,
    labelled: bool,
) -> Split:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except (pa.ArrowException, OSError) as error:
        raise WorkloadError(
            f"{name}: {files[0].parent if len(files) > 1 else files[0]} is not readable as parquet "
            f"({first_line(error)}): download or write it again"
        ) from error
    image = next((f.name for f in table.schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0), None)
    if image is None:
        _pandas(name)
        return from_frame(table.to_pandas(), name, target, group, labels, labelled=labelled)
    if table.num_rows == 0:
        raise WorkloadError(f"{name} is empty: give it at least one example")
    blobs = [(row or {}).get("bytes") for row in table.column(image).to_pylist()]
    where = [f"{name}: row {i}" for i in range(len(blobs))]
    x = decode_images([partial(io.BytesIO, blob or b"") for blob in blobs], where, image_size)
    if not labelled:
        return Split(inputs=(x,))
    rest = [c for c in table.column_names if c != image]
    target = target or next((c for c in ("label", "target") if c in rest), rest[-1] if rest else "label")
    for wanted in (target, *([group] if group else [])):
        if wanted not in rest:
            raise WorkloadError(f"{name} has no column {wanted!r} (beside the images it has {', '.join(rest) or 'none'}): name another one")
    y = table.column(target).to_numpy()
    if y.dtype.kind not in "biuf":
        if labels is None:  # numbering the names of one split by themselves would not fit the next split
            raise WorkloadError(f"{name}: target {target!r} holds text: list its classes in labels=")
        y = encode_labels(y, labels, name)
    return Split(inputs=(x,), targets=y, groups=table.column(group).to_numpy() if group else None)


def image_classes(path: Path) -> list[str]:
    """The class folders of an image folder, in order."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def image_folder(
    path: Path, name: str, image_size: tuple[int, int] | None, labels: Sequence[str] | None = None
) -> Split:
    """A `Split` of uint8 (n, channels, height, width) from a folder with a folder of images for each class.

    Args:
        labels: names of the class folders in the order of the classes; None: as they sort.
    """
    classes = image_classes(path)
    files = [(f, c) for c in classes for f in sorted((path / c).rglob("*")) if f.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise WorkloadError(f"{name}: {path} holds no images: it needs a folder for each class, with images in it")
    y = encode_labels([c for _, c in files], classes if labels is None else labels, name)
    x = decode_images([partial(Path, f) for f, _ in files], [f"{name}: {f}" for f, _ in files], image_size)
    return Split(inputs=(x,), targets=y)


def unsorted_images(path: Path, name: str, image_size: tuple[int, int] | None) -> Split:
    """All images in a folder and below it, in the order of their names, without labels."""
    files = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise WorkloadError(f"{name}: {path} holds no images: give a folder of images, or of parquet files")
    return Split(inputs=(decode_images([partial(Path, f) for f in files], [f"{name}: {f}" for f in files], image_size),))


def decode_images(
    openers: Sequence[Callable[[], Any]], where: Sequence[str], image_size: tuple[int, int] | None,
    *, most_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None,
) -> Array:  # fmt: skip
    """Decode images once, on all cores, into uint8 (n, channels, height, width); channels 1 or 3.

    Args:
        formats: Pillow's names of those that are taken; None: all.

    Raises:
        WorkloadError: names the image that is corrupt, too large, or of another size than the first.
    """
    from PIL import Image

    def decode(job: tuple[Callable[[], Any], str]) -> Array:
        opener, label = job
        try:
            with Image.open(opener(), formats=formats) as image:
                if image.width * image.height > most_pixels:
                    raise WorkloadError(
                        f"{label} claims {image.width:,}×{image.height:,} pixels, more than {most_pixels:,}: "
                        "it looks like a decompression bomb, remove or shrink it"
                    )
                if image.mode in ("I", "F"):
                    raise WorkloadError(f"{label} has pixels of 32 bits, whose range is not known: save it with 8 or 16 bits")
                if image.mode.startswith("I;16"):  # Pillow would clip at 255, and leave white
                    pixels = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                else:
                    pixels = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
                if image_size is not None and pixels.size != image_size[::-1]:
                    pixels = pixels.resize(image_size[::-1], Image.Resampling.BILINEAR)
                array = np.asarray(pixels)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise WorkloadError(f"{label} cannot be decoded as an image ({first_line(error)}): replace or remove it") from error
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    # filters are the whole process's: set here, not in the threads
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such sizes are refused above
        arrays = list(pool.map(decode, zip(openers, where, strict=True)))
    if any(a.shape[0] == 3 for a in arrays):  # grey images among coloured ones
        arrays = [np.repeat(a, 3, axis=0) if a.shape[0] == 1 else a for a in arrays]
    for array, label in zip(arrays, where, strict=True):
        if array.shape != arrays[0].shape:
            raise WorkloadError(
                f"{label} is {array.shape[2]}×{array.shape[1]}, the first image {arrays[0].shape[2]}×{arrays[0].shape[1]}: "
                "give image_size=(height, width)"
            )
    return np.stack(arrays)
