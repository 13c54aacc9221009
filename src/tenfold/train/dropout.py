"""Dropout at a share of what a model says: it takes time, and a training that is short may need less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def dropping(model: nn.Module, share: float) -> Iterator[None]:
    """Let PyTorch's own modules in a model drop a share of what they say, while it is open; 1: as they are.

    What a model drops by functions of its own stays as it is.
    """
    before = [] if share == 1.0 else list(_rates(model))
    for module, name, rate in before:
        setattr(module, name, share * rate)
    try:
        yield
    finally:
        for module, name, rate in before:
            setattr(module, name, rate)


def drops(model: nn.Module) -> bool:
    """Whether there is anything that `dropping` would change."""
    return any(rate > 0 for _, _, rate in _rates(model))


def _rates(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Modules that drop, the name under which each has its rate, and the rate."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            yield module, "p", module.p
        elif isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            yield module, "dropout", float(module.dropout)
