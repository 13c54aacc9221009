"""What inputs and answers are like, in a few numbers: written into a bundle, and held against what a server sees. Imports no torch.

The population stability index is Σ (p − q) ln(p / q) over bins; below 0.1 it is taken for no change, above 0.25 for a large one (Siddiqi
2006, Credit Risk Scorecards).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.data.split import Array

BINS = 10
MOST_COLUMNS = 64
"""Of an input, from which on the mean and the spread of each example are looked at: of fewer, each by itself."""
MOST_EXAMPLES = 10_000


def feature_names(shape: Sequence[int]) -> list[str]:
    """What is looked at of an input of that shape (of an example)."""
    columns = int(np.prod(shape))
    return [str(i) for i in range(columns)] if columns < MOST_COLUMNS else ["mean", "spread"]


def features(x: Array) -> Array:
    """(n, …) to (n, features)."""
    flat = x.reshape(len(x), -1)
    if flat.shape[1] < MOST_COLUMNS:
        return flat.astype(np.float64)
    return np.stack([flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)], axis=1)


def describe(inputs: Mapping[str, Array], answers: Array | None) -> dict[str, Any]:
    """Of the data that a model was made with: for each feature the edges of bins of about equal shares, and the shares.

    Args:
        inputs: by name, each (n, …).
        answers: class scores (m, classes) on examples that were not learned from; None where the model tells no classes.
    """
    out: dict[str, Any] = {"inputs": [], "classes": None}
    for name, x in inputs.items():
        some = x if len(x) <= MOST_EXAMPLES else x[np.linspace(0, len(x) - 1, MOST_EXAMPLES).astype(int)]
        seen = [_binned(column) for column in features(some).T]
        out["inputs"].append({"name": name, "features": [{"name": n, **s} for n, s in zip(feature_names(x.shape[1:]), seen, strict=True)]})
    if answers is not None:
        counts = np.bincount(answers.argmax(1), minlength=answers.shape[1])
        out["classes"] = (counts / counts.sum()).tolist()
    return out


def _binned(values: Array) -> dict[str, Any]:
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    counts = count(values, edges)
    return {"edges": edges.tolist(), "shares": (counts / counts.sum()).tolist()}


def count(values: Array, edges: Array) -> Array:
    """Values (n,) in each bin, (edges + 1,)."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


def stability_index(expected: Array, counts: Array) -> float:
    """The population stability index of counts against the shares that are expected, both (bins,); half a count more in each bin keeps it finite."""
    p = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    q = np.maximum(expected, 0.5 / max(counts.sum(), 1.0))
    q = q / q.sum()
    return float(np.sum((p - q) * np.log(p / q)))
