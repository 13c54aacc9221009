"""How candidate and baseline differ beyond the mean: slices, agreement, calibration, single examples."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tenfold.data.split import Array, Split
from tenfold.errors import WorkloadError, first_line
from tenfold.verdict import LEVEL, quality_difference
from tenfold.workload import Scores, Workload

CALIBRATION_BINS = 10
MAX_DISAGREEMENTS = 60


def slice_masks(workload: Workload, split: Split, labels: tuple[str, ...] | None, classes: int | None) -> dict[str, Array]:
    """Masks (n,) by slice name: the workload's own, else a slice a class."""
    if workload.slices is not None:
        return _own_slices(workload, split)
    if classes is None or split.targets is None or split.targets.ndim != 1:
        return {}
    return {labels[c] if labels else f"class {c}": split.targets == c for c in range(classes)}


def _own_slices(workload: Workload, split: Split) -> dict[str, Array]:
    assert workload.slices is not None
    try:
        masks = {str(name): np.asarray(mask) for name, mask in workload.slices(split).items()}
    except Exception as error:  # the user's own code may raise anything
        raise WorkloadError(f"slices= raised {type(error).__name__}: {first_line(error)}: mend it") from error
    for name, mask in masks.items():
        if mask.shape != (len(split),) or mask.dtype.kind != "b":
            raise WorkloadError(f"slice {name!r} is {mask.dtype} of shape {mask.shape}: give a boolean mask of shape ({len(split)},)")
    return masks


def check_slices(masks: dict[str, Array], workload: Workload) -> None:
    """Refuse, before test is opened, a margin that could not be enforced.

    Args:
        masks: of the test split; they need no model's answers.

    Raises:
        WorkloadError: `slice_margins` names no slice, or one without examples, or a margin is not above 0.
    """
    for name, margin in workload.slice_margins.items():
        if name not in masks:
            raise WorkloadError(f"slice_margins names {name!r}, which is no slice: use {', '.join(list(masks)[:20]) or 'slices='}")
        if not masks[name].any():
            raise WorkloadError(f"slice {name!r} has no example on test, so its margin cannot be shown: give it some")
        if not margin > 0:
            raise WorkloadError(f"the margin of slice {name!r} is {margin}: it must be above 0")


def slices(
    masks: dict[str, Array], workload: Workload, split: Split, base: Scores, cand: Scores, *, level: float = LEVEL
) -> list[dict[str, Any]]:
    """Quality on each slice, paired, and whether the slice's own margin (where it has one) is kept."""
    rows = []
    for name, mask in masks.items():
        margin = workload.slice_margins.get(name)
        if not mask.any():
            continue
        groups = None if split.groups is None else split.groups[mask]
        difference = quality_difference(base[mask], cand[mask], groups=groups, level=level)
        rows.append(
            {
                "name": name,
                "n": int(mask.sum()),
                "baseline": float(base[mask].mean()),
                "candidate": float(cand[mask].mean()),
                "quality_difference": difference.to_json(),
                "margin": margin,
                "held": None if margin is None else bool(difference.low >= -margin),
            }
        )
    return rows


def agreement(base: Array, cand: Array, targets: Array) -> dict[str, Any]:
    """How often two classifiers give the same class. Outputs (n, classes), targets (n,)."""
    a, b = base.argmax(axis=1), cand.argmax(axis=1)
    return {
        "same": float((a == b).mean()),
        "n": len(a),
        "baseline_only_right": int(((a == targets) & (b != targets)).sum()),
        "candidate_only_right": int(((a != targets) & (b == targets)).sum()),
        "both_wrong": int(((a != targets) & (b != targets)).sum()),
    }


def calibration(base: Array, cand: Array, targets: Array) -> dict[str, Any]:
    """Expected calibration error of both and its bins. Guo et al. (2017), arXiv:1706.04599, eq. 3."""
    sides = {name: (confidence(o), o.argmax(axis=1) == targets) for name, o in (("baseline", base), ("candidate", cand))}
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins: list[dict[str, Any]] = [{"low": float(lo), "high": float(hi)} for lo, hi in itertools.pairwise(edges)]
    out: dict[str, Any] = {}
    for name, (sure, right) in sides.items():
        index = np.clip(np.ceil(sure * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        error = 0.0
        for i, row in enumerate(bins):
            inside = index == i
            n = int(inside.sum())
            mean, accuracy = (float(sure[inside].mean()), float(right[inside].mean())) if n else (None, None)
            row |= {f"{name}_n": n, f"{name}_confidence": mean, f"{name}_accuracy": accuracy}
            if mean is not None and accuracy is not None:
                error += n / len(right) * abs(accuracy - mean)
        out[f"{name}_ece"] = error
    return out | {"bins": bins}


def confidence(logits: Array) -> Array:
    """The largest class probability of each row of (n, classes): (n,)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    largest: Array = 1.0 / np.exp(shifted).sum(axis=1)
    return largest


def disagreements(
    base: Array, cand: Array, split: Split, labels: tuple[str, ...] | None, *, with_images: bool
) -> list[dict[str, Any]]:
    """Examples on which two classifiers differ: those the candidate lost first, then by row.

    Args:
        with_images: include the example itself, where it is an image. (It is the user's data.)
    """
    assert split.targets is not None
    a, b, y = base.argmax(axis=1), cand.argmax(axis=1), split.targets

    def name(c: Any) -> str:
        return labels[int(c)] if labels and c < len(labels) else str(int(c))  # a model may have more outputs than labels

    rows = np.flatnonzero(a != b)
    rows = rows[np.lexsort((rows, a[rows] != y[rows]))][:MAX_DISAGREEMENTS]
    out = []
    for i in rows:
        entry = {"index": int(i), "target": name(y[i]), "baseline": name(a[i]), "candidate": name(b[i])}
        if with_images and (image := _png(split.inputs[0][i])) is not None:
            entry["image"] = image
        out.append(entry)
    return out


def _png(array: Array) -> str | None:
    """A data URI of an image (channels, height, width), stretched to its own range; None for anything else."""
    import base64
    import io

    from PIL import Image

    if array.ndim != 3 or array.shape[0] not in (1, 3):
        return None
    low, high = float(array.min()), float(array.max())
    grey = ((array - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    image = Image.fromarray(grey[0] if len(grey) == 1 else grey.transpose(1, 2, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
