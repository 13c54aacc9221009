"""A set of examples in memory: what every source becomes."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import WorkloadError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Examples: inputs, targets and, where they are not independent, groups.

    inputs: a tuple of arrays (n, …), one for each argument of the model's forward.
    targets: (n, …), or None where there are no labels.
    groups: (n,), or None where every example stands alone.
    columns: what the columns of a table's input are called; None where it is no table.
    """

    inputs: tuple[Array, ...]
    targets: Array | None = None
    groups: Array | None = None
    columns: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, rows: Any) -> Split:
        """The examples at `rows` (indices or a slice)."""
        return Split(
            inputs=tuple(x[rows] for x in self.inputs),
            targets=None if self.targets is None else self.targets[rows],
            groups=None if self.groups is None else self.groups[rows],
            columns=self.columns,
        )

    def in_columns_of(self, other: Split, name: str, what: str) -> Split:
        """The same examples, a table's columns in the order of another one's.

        Args:
            name, what: of this and of the other, for messages.

        Raises:
            WorkloadError: the two have other columns.
        """
        if self.columns is None or other.columns is None or self.columns == other.columns:
            return self
        lacks, more = sorted({*other.columns} - {*self.columns}), sorted({*self.columns} - {*other.columns})
        if lacks or more:
            differs = [f"lacks {', '.join(map(repr, lacks))}"] * bool(lacks) + [f"has {', '.join(map(repr, more))} as well"] * bool(more)
            raise WorkloadError(f"{name} {' and '.join(differs)}: give it the columns of {what}")
        order = [self.columns.index(c) for c in other.columns]
        return dataclasses.replace(self, inputs=(np.ascontiguousarray(self.inputs[0][:, order]),), columns=other.columns)

    def sample(self, count: int, seed: int) -> Split:
        """So many of the examples, drawn at random, in their order; all where there are no more."""
        if count >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the content, shapes and dtypes."""
        whole = hashlib.sha256()
        for array in (*self.inputs, self.targets, self.groups):
            if array is None:
                whole.update(b"none")
                continue
            whole.update(f"{array.dtype.str}{array.shape}".encode())
            plain = array.astype("U") if array.dtype.kind == "O" else array
            whole.update(np.ascontiguousarray(plain).view(np.uint8).data if plain.size else b"")
        return whole.hexdigest()

    @cached_property
    def row_hashes(self) -> list[bytes]:
        """A hash of each example's inputs, to find exact duplicates."""
        flat = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in self.inputs]
        return [hashlib.blake2b(b"".join(x[i].tobytes() for x in flat), digest_size=16).digest() for i in range(len(self))]


def joined(*splits: Split) -> Split:
    """The examples of all, one after the other. Targets, groups and columns stay where all have them; groups of different splits are apart."""
    targets = [s.targets for s in splits if s.targets is not None]
    groups = [np.char.add(f"{i}:", s.groups.astype(str)) for i, s in enumerate(splits) if s.groups is not None]
    return Split(
        inputs=tuple(np.concatenate(columns) for columns in zip(*(s.inputs for s in splits), strict=True)),
        targets=np.concatenate(targets) if len(targets) == len(splits) else None,
        groups=np.concatenate(groups) if len(groups) == len(splits) else None,
        columns=splits[0].columns,
    )


def check_numbers(split: Split, name: str) -> None:
    """Refuse what no model can learn from: emptiness, object arrays, NaN, infinity, uneven lengths.

    Raises:
        WorkloadError: names the split, the input or column, and the first bad row.
    """
    named: dict[str, Array | None] = {f"input {i}": x for i, x in enumerate(split.inputs)}
    named |= {"target": split.targets, "groups": split.groups}
    arrays = {what: array for what, array in named.items() if array is not None}
    for what, array in arrays.items():
        if array.ndim == 0:
            raise WorkloadError(f"{name}: {what} is a single value: give an array with one row an example")
    if len(split) == 0:
        raise WorkloadError(f"{name} is empty: give it at least one example")
    for what, array in arrays.items():
        if len(array) != len(split):
            raise WorkloadError(
                f"{name}: {what} has {len(array):,} rows, input 0 has {len(split):,}: give every array the same length"
            )
        if what == "groups":  # labels of any kind
            continue
        if array.dtype.kind not in "biuf":
            raise WorkloadError(
                f"{name}: {what} holds {array.dtype} values, not numbers: convert it to a numeric array first"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))[0]
            column = f", column {bad[1]}" if array.ndim == 2 else ""
            kind = "NaN" if np.isnan(array[tuple(bad)]) else "an infinite value"
            raise WorkloadError(f"{name}: {what} has {kind} in row {bad[0]}{column}: clean or impute it first")


def duplicates(splits: dict[str, Split]) -> dict[str, int]:
    """Examples of the later split that stand, input for input, in the earlier one: {"train/test": 3}."""
    names = list(splits)
    out = {}
    for i, first in enumerate(names):
        seen = set(splits[first].row_hashes)
        for second in names[i + 1 :]:
            if count := sum(h in seen for h in splits[second].row_hashes):
                out[f"{first}/{second}"] = count
    return out
