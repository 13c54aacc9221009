"""What all meters of the noise scale have in common: parameters in groups, and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tenfold.batch.estimate import Floats, NoiseScale, Smoothed, moments
from tenfold.verdict import LEVEL

Groups = Mapping[str, Iterable[nn.Parameter]]


class Meter:
    """Parameters of a model that are measured, the groups that they are in, and what has been measured so far."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], groups: Groups | None, half_life: float | None, population: int | None
    ) -> None:
        if population is not None and population < 1:
            raise ValueError(f"population is {population}: give the number of examples that batches are drawn from, or None")
        self._population = population
        self._parameters = [p for p in parameters if p.requires_grad]
        if not self._parameters:
            raise ValueError("none of the parameters is trained: nothing has a gradient")
        members = {name: {id(p) for p in members} for name, members in (groups or {}).items()}
        known = {id(p) for p in self._parameters}
        for name, ids in members.items():
            if not ids & known:
                raise ValueError(f"group {name!r} has no parameter that is measured")
        self._names: list[str | None] = [None, *members]
        of_all = np.ones((1, len(self._parameters)))
        self._membership: Floats = np.concatenate([of_all, *([[id(p) in ids for p in self._parameters]] for ids in members.values())])
        """(groups, parameters) of 0 and 1; the first is the whole model."""
        self._smoothed = [Smoothed(half_life) for _ in self._names]
        self._hooks: list[RemovableHandle] = []
        self.skipped = 0
        """Steps that were left out because a gradient was infinite or NaN."""

    def _take(self, parts: Tensor, *, count: int, examples: int) -> None:
        """One step, whose gradients are there: `parts` is what `moments` takes, (parameters,)."""
        whole = torch.stack([_square_of_gradient(p).to(parts.device, parts.dtype) for p in self._parameters])
        sums = torch.stack([parts, whole]).double().cpu().numpy()
        if not np.isfinite(sums).all():
            self.skipped += 1
            return
        steps = moments(*(sums @ self._membership.T), count=count, examples=examples)
        if self._population is not None:  # without replacement, |G|² − tr(Σ)/population is what `moments` expects, G the gradient over all of them
            steps[0] += steps[1] / self._population
        for smoothed, step in zip(self._smoothed, steps.T, strict=True):
            smoothed.add(step, examples)

    def noise_scale(self, group: str | None = None, *, level: float = LEVEL) -> NoiseScale:
        """Of all that is measured, or of a group of its parameters."""
        if group not in self._names:
            raise ValueError(f"there is no group {group!r}: {', '.join(str(n) for n in self._names[1:]) or 'none was given'}")
        return self._smoothed[self._names.index(group)].noise_scale(level)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "groups": [s.state_dict() for s in self._smoothed]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]
        for smoothed, of_group in zip(self._smoothed, state["groups"], strict=True):
            smoothed.load_state_dict(of_group)


def square(gradient: Tensor) -> Tensor:
    """Squared norm, added up in float32 at least."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    if gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
        gradient = gradient.permute(0, 2, 3, 1)
    if gradient.dtype in (torch.float32, torch.float64) and gradient.is_contiguous() and gradient.numel() < 2**31:  # half the time of a norm
        flat = gradient.detach().view(-1)
        return torch.dot(flat, flat)
    exact = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient.detach(), dtype=exact)
    return norm.square()


def _square_of_gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.new_zeros((), dtype=torch.float32) if parameter.grad is None else square(parameter.grad)
