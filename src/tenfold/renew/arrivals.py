"""New data of a workload: read as its own, checked against it, and divided."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.sources import to_split
from tenfold.data.split import Array, Split, check_numbers
from tenfold.errors import WorkloadError, first_line
from tenfold.workload import Examples, Workload, as_served, shapes_of

NAME = "the new data"
LEARNED, CHOSEN = 0.5, 0.1
"""Shares to learn from and to choose on; what is left has been seen by nobody when an upgrade is judged on it."""
FRESH = 1 - LEARNED - CHOSEN
LEAST = 20
"""Examples of each part, at the least."""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """New data, divided: an example, or a group, falls into the same part whenever it comes."""

    train: Split
    valid: Split
    fresh: Split
    """What an upgrade is judged on."""
    identity: str
    notes: tuple[str, ...]


def arrivals(task: Workload, examples: Examples, source: Any) -> Arrivals:
    """Read, check and divide new data.

    What stands in the old splits that are judged on, or is of a group there, is left out; what does in the old train is learned from again.

    Args:
        examples: the workload's own.
        source: what `train` of the workload may be; a path is read by its `read`, where it has one.

    Raises:
        WorkloadError: it is of another form than the workload's data, or too little.
    """
    whole = _as_the_old(_read(task, examples, source), examples)
    judged, learned = _known([examples.valid, examples.confirm, examples.test]), _known([examples.train])
    rows, groups = whole.row_hashes, _group_keys(whole)
    out = np.array([{h, g} & judged != set() for h, g in zip(rows, groups, strict=True)])
    known = {g for h, g in zip(rows, groups, strict=True) if {h, g} & learned} - {b""}
    again = np.array([h in learned or g in known for h, g in zip(rows, groups, strict=True)])
    notes = [f"{int(out.sum()):,} of {len(whole):,} new examples are in what is judged on, or of a group there: left out"] if out.any() else []
    at = np.where(again, 0.0, [_place(h if whole.groups is None else g) for h, g in zip(rows, groups, strict=True)])
    parts = {"train": at < LEARNED, "valid": (at >= LEARNED) & (at < LEARNED + CHOSEN), "fresh": at >= LEARNED + CHOSEN}
    taught = {rows[i] for i in np.flatnonzero(parts["train"])}
    parts["fresh"] &= np.array([h not in taught for h in rows])  # the same may come in several groups
    divided = {name: whole.take(np.flatnonzero(chosen & ~out)) for name, chosen in parts.items()}
    for name, part in divided.items():
        if len(part) < LEAST:
            before = f", of which {int((out | again).sum()):,} are known already" * bool((out | again).any())
            raise WorkloadError(f"{len(whole):,} new examples{before}, leave {len(part)} for {name}, and {LEAST} are needed: collect more of them first")
    if whole.groups is not None and len(np.unique(divided["fresh"].groups)) < 2:  # type: ignore[arg-type]
        raise WorkloadError(f"{NAME} has too few groups: no interval can be had from one: collect more of them first")
    return Arrivals(**divided, identity=whole.identity, notes=tuple(notes))


def _known(splits: Sequence[Split | None]) -> set[bytes]:
    """Rows and groups of splits."""
    present = [s for s in splits if s is not None]
    return {key for s in present for key in (*s.row_hashes, *_group_keys(s))} - {b""}


def _group_keys(split: Split) -> list[bytes]:
    return [b""] * len(split) if split.groups is None else [f"group {g}".encode() for g in split.groups]


def _place(key: bytes) -> float:
    """From 0 to 1, by the key alone."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"arrivals").digest(), "big") / 2**64


def _read(task: Workload, examples: Examples, source: Any) -> Split:
    if task.read is not None and isinstance(source, (str, Path)):
        if not Path(source).exists():
            raise WorkloadError(f"{source} does not exist: check the path of the new data")
        try:
            source = task.read(Path(source))
        except WorkloadError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise WorkloadError(f"read= raised {type(error).__name__} on {source}: {first_line(error)}") from error
    split = to_split(source, NAME, target=task.target, group=task.groups, image_size=task.image_size, labels=examples.labels)
    if split is None:
        raise WorkloadError("there is no new data: name it with --data")
    if split.targets is None:
        raise WorkloadError(f"{NAME} has no targets: give it with its labels")
    check_numbers(split, NAME)
    return dataclasses.replace(split, inputs=tuple(map(as_served, split.inputs)))


def _as_the_old(new: Split, examples: Examples) -> Split:
    """The new examples, their columns in the order of the old ones."""
    old = examples.valid
    new = new.in_columns_of(old, NAME, "the old data")
    if [(x.shape[1:], x.dtype) for x in new.inputs] != [(x.shape[1:], x.dtype) for x in old.inputs]:
        raise WorkloadError(f"{NAME} has examples of {shapes_of(new.inputs)}, the old data of {shapes_of(old.inputs)}: give both in one form")
    assert new.targets is not None
    assert old.targets is not None
    if new.targets.shape[1:] != old.targets.shape[1:]:
        raise WorkloadError(f"{NAME} has targets of shape {new.targets.shape[1:]}, the old data of {old.targets.shape[1:]}: give both in one form")
    if (new.groups is None) != (old.groups is None):
        raise WorkloadError(f"{NAME} has {'groups, the old data none' if old.groups is None else 'no groups, and the old data has'}: give both in one form")
    if examples.classes is None:
        return new
    _check_labels(new.targets, examples.classes, examples.labels)
    return dataclasses.replace(new, targets=new.targets.astype(old.targets.dtype))


def _check_labels(targets: Array, classes: int, labels: Sequence[str] | None) -> None:
    wrong = np.argwhere(~np.isin(targets, np.arange(classes)))
    if len(wrong):
        named = f" ({', '.join(labels)})" if labels is not None and classes <= 20 else ""
        raise WorkloadError(
            f"{NAME} has the label {targets[tuple(wrong[0])]} in row {wrong[0][0]}, which is none of the model's {classes} classes{named}: "
            "mend the label, or run anew with a model that has its class"
        )
