"""The paths that full-batch, mini-batch and stochastic descent take from one start, over one plane through weight space.

The plane holds the two directions in which the paths differ most from their start (in the manner of Li et al. 2018, arXiv:1712.09913,
section 7.2); the loss is that over the same examples everywhere.
"""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tenfold.build import Builder
from tenfold.data.split import Split
from tenfold.errors import first_line
from tenfold.train.feed import Feed
from tenfold.train.loop import pick_device

SCALES = ((256, 21), (128, 15), (64, 11))
"""What descent sees, a part of train, so that the whole of it can be a batch; and the loss along either side of the plane: as much as there is time for."""
SNAPSHOTS = 24
"""Of a path."""
MINI = 16
KINDS, MOST_BYTES = 3, 1 << 30
"""Of descent, and what the snapshots of all of them may take."""
ROOM = 0.25
"""Of the paths' extent, around them."""


def paths(builder: Builder, *, seconds: float, most: int = SCALES[0][0]) -> dict[str, Any]:
    """Paths (n, 2) by name, and the loss on a grid of the plane; or the `reason`, why there is no picture.

    Plain descent, without momentum, all at one rate and over as many examples: the full batch takes the fewest steps. Those that diverge at that
    rate, or cannot be trained one by one, are named in `left_out`.

    Args:
        most: examples that fit into memory at once.
    """
    weights = sum(p.numel() for p in builder.fresh().parameters())
    if 4 * weights * (SNAPSHOTS + 1) * KINDS > MOST_BYTES:
        return {"reason": f"the model's {weights:,} weights along three paths would take more than {MOST_BYTES >> 30} GiB"}
    try:
        model, loss = builder.fresh().to(pick_device()).train(), builder.workload.loss_function()
        examples, grid, epochs = _scale(builder, model, loss, seconds, most)
        return _paths(builder, model, loss, examples, grid, epochs) if epochs else {"reason": "it takes too long for this budget"}
    except Exception as error:  # the user's model may raise anything; it is a picture, and nothing rests on it
        return {"reason": f"{type(error).__name__}: {first_line(error)}"}


def _part(builder: Builder, examples: int) -> Split:
    train = builder.examples.split("train")
    return train.take(np.random.default_rng(builder.seed).permutation(len(train))[:examples])


def _scale(builder: Builder, model: nn.Module, loss: Any, seconds: float, most: int) -> tuple[int, int, int]:
    """Examples, points along a side of the grid, and epochs: the most that there is time and memory for; no epochs where there is none."""
    part = _part(builder, min(SCALES[-1][0], most))
    an_epoch = sum(_seconds_of_step(model, Feed(part, batch), loss) * len(part) / batch for batch in _sizes(len(part)).values()) / len(part)
    forward = _seconds_of_step(model, Feed(part, len(part)), loss) / len(part)  # with its backward pass: more than it will take
    for examples, grid in SCALES:
        if examples <= most or examples == SCALES[-1][0]:
            epochs = int(min(4 * SNAPSHOTS, (seconds - grid**2 * examples * forward) / (an_epoch * examples))) // SNAPSHOTS * SNAPSHOTS
            if epochs >= SNAPSHOTS:
                return min(examples, most), grid, epochs
    return len(part), SCALES[-1][1], 0


def _sizes(examples: int) -> dict[str, int]:
    return {"full batch": examples, f"batches of {MINI}": min(MINI, examples), "one by one": 1}


def _paths(builder: Builder, model: nn.Module, loss: Any, examples: int, side: int, epochs: int) -> dict[str, Any]:
    device, part = pick_device(), _part(builder, examples)
    start = parameters_to_vector(model.parameters()).detach().clone()
    inputs, target = next(Feed(part, len(part), seed=builder.seed).parts(0, device))
    assert target is not None

    def loss_at(weights: Tensor) -> float:
        vector_to_parameters(weights, model.parameters())
        torch.manual_seed(builder.seed)  # what dropout leaves out is the same everywhere
        with torch.no_grad():
            return float(loss(model(*inputs).float(), target))

    rate = _stable_rate(model, inputs, target, loss, start)
    found, left_out = dict[str, Tensor](), dict[str, str]()
    for name, batch in _sizes(len(part)).items():
        vector_to_parameters(start.clone(), model.parameters())
        try:
            descended = _descend(model, Feed(part, batch, seed=builder.seed), loss, rate, epochs)
        except Exception as error:  # a batch of one example cannot be normalised, and the user's model may raise anything
            left_out[name] = first_line(error)
            continue
        if bool(torch.isfinite(descended).all()):
            found[name] = descended
        else:
            left_out[name] = "diverges at that rate"
    if not any((f != start).any() for f in found.values()):
        return {"reason": "no descent moved the weights"}
    moves = torch.cat([f - start for f in found.values()])
    _, _, directions = torch.pca_lowrank(moves, q=2, center=False)
    flat = {name: ((f - start) @ directions).cpu().numpy() for name, f in found.items()}
    every = np.concatenate(list(flat.values()))
    low, high = every.min(0), every.max(0)
    low, high = low - ROOM * (high - low), high + ROOM * (high - low)
    xs, ys = (np.linspace(low[i], high[i], side) for i in range(2))
    grid = [[loss_at(start + directions @ torch.tensor([x, y], dtype=start.dtype, device=device)) for x in xs] for y in ys]
    return {
        "paths": {name: p.round(5).tolist() for name, p in flat.items()}, "x": xs.tolist(), "y": ys.tolist(),
        "loss": [[v if np.isfinite(v) else None for v in row] for row in grid], "rate": rate, "examples": len(part), "epochs": epochs,
        "left_out": left_out,
        "explained": float((moves @ directions).square().sum() / moves.square().sum()),
    }  # fmt: skip


def _stable_rate(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor, loss: Any, start: Tensor) -> float:
    """Half the largest rate, a power of two, with which four steps of full-batch descent lower the loss, each of them."""
    rate = 4.0
    while rate > 1e-6:
        vector_to_parameters(start.clone(), model.parameters())
        descent, losses = torch.optim.SGD(model.parameters(), rate), []
        for _ in range(4):
            descent.zero_grad()
            torch.manual_seed(0)  # or what dropout leaves out would make it rise and fall
            now = loss(model(*inputs).float(), target)
            losses.append(now.item())
            now.backward()
            descent.step()
        if all(a > b for a, b in pairwise(losses)):
            return rate / 2
        rate /= 2
    return rate


def _seconds_of_step(model: nn.Module, feed: Feed, loss: Any, steps: int = 3) -> float:
    began = time.monotonic()
    with suppress(Exception):  # a batch of one example cannot be normalised: why is said where it is descended
        for step in range(steps):
            for inputs, target in feed.parts(step, pick_device()):
                loss(model(*inputs).float(), target).backward()
    return (time.monotonic() - began) / steps


def _descend(model: nn.Module, feed: Feed, loss: Any, rate: float, epochs: int) -> Tensor:
    """Weights (snapshots + 1, parameters) along plain descent."""
    device, out = pick_device(), [parameters_to_vector(model.parameters()).detach().clone()]
    descent, every = torch.optim.SGD(model.parameters(), rate), epochs * feed.epoch // SNAPSHOTS
    for step in range(every * SNAPSHOTS):
        descent.zero_grad()
        for inputs, target in feed.parts(step, device):
            loss(model(*inputs).float(), target).backward()
        descent.step()
        if (step + 1) % every == 0:
            out.append(parameters_to_vector(model.parameters()).detach().clone())
    return torch.stack(out)
