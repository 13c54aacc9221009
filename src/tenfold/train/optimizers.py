"""Optimizers of PyTorch, and of libraries, by the names of a `TrainConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tenfold.errors import WorkloadError
from tenfold.train.config import TrainConfig
from tenfold.train.halved import halve
from tenfold.train.schedule import momentum_at, rate_factor


class Optimizer(Protocol):
    """What the training loop asks of an optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer of a config over the parameters that learn; weights decay, biases and normalisation parameters do not.

    Raises:
        WorkloadError: it is of a library that is not installed.
    """
    optimizer: Optimizer = _make(model, config)
    if config.state == "bfloat16":
        halve(*(optimizer.inner if isinstance(optimizer, Together) else [optimizer]))
    return optimizer


def _make(model: nn.Module, config: TrainConfig) -> Any:
    if config.optimizer == "muon":
        return _muon(model, config)
    groups = _groups((p for p in model.parameters() if p.requires_grad), config)
    rate, betas = config.learning_rate, (config.momentum, config.second_beta)
    if config.schedule == "free":
        schedulefree = _library("schedulefree")
        kind = schedulefree.SGDScheduleFree if config.optimizer == "sgd" else schedulefree.AdamWScheduleFree
        more = {"momentum": config.momentum} if config.optimizer == "sgd" else {"betas": betas}
        free: Optimizer = kind(groups, rate, **more)
        free.train()  # type: ignore[attr-defined]
        return free
    if config.optimizer == "lion":
        lion: Optimizer = _library("lion_pytorch").Lion(groups, rate, betas=betas)
        return lion
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, rate, betas=betas)


def set_rate(optimizer: Optimizer, config: TrainConfig, share: float) -> None:
    """Set learning rate and momentum for `share` of the training."""
    rate, momentum = config.learning_rate * rate_factor(config, share), momentum_at(config, share)
    for group in optimizer.param_groups:
        group["lr"] = rate
        if config.schedule == "one_cycle" and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif config.schedule == "one_cycle":
            group["momentum"] = momentum


def _groups(parameters: Iterable[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    each = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in each if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in each if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise WorkloadError(f"this optimizer needs the package {name.replace('_', '-')}: pip install 'tenfold[optimizers]'") from error


# ---------------------------------------------------------------- Muon


class FlatMuon(torch.optim.Muon):
    """Muon over weights of any number of dimensions, each taken for a matrix of one row an output."""

    def __init__(self, weights: list[nn.Parameter], config: TrainConfig) -> None:
        self.weights = weights
        views = [nn.Parameter(_matrix(w.data)) for w in weights]
        # steps as large as AdamW's, so that its rates and decay will do (Liu et al. 2025, arXiv:2502.16982)
        super().__init__(views, config.learning_rate, weight_decay=config.weight_decay, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")

    def zero_grad(self, set_to_none: bool = True) -> None:
        del set_to_none
        for weight in self.weights:
            weight.grad = None

    def step(self, closure: Any = None) -> Any:
        for weight, view in zip(self.weights, self.param_groups[0]["params"], strict=True):
            view.grad = None if weight.grad is None else _matrix(weight.grad, like=weight)
        return super().step(closure)  # type: ignore[no-untyped-call]


def _matrix(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """(outputs, …) as (outputs, all else), in the order in which `like` (None: itself) lies in memory, so that weights share their storage."""
    like = tensor if like is None else like
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)


class Together:
    """Two optimizers of different parameters as one."""

    def __init__(self, *inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [g for optimizer in self.inner for g in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.inner:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer in self.inner:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """As one optimizer's: parameters are numbered through."""
        whole: dict[str, Any] = {"state": {}, "param_groups": []}
        for first, optimizer in zip(self._firsts(), self.inner, strict=True):
            own = optimizer.state_dict()
            whole["state"] |= {first + i: buffers for i, buffers in own["state"].items()}
            whole["param_groups"] += [{**g, "params": [first + i for i in g["params"]]} for g in own["param_groups"]]
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = list(state_dict["param_groups"])
        for first, optimizer in zip(self._firsts(), self.inner, strict=True):
            count = sum(len(g["params"]) for g in optimizer.param_groups)
            mine = [groups.pop(0) for _ in optimizer.param_groups]
            optimizer.load_state_dict(
                {
                    "state": {i - first: b for i, b in state_dict["state"].items() if first <= i < first + count},
                    "param_groups": [{**g, "params": [i - first for i in g["params"]]} for g in mine],
                }
            )

    def _firsts(self) -> list[int]:
        counts = [sum(len(g["params"]) for g in o.param_groups) for o in self.inner]
        return [sum(counts[:i]) for i in range(len(counts))]


def _own_weight(module: nn.Module) -> Tensor:
    """The parameter itself, where the weight is computed from it."""
    weight: Tensor = module.parametrizations.weight.original if is_parametrized(module, "weight") else module.weight  # type: ignore[union-attr, assignment]
    return weight


def _muon(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Muon over the matrices inside a model; AdamW, as Muon's author advises, over embeddings, what makes the output, and all that is no matrix."""
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))][-1:]
    apart = {id(_own_weight(m)) for m in (*last, *(m for m in model.modules() if isinstance(m, nn.Embedding)))}
    learn = [p for p in model.parameters() if p.requires_grad]
    inside = [p for p in learn if p.ndim > 1 and id(p) not in apart and _matrix(p.data).data_ptr() == p.data_ptr()]
    chosen = {id(p) for p in inside}
    others = _groups((p for p in learn if id(p) not in chosen), config)
    adamw = [torch.optim.AdamW(others, config.learning_rate, betas=(config.momentum, config.second_beta))] if others else []
    return Together(*([FlatMuon(inside, config)] if inside else []), *adamw)
