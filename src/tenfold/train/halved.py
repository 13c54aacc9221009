"""What an optimizer remembers, kept in bfloat16 between its steps: half the memory, while activations take the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BELOW = 1 << 16
"""Values that the lower half of a float32 can have."""


def halve(*optimizers: torch.optim.Optimizer) -> None:
    """Keep the state of optimizers in bfloat16. In their steps, when activations are gone, it is float32."""
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda inner, _args, _kwargs: _convert(inner, Tensor.float))
        optimizer.register_step_post_hook(lambda inner, _args, _kwargs: _convert(inner, rounded))


def _convert(optimizer: torch.optim.Optimizer, how: Callable[[Tensor], Tensor]) -> None:
    """What has the shape of its parameter, in the parameters' order; a count of steps stays as it is."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state.get(parameter, {})
        for name in sorted(state):
            value = state[name]
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape and value.dtype in (torch.float32, torch.bfloat16):
                state[name] = how(value)


def rounded(values: Tensor) -> Tensor:
    """float32 as bfloat16, up or down at random, so that the mean is right: a moving average moves by less than half a digit at a time.

    Gupta et al. (2015), arXiv:1502.02551.
    """
    if values.dtype == torch.bfloat16:
        return values
    noise = torch.empty_like(values, dtype=torch.int32).random_(0, _BELOW)
    return ((values.view(torch.int32) + noise) & -_BELOW).view(torch.float32).to(torch.bfloat16)
