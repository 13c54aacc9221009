"""Which students there are for a workload: nets built for its kind of input, or smaller versions of its own model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.errors import WorkloadError, first_line
from tenfold.export import Selected, Served, as_seen_by_model
from tenfold.lever import Situation, spread
from tenfold.levers.distill.students import ImageStudent, TableStudent, image_student, table_student
from tenfold.plan import Materials
from tenfold.teaching import in_bfloat16
from tenfold.train.config import TrainConfig

Spec = dict[str, Any]
"""A student as it stands in a recipe: `family`, and what its size is said by."""

SHARES = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
"""Of its width, at which a workload's own family is tried."""
IMAGE_WIDTHS, IMAGE_DEPTHS, IMAGE_SMALLEST = (8, 16, 24, 32, 48, 64, 96, 128), (0, 1, 2), 2
TABLE_WIDTHS, TABLE_DEPTHS = (8, 16, 32, 64, 128), (0, 1, 2)
LIKELY = {"conv": (4, 16), "pooled": (16, math.inf), "stride2": (28, math.inf), "stride4": (96, math.inf)}
POSSIBLE = {"conv": (4, 16), "pooled": (16, math.inf), "stride2": (16, math.inf), "stride4": (28, math.inf)}
"""Sides of images, from and to, at which a stem is tried, and at which the joint search may choose it: strides lose the detail of small ones."""
MORE_WEIGHTS, LEAST_MOST_WEIGHTS = 4, 1 << 24
"""Weights of a student that is built here, over the model's own, up to which it is tried; and those that are tried for any model."""
SGD_RATE, ADAM_RATE = 0.3, 2e-3
"""Peak learning rates of the families built here, at batches of 128: the divergence from a teacher is gentler than a loss of labels."""


def space(situation: Situation) -> list[Spec]:
    """Every student that could be tried, in an order in which neighbours cost alike: a few that are evenly spread show the whole range."""
    inputs = situation.examples.valid.inputs
    with torch.random.fork_rng():
        served = situation.fresh()
    seen = as_seen_by_model(situation.examples.valid.take(slice(0, 2)).inputs, served.preprocess)
    specs: list[Spec] = []
    if situation.workload.student is not None:
        specs += [{"family": "own", "share": share} for share in SHARES]
    if len(inputs) == 1 and seen[0].ndim == 4:
        side = min(seen[0].shape[2:])
        specs += [
            {"family": "image", **dataclasses.asdict(ImageStudent(width=w, depth=d, stem=s, operator=o, smallest=IMAGE_SMALLEST))}  # type: ignore[arg-type]
            for w, d, o, s in product(IMAGE_WIDTHS, IMAGE_DEPTHS, ("dense", "separable"), _stems(side, LIKELY))
        ]
    elif len(inputs) == 1 and inputs[0].ndim == 2 and seen[0].is_floating_point():
        specs += [
            {"family": "table", **dataclasses.asdict(TableStudent(width=w, depth=d))}
            for d, w in product(TABLE_DEPTHS, TABLE_WIDTHS)
            if d or w == TABLE_WIDTHS[0]
        ]
    repeated = repeated_blocks(served.model, seen)
    specs += [{"family": "shallower", "keep": keep} for keep in range(len(repeated) - 1, 0, -1)]
    return specs


def _stems(side: int, sides: Mapping[str, tuple[float, float]]) -> list[str]:
    return [stem for stem, (least, most) in sides.items() if least <= side <= most]


def dimensions(situation: Situation) -> dict[str, Sequence[Any]]:
    """What the joint search may choose of a student, each with its choices in order; empty where there is no family."""
    specs = space(situation)
    found = list(dict.fromkeys(s["family"] for s in specs))
    out: dict[str, Sequence[Any]] = {"family": found}
    if "image" in found:
        with torch.random.fork_rng():
            preprocess = situation.fresh().preprocess
        side = min(as_seen_by_model(situation.examples.valid.take(slice(0, 2)).inputs, preprocess)[0].shape[2:])
        out |= {"stem": _stems(side, POSSIBLE), "operator": ["dense", "separable"], "width": list(range(8, 97, 8)), "depth": [0, 1, 2, 3]}
        out |= {"growth": [1.5, 2.0, 3.0], "smallest": [2, 4]}
    if "table" in found:
        out |= {"width": [4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256], "depth": [0, 1, 2, 3]}
    if "own" in found:
        out |= {"share": [round(0.05 * i, 2) for i in range(2, 19)]}
    if "shallower" in found:
        out |= {"keep": sorted(s["keep"] for s in specs if s["family"] == "shallower")}
    return out if found else {}


