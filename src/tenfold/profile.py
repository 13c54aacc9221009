"""What a training step takes beside a prediction: arithmetic, activations kept, bytes moved, and steps that wait for one another.

Counted on a few examples, on the CPU, operator by operator: what a compiler would fuse is counted apart.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from tenfold.build import Builder
from tenfold.errors import first_line
from tenfold.train.feed import batch_of
from tenfold.train.loop import Loss
from tenfold.train.recompute import bytes_of, memory_of

EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one example."""

    products: float
    """Multiplications, each with an addition."""
    bytes: float
    """Read and written by all operators, weights included."""
    sequential: int
    """Operators on the longest chain of which each needs what the one before it gives; of a whole batch."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A prediction beside a training step, without what the optimizer does."""

    prediction: Work
    training: Work
    kept: float
    """Bytes of activations that the backward pass needs, an example; inputs and weights apart."""


def profile_of(builder: Builder) -> dict[str, Any]:
    """The profile of a workload's model, as JSON; or `reason`, why there is none."""
    split = builder.examples.train or builder.examples.valid
    inputs, target = batch_of(split, slice(0, EXAMPLES), torch.device("cpu"))
    assert target is not None
    try:
        return asdict(profile(builder.fresh().cpu(), inputs, target, builder.workload.loss_function(inputs[0].device)))
    except Exception as error:  # the user's model and loss may raise anything, and an operator may be none that can be counted
        return {"reason": first_line(error)}


def profile(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor, loss_of: Loss) -> Profile:
    """Count what a model does with a batch. Its gradients and running statistics change."""

    def predict() -> None:
        with torch.no_grad():
            model.eval()(*inputs)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model.train()(*inputs).float(), target).backward()  # type: ignore[no-untyped-call]

    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as plainly:  # attention and recurrent layers as the products that they are
        plainly.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        before = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
        plainly.callback(torch.backends.mkldnn.set_flags, _enabled=before[0], _fp32_precision=None)
        plainly.enter_context(sdpa_kernel(SDPBackend.MATH))
        return Profile(prediction=_work(predict, len(target)), training=_work(train, len(target)), kept=_kept(train, model, inputs) / len(target))


def _work(run: Callable[[], None], examples: int) -> Work:
    with FlopCounterMode(display=False) as counter:
        run()
    with _Watch() as watch:
        run()
    return Work(products=counter.get_total_flops() / 2 / examples, bytes=watch.bytes / examples, sequential=watch.longest)


def _kept(train: Callable[[], None], model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes of what is saved for the backward pass."""
    apart = {memory_of(t) for t in (*model.parameters(), *model.buffers(), *inputs)}
    saved: dict[int, Tensor] = {}  # that they are held keeps their memory from being another's

    def pack(tensor: Tensor) -> Tensor:
        if memory_of(tensor) not in apart:
            saved[memory_of(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        train()
    return bytes_of(saved.values())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows operators: the bytes that they move, and how many wait for one another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.longest = 0
        self._after = WeakIdKeyDictionary()
        """By the memory of tensors, the operators that they needed one after the other."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in ((args, kwargs), out))
        before = [t.untyped_storage() for t in given]
        if all(any(t.untyped_storage() is m for m in before) for t in made) and not func._schema.is_mutable:
            return out  # another view of the same memory
        self.bytes += sum(t.numel() * t.element_size() for t in (*given, *made))
        at = 1 + max((self._after.get(m, 0) for m in before), default=0)  # type: ignore[no-untyped-call]
        for tensor in made:
            self._after[tensor.untyped_storage()] = at
        self.longest = max(self.longest, at)
        return out
