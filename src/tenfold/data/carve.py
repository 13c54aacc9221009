"""Carves missing splits out of those that are there: deterministic, whole groups together."""

from __future__ import annotations

import numpy as np

from tenfold.data.split import Split

# of what is carved from: (split, its source, its share)
_TEST_SHARE = 0.2
_VALID_SHARE = 0.2
_CONFIRM_SHARE = 0.5
_SEED = 20_260_924  # of the division alone: it must not change with the seed of a run


def carve(splits: dict[str, Split | None]) -> tuple[dict[str, Split | None], list[str]]:
    """Fill in test, valid and confirm where they are missing, and say what was done.

    test is carved from train (else from valid), valid from train (else from test), confirm from
    valid. Without train nothing can be taught, but all the rest still works.

    Args:
        splits: of "train", "valid", "confirm", "test"; None where the user gave none.

    Returns:
        The splits, all but train there, and one sentence for each that was carved.
    """
    out = dict(splits)
    said: list[str] = []

    def part(name: str, sources: tuple[str, ...], share: float) -> None:
        if out.get(name) is not None:
            return
        for source in sources:
            whole = out.get(source)
            if whole is None:
                continue
            chosen = _chosen(whole, share, salt=name)
            if not chosen.any() or chosen.all():
                continue
            out[name], out[source] = whole.take(np.flatnonzero(chosen)), whole.take(np.flatnonzero(~chosen))
            by = " by group" if whole.groups is not None else ""
            said.append(f"no {name} split was given: {int(chosen.sum()):,} examples carved out of {source}{by}")
            return

    part("test", ("train", "valid"), _TEST_SHARE)
    part("valid", ("train", "test"), _VALID_SHARE)
    part("confirm", ("valid",), _CONFIRM_SHARE)
    return out, said


def _chosen(split: Split, share: float, salt: str) -> np.ndarray:
    """(n,) of bool: a share of the examples, or of the groups."""
    labels = np.arange(len(split)) if split.groups is None else np.unique(split.groups, return_inverse=True)[1]
    count = int(labels.max()) + 1
    order = np.random.default_rng([_SEED, *salt.encode()]).permutation(count)
    picked = np.zeros(count, dtype=bool)
    picked[order[: round(share * count)]] = True
    return picked[labels]