def at(point: Mapping[str, Any]) -> Spec:
    """The student of a point."""
    names = {
        "image": [f.name for f in dataclasses.fields(ImageStudent)],
        "table": [f.name for f in dataclasses.fields(TableStudent)],
        "own": ["share"],
        "shallower": ["keep"],
    }[point["family"]]
    return {"family": point["family"], **{n: point[n] for n in names}}


def lighter(specs: Sequence[Spec], situation: Situation) -> list[Spec]:
    """Without what is built here to have too many weights, or to compute more products than the model itself (unless all of them do)."""
    served = situation.fresh()
    _, own = _size(served.model, as_seen_by_model(situation.examples.valid.take(slice(0, 1)).inputs, served.preprocess))
    built_here = [s for s in specs if s["family"] in ("image", "table")]
    measured = list(zip(built_here, sizes(built_here, situation), strict=True))
    heavy = [s for s, (weights, _) in measured if weights > most_weights(served)]
    dearer = [s for s, (_, products) in measured if products > own]
    able = [s for s in specs if s not in heavy]
    return [s for s in able if s not in dearer] or able


def sizes(specs: Sequence[Spec], situation: Situation) -> list[tuple[int, int]]:
    """Each student's weights, and its products a prediction. Of what is built here nothing is allocated: it may be too large for that."""
    with torch.random.fork_rng():
        served = situation.fresh()
        materials = Materials(workload=situation.workload, examples=situation.examples, seed=0, folder=Path())
        example = as_seen_by_model(situation.examples.valid.take(slice(0, 1)).inputs, served.preprocess)
        outputs = _outputs(served, example)

        def size(spec: Spec) -> tuple[int, int]:
            if spec["family"] in ("image", "table"):
                return _size(_outline(spec, example, outputs), tuple(x.to("meta") for x in example))
            teacher = situation.fresh() if spec["family"] == "shallower" else served  # that one is taken apart
            return _size(build(spec, teacher, materials), example)

        return [size(spec) for spec in specs]


def _outputs(teacher: Served, example: tuple[Tensor, ...]) -> torch.Size:
    """Of an example: the shape."""
    with torch.no_grad():
        shape: torch.Size = teacher.model.cpu().eval()(*example).shape[1:]
    return shape


def _outline(spec: Spec, example: tuple[Tensor, ...], outputs: torch.Size) -> nn.Module:
    """A student that is built here, without memory for its weights."""
    with torch.device("meta"):
        return _built_here(spec, example, outputs)


