"""The noise scale from the gradients of single examples, where a step is one batch on one process."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.batch.layers import NORMALISATIONS, as_normalised, shares_of, squares_of, statistics_of
from tenfold.batch.measured import Groups, Meter

_OF_IMAGES = (nn.Conv1d, nn.BatchNorm1d, nn.GroupNorm)
"""Layers whose second dimension of three is channels."""


class ExampleMeter(Meter):
    """Gradient noise scale from the norms of single examples' gradients.

    `add` after the backward pass of a step: before gradients are clipped, and before they are zeroed. The loss has to be a mean
    over the batch, or a constant times it, and the first dimension of every layer's input the batch. Rows of a batch are taken
    to be in random order, as `sample` means the first ones.

    Exact for linear, convolution, embedding and normalisation layers; a layer may be used several times, and layers may share weights. What a
    model does with weights outside of its layers, by functions, is not seen.

    Args:
        model: the module that is trained.
        sample: rows of each batch whose gradients are looked at; all of them cost about as much as the backward pass. Fewer
            make the noise less certain and leave it unbiased.
        normalisations_only: measure the parameters of normalisation layers alone, at next to no cost. Their noise scale goes up and
            down with the model's, and is not the same (arXiv:2411.00999): calibrate it once.
        half_life, groups, population: as in `NoiseMeter`.

    Raises:
        ValueError: a parameter belongs to a layer of another kind (named), or the model is spread over ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sample: int | None = None,
        normalisations_only: bool = False,
        half_life: float | None = None,
        groups: Groups | None = None,
        population: int | None = None,
    ) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError("the gradients that are there are the mean over ranks, and single examples only of this one: use NoiseMeter")  # noqa: TRY004 - as all that cannot be measured
        if sample is not None and sample < 1:
            raise ValueError(f"sample is {sample}: at least one row of a batch has to be looked at")
        kinds = tuple(NORMALISATIONS)
        layers = [(name, m) for name, m in model.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        if normalisations_only:
            layers = [(name, m) for name, m in layers if type(m) in kinds]
            if not layers:
                raise ValueError("the model has no normalisation layer with parameters: measure all layers, without normalisations_only")
        for name, layer in layers:
            if shares_of(layer) is None:
                raise ValueError(
                    f"the gradients of single examples are not known for {type(layer).__name__} ({name or 'the model itself'}): "
                    "split the batch in two or more and use NoiseMeter"
                )
        self._sample = sample
        parameters = {id(p): p for _, m in layers for p in m.parameters(recurse=False)}
        super().__init__(parameters.values(), groups, half_life, population)
        self._index = {id(p): i for i, p in enumerate(self._parameters)}
        self._hooks = [m.register_forward_hook(self._forward) for _, m in layers]
        self._clear()

    def _clear(self) -> None:
        self._uses: Counter[int] = Counter()
        self._squares: dict[int, Tensor] = {}
        self._shares: dict[int, Tensor] = {}
        self._batch: set[int] = set()
        self._flat: set[int] = set()
        """Of embeddings that were given one row of numbers: how many."""
        self._places: set[int] = set()
        """Of sequences, how long they were."""
        self._in_pass, self._passes = False, 0

    def _forward(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled() or not output.requires_grad:
            return
        x = inputs[0].detach()
        for p in layer.parameters(recurse=False):
            self._uses[id(p)] += 1
        statistics = statistics_of(output) if isinstance(layer, nn.modules.batchnorm._BatchNorm) else None
        output.register_hook(lambda delta: self._backward(layer, x, delta, statistics))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _backward(self, layer: nn.Module, x: Tensor, delta: Tensor, statistics: tuple[Tensor, Tensor] | None) -> None:
        """Takes the squared norms of a layer's use; where a parameter is used elsewhere too, the shares, which have to be added first."""
        if not self._in_pass:
            self._in_pass = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_of_pass)
        rows = slice(0, self._sample)
        known = statistics is not None
        whole = isinstance(layer, nn.modules.batchnorm._BatchNorm) and not known  # its statistics need all rows
        self._batch.add(len(x))
        if isinstance(layer, nn.Embedding) and x.ndim == 1:
            self._flat.add(len(x))
        elif x.ndim == 3 and not isinstance(layer, _OF_IMAGES):
            self._places.add(x.shape[1])
        exact = torch.promote_types(delta.dtype, torch.float32)  # squares of half floats are out of their range
        x, delta = (x if whole else x[rows]).to(exact if x.is_floating_point() else x.dtype), delta.detach()[rows].to(exact)
        if statistics is not None:
            x = as_normalised(x, statistics)
        wanted = {name: p for name, p in layer.named_parameters(recurse=False) if id(p) in self._index}
        with torch.autocast(delta.device.type, enabled=False):  # a backward pass may be run within one
            self._look(layer, x, delta, wanted, normalised=known)

    def _look(self, layer: nn.Module, x: Tensor, delta: Tensor, wanted: dict[str, nn.Parameter], *, normalised: bool) -> None:
        if all(self._uses[id(p)] == 1 for p in wanted.values()):
            for name, squares in squares_of(layer, x, delta, normalised=normalised).items():
                if name in wanted:
                    self._squares[id(wanted[name])] = squares
            return
        shares = shares_of(layer, normalised=normalised)
        assert shares is not None
        for name, share in shares(layer, x, delta).items():
            if name in wanted:
                key = id(wanted[name])
                self._shares[key] = self._shares[key] + share if key in self._shares else share

    def _end_of_pass(self) -> None:
        self._in_pass = False
        self._passes += 1

    def add(self) -> None:
        """A step's backward pass is done, and the gradients are there."""
        squares = self._squares | {key: share.flatten(1).square().sum(1) for key, share in self._shares.items()}
        sizes, passes, alike = self._batch, self._passes, self._flat & self._places
        self._clear()
        if not squares:
            raise ValueError("add() was called before any backward pass: call it after loss.backward()")
        if passes > 1:
            raise ValueError(f"{passes} backward passes since the last add(): a step is one here; where gradients are added up use NoiseMeter")
        if len(sizes) > 1:
            raise ValueError(
                f"layers were given first dimensions of {', '.join(str(s) for s in sorted(sizes))}, so the first is not always the batch: "
                "use NoiseMeter with micro-batches"
            )
        if alike & sizes:
            raise ValueError(
                f"an embedding was given {max(alike)} numbers, as many as there are examples and as many as a sequence has places: one cannot be told "
                "from the other, so use another batch size, or NoiseMeter"
            )
        examples = sizes.pop()
        if examples < 2:
            raise ValueError("a batch of one example says nothing of noise: use batches of two at least")
        device = next(iter(squares.values())).device
        parts = torch.zeros(len(self._index), dtype=torch.float64, device=device)
        for key, of_rows in squares.items():
            # Σ |h_i|² over the batch, by the mean of the rows that were looked at
            parts[self._index[key]] = of_rows.double().mean() * examples
        self._take(parts, count=examples, examples=examples)
