"""The whole state of a training in one safetensors file, written atomically. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tenfold.store import write_atomic
from tenfold.train.optimizers import Optimizer

CHECKPOINT_SECONDS = 20.0
"""Between two checkpoints of long work."""


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any], mean: nn.Module | None = None) -> None:
    """Model, optimizer buffers, random state, the mean of weights where there is one, and `progress` (JSON)."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if mean is not None:
        tensors |= {f"mean.{k}": v for k, v in mean.state_dict().items()}
    scalars: dict[str, Any] = {}
    whole = optimizer.state_dict()
    groups = [{k: v for k, v in group.items() if isinstance(v, (bool, int, float))} for group in whole["param_groups"]]
    for index, buffers in whole["state"].items():
        for name, value in buffers.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random on cuda"] = torch.cuda.get_rng_state()
    metadata = {"progress": json.dumps(progress), "scalars": json.dumps(scalars), "groups": json.dumps(groups)}
    write_atomic(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer, mean: nn.Module | None = None) -> dict[str, Any] | None:
    """Restore what was saved; `progress`, or None where there is no readable checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata()
    except (OSError, SafetensorError):
        return None
    for name, module in (("model.", model), ("mean.", mean)):
        if module is not None:
            module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    for key, value in json.loads(metadata["scalars"]).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    if "groups" in metadata:  # older ones have none
        groups = [{**now, **then} for now, then in zip(groups, json.loads(metadata["groups"]), strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random"])
    if "random on cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random on cuda"])
    progress: dict[str, Any] = json.loads(metadata["progress"])
    return progress