def _built_here(spec: Spec, example: tuple[Tensor, ...], outputs: torch.Size) -> nn.Module:
    size = {k: v for k, v in spec.items() if k != "family"}
    if spec["family"] == "image":
        return image_student(ImageStudent(**size), example[0].shape[1], min(example[0].shape[2:]), outputs)
    return table_student(TableStudent(**size), example[0].shape[1], outputs)


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _size(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[int, int]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused form of an encoder layer
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(*example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return _weights(model), counter.get_total_flops() // 2


def build(spec: Spec, teacher: Served, materials: Materials) -> nn.Module:
    """The untrained student; what is made of the teacher itself has its weights.

    Raises:
        WorkloadError: the workload's own `student` gives something else than the model; or what would be built here has very many more weights.
    """
    example = as_seen_by_model(materials.examples.valid.take(slice(0, 2)).inputs, teacher.preprocess)
    outputs = _outputs(teacher, example)
    if spec["family"] == "own":
        return _own(materials, spec["share"], example, outputs)
    if spec["family"] == "shallower":
        return shallower(teacher.model, spec["keep"], example)
    if (weights := _weights(_outline(spec, example, outputs))) > (most := most_weights(teacher)):
        raise WorkloadError(f"the student would have {weights:,} weights, more than the {most:,} that are tried for this model")
    return _built_here(spec, example, outputs)


def most_weights(teacher: Served) -> int:
    """Of a student that is built here."""
    return max(MORE_WEIGHTS * _weights(teacher.model), LEAST_MOST_WEIGHTS)


def training_of(spec: Spec, training: TrainConfig) -> TrainConfig:
    """How a student is trained, apart from rate, dtype and length."""
    if spec["family"] == "image":
        return TrainConfig(batch_size=training.batch_size, accumulate=training.accumulate, optimizer="sgd", weight_decay=1e-4, channels_last=True)
    if spec["family"] == "table":
        return TrainConfig(batch_size=training.batch_size, accumulate=training.accumulate, weight_decay=1e-4)
    return dataclasses.replace(training, recompute=())  # a student has modules of its own


def learning_rate(spec: Spec, training: TrainConfig) -> float:
    """Peak rate: by batch for what is built here; the workload's own for its own family, half of it where weights are kept."""
    scale = training.batch_size / 128
    if spec["family"] == "image":
        return SGD_RATE * scale
    if spec["family"] == "table":
        return float(ADAM_RATE * scale**0.5)
    return training.learning_rate * (0.5 if spec["family"] == "shallower" else 1.0)


def dtype(spec: Spec, situation: Situation) -> Literal["float32", "bfloat16"]:
    """What a student is trained in: bfloat16 may do for what is built here, a user's own family keeps its dtype."""
    half = spec["family"] == "image" and in_bfloat16(situation.workload, situation.examples)
    return "bfloat16" if half else situation.plan.training.dtype


def _own(materials: Materials, share: float, example: tuple[Tensor, ...], outputs: torch.Size) -> nn.Module:
    assert materials.workload.student is not None
    try:
        student = materials.workload.student(share)
        if materials.workload.output is not None:
            student = Selected(student, materials.workload.output)
        with torch.no_grad():
            got = student.eval()(*example).shape[1:]
    except Exception as error:  # the user's own code may raise anything
        raise WorkloadError(f"student({share:g}) raised {type(error).__name__}: {first_line(error)}") from error
    if got != outputs:
        raise WorkloadError(f"student({share:g}) gives outputs of shape {tuple(got)}, the model {tuple(outputs)}: make them the same")
    return student.train()


# ---------------------------------------------------------------- the model itself, with fewer of its repeated blocks


class PassOn(nn.Module):
    """What stands where a block was taken out: gives its first argument on."""

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return x


def repeated_blocks(model: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Names of blocks that could be taken out: of one class, in one container, with outputs shaped as their inputs; the longest such row."""
    shapes: dict[str, bool] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            same = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0].shape == output.shape
            shapes[name] = same and name not in shapes  # called once

        return hook

    modules = dict(model.named_modules())
    hooks = [m.register_forward_hook(note(n)) for n, m in modules.items() if n and any(True for _ in m.parameters())]
    try:
        with torch.no_grad():
            model.eval()(*example)
    finally:
        for hook in hooks:
            hook.remove()
    rows: dict[tuple[str, type], list[str]] = {}
    for name, module in modules.items():
        parent = name.rpartition(".")[0]
        if shapes.get(name) and isinstance(modules[parent], (nn.Sequential, nn.ModuleList)) and any(True for _ in module.children()):
            rows.setdefault((parent, type(module)), []).append(name)
    longest = max(rows.values(), key=len, default=[])
    return longest if len(longest) > 1 else []


def shallower(model: nn.Module, keep: int, example: tuple[Tensor, ...]) -> nn.Module:
    """`model`, in place, with `keep` of its repeated blocks, evenly spread, and the weights that they have."""
    names = repeated_blocks(model, example)
    kept = spread(names, keep)
    for name in names:
        if name not in kept:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, PassOn())
    return model
