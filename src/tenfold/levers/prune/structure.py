"""Takes whole channels, neurons and attention heads out of a model, together with all that depends on them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import WorkloadError, first_line
from tenfold.levers.prune.attention import narrow_attention

ROUND_TO = 8
"""Channels come in blocks of 8 where an engine lays them out by vectors."""
_HEADS = ("num_heads", "n_heads", "heads", "n_head", "nhead", "num_attention_heads")
"""Names under which a module says how many heads it has."""
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM)


def pruned(model: nn.Module, example: tuple[Tensor, ...], keep: float) -> nn.Module:
    """A narrower copy of `model`: of every group of coupled channels, the share `keep` with the largest weights.

    Groups are found by tracing which layers depend on one another (DepGraph, Fang et al. 2023,
    arXiv:2301.12900); their importance is the mean L2 norm over all layers of the group. Channels of
    inputs and outputs stay. Attention loses whole heads.

    Args:
        example: inputs (at least 2, …) of the model.

    Raises:
        WorkloadError: there is nothing that could be taken out, or the model cannot do without it.
    """
    import torch_pruning as tp

    try:
        model = copy.deepcopy(model).cpu().eval()
    except Exception as error:  # the model may hold what cannot be copied
        raise WorkloadError(f"the model cannot be copied ({first_line(error)})") from error
    with torch.no_grad():
        wanted = model(*example).shape
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    before = sum(p.numel() for p in model.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=1.0 - keep, global_pruning=False,
                ignored_layers=[*_last_layers(model, example), *_recurrent(model), *_in_own_attention(model)], round_to=ROUND_TO, num_heads=heads,
            )  # fmt: skip
            pruner.step()
        narrow_attention(model, keep)
        with torch.no_grad():
            got = model(*example).shape
    except Exception as error:  # tracing and the narrowed model raise whatever the user's own forward does
        raise WorkloadError(f"channels cannot be taken out of this model ({first_line(error)}): it fixes a width somewhere, or cannot be traced") from error
    if got != wanted:
        raise WorkloadError(f"without some channels the model gives outputs of {tuple(got)}, not {tuple(wanted)}: its last layer cannot be told")
    if sum(p.numel() for p in model.parameters()) == before:
        raise WorkloadError("no group of channels, neurons or heads was found that could be taken out")
    return model


def _recurrent(model: nn.Module) -> list[nn.Module]:
    """Layers that are left as they are: their gates share a width that the library cannot narrow."""
    return [m for m in model.modules() if isinstance(m, nn.RNNBase)]


def _in_own_attention(model: nn.Module) -> Iterator[nn.Module]:
    """Projections of attention that is no `nn.MultiheadAttention`, but says how many heads it has: channels taken out of them would cross heads."""
    for module in model.modules():
        if any(isinstance(m, nn.MultiheadAttention) for m in module.modules()):
            continue
        if any(isinstance(heads := getattr(module, name, None), int) and heads > 1 for name in _HEADS):
            yield from (m for m in module.children() if isinstance(m, nn.Linear))


def _last_layers(model: nn.Module, example: tuple[Tensor, ...]) -> Iterator[nn.Module]:
    """Layers that make the output: the last to run, and any whose output it is."""
    ran: list[tuple[nn.Module, Any]] = []
    hooks = [
        m.register_forward_hook(lambda module, _args, output: ran.append((module, output)))
        for m in model.modules()
        if isinstance(m, (*_ROOTS, nn.MultiheadAttention))
    ]
    try:
        with torch.no_grad():
            output = model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    if ran:
        yield ran[-1][0]
    for module, own in ran[:-1]:
        if isinstance(own, Tensor) and own.untyped_storage().data_ptr() == output.untyped_storage().data_ptr():
            yield module
