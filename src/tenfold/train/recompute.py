"""Blocks that keep nothing for the backward pass but their inputs, and compute the rest again (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from tenfold.errors import WorkloadError

TIMED = 3
"""Forward passes by which blocks are timed."""


@contextmanager
def recomputing(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let these modules of a model keep their inputs alone, for the backward passes that come while it is open.

    What is learned is the same, to the bit: dropout draws the same again, and batch normalisation moves its running statistics once.

    Args:
        names: as in `model.named_modules()`; or as they are within the one module that has such a name, where models are wrapped.

    Raises:
        WorkloadError: there is no such module.
    """
    modules = [_named(model, name) for name in names]
    for module in modules:
        module.forward = partial(_again, module, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _named(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = {known: module for known, module in model.named_modules() if known}
    found = [modules[name]] if name in modules else [module for known, module in modules.items() if name and known.endswith(f".{name}")]
    if len(found) != 1:
        raise WorkloadError(f"recompute: {len(found) or 'none'} of the model's modules {'are' if found else 'is'} named {name!r}: give names that named_modules() has")
    return found[0]


def _again(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_stay(module)), **kwargs)


@contextmanager
def _statistics_stay(module: nn.Module) -> Iterator[None]:
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(m.momentum, m.num_batches_tracked) for m in layers]
    for layer, (_, count) in zip(layers, before, strict=True):
        layer.momentum, layer.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


# ---------------------------------------------------------------- what is kept


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of tensors that come to be while it is open: those alive `now`, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                memory = tensor.untyped_storage()
                if memory not in self._known and not any(memory is other for other in given):
                    self._known[memory] = True
                    self.now += memory.nbytes()
                    weakref.finalize(memory, self._freed, memory.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _freed(self, count: int) -> None:
        self.now -= count


@dataclass
class Block:
    """A module that could be computed again."""

    name: str
    seconds: float = 0.0
    """Of its forward pass."""
    kept: int = 0
    """Bytes that it keeps for the backward pass, its inputs apart."""
    inputs: int = 0
    """Bytes that it is given, and that nothing else keeps."""
    calls: int = 0


def blocks_of(model: nn.Module, step: Callable[[], Tensor]) -> list[Block]:
    """Blocks of a model, those in its containers, and what each keeps and costs.

    Args:
        step: a forward pass in training, to the loss.
    """
    names = {
        f"{name}.{child}".lstrip(".") for name, module in model.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList)) for child, _ in module.named_children()
    }  # fmt: skip
    blocks = {name: Block(name=name) for name in sorted(names)}
    weights = {memory_of(t) for t in (*model.parameters(), *model.buffers())}
    on_gpu = any(p.is_cuda for p in model.parameters())
    times: dict[str, list[float]] = {name: [] for name in blocks}
    given: dict[str, dict[int, Tensor]] = {}
    saved: dict[str, dict[int, Tensor]] = {name: {} for name in ("", *blocks)}  # "" is all that is saved; held, so that no memory becomes another's
    open_now: list[tuple[str, float]] = []

    def now() -> float:
        if on_gpu:  # else what is timed is how long it takes to say what is to be done
            torch.cuda.synchronize()
        return time.perf_counter()

    def enter(name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        given[name] = {memory_of(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        blocks[name].calls += 1
        open_now.append((name, now()))

    def leave(name: str, _module: nn.Module, _args: Any, _output: Any) -> None:
        times[name].append(now() - open_now.pop()[1])

    def pack(tensor: Tensor) -> Tensor:
        at = memory_of(tensor)
        if at not in weights:
            for name in ("", *(name for name, _ in open_now if at not in given[name])):
                saved[name][at] = tensor
        return tensor

    with ExitStack() as hooks:
        for name in blocks:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(leave, name)).remove)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step()
        for name, block in blocks.items():
            block.kept = bytes_of(saved[name].values())
            block.inputs = bytes_of(t for at, t in given.get(name, {}).items() if at not in weights and at not in saved[""])
        once = [block for block in blocks.values() if block.calls == 1]
        saved.clear()
        given.clear()
        for _ in range(TIMED):
            step()
    for block in once:
        block.calls, block.seconds = 1, median(times[block.name][1:])
    return [b for b in once if b.kept > b.inputs]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of the memory behind tensors."""
    return sum(t.untyped_storage().nbytes() for t in tensors)


def cheapest(blocks: Sequence[Block], whole: int, aim: float) -> list[str]:
    """Names of the blocks that are best computed again, so that about `aim` of what is kept for the backward pass is kept; or all that help.

    Those that free most for what they cost come first, and rule out those around and within them; where they come to too little, the outermost
    are taken instead. While one is computed again, what it keeps is there for a time.

    Args:
        whole: bytes that are kept where nothing is computed again.
    """

    def kept(some: Sequence[Block]) -> int:
        return whole - sum(b.kept - b.inputs for b in some) + max((b.kept for b in some), default=0)

    def chosen(of: Sequence[Block]) -> list[Block]:
        out: list[Block] = []
        for block in sorted(of, key=lambda b: -(b.kept - b.inputs) / max(b.seconds, 1e-9)):
            if kept(out) <= aim * whole:
                break
            if not any(_within(block, b) or _within(b, block) for b in out):
                out.append(block)
        return out

    found = chosen(blocks)
    if kept(found) > aim * whole:
        found = min(found, chosen([b for b in blocks if not any(_within(b, other) for other in blocks)]), key=kept)
    return sorted(b.name for b in found)


def _within(block: Block, other: Block) -> bool:
    return block.name.startswith(f"{other.name}.")


def memory_of(tensor: Tensor) -> int:
    """A number that tensors share which are views of the same memory, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)
