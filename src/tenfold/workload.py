"""What is to be learned: a model, its data, a loss, a metric and the margin that quality may give up.

`Workload` is what a user writes. `load` turns it into `Examples`: checked splits in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tenfold.data.carve import carve
from tenfold.data.sources import IMAGE_SUFFIXES, image_classes, to_split
from tenfold.data.split import Array, Split, check_numbers, duplicates, joined
from tenfold.errors import WorkloadError, first_line
from tenfold.recipe import canonical, digest
from tenfold.train.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Scores = NDArray[np.float64]
SPLITS = ("train", "valid", "confirm", "test")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the data it is for.

    Data is anything that `tenfold.data.sources.to_split` takes: (x, y) arrays, a pandas frame, a
    torch `Dataset`, a folder of class folders of images, parquet, csv. Splits that are missing are
    carved out of the others, deterministically, and the run says so.
    """

    model: Callable[[], nn.Module]
    """Builds the untrained model. It maps a batch of inputs to one tensor (batch, …), or to several: see `output`."""
    margin: float
    """The quality that may be given up, in units of the metric (`margin_kind`). Above 0."""
    train: Any = None
    """What the model learns from. None: only post-training levers are pulled."""
    valid: Any = None
    """What choices are made on."""
    confirm: Any = None
    """A part of valid that search never sees; it orders the candidates."""
    test: Any = None
    """What certifies, opened once."""
    unlabelled: Any = None
    """More inputs without targets, of the shape of train's: a student learns from them what its teacher answers."""
    name: str = ""
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy"
    """`cross_entropy` (the classes along axis 1, or the last), `binary_cross_entropy` (of logits), `mse`, `l1`, or a function of (output, target)."""
    metric: str | Callable[[Array, Array], Array] = "accuracy"
    """`accuracy`, `log_loss` (nats a prediction), `squared_error`, `absolute_error`, or a function of (outputs, targets) to scores (n,); it may be given
    a part of the examples at a time."""
    higher_is_better: bool | None = None
    """None: as the named metric has it; True for a function."""
    class_scores: bool | None = None
    """Whether outputs are one logit a class. None: they are with the loss `cross_entropy`, or the metric `accuracy` or `log_loss`."""
    margin_kind: Literal["absolute", "relative"] = "absolute"
    """`relative`: the margin is a share of the baseline's own quality."""
    pretrained: str | Path | None = None
    """A safetensors file with the model's trained weights: its training is skipped."""
    output: int | str | None = None
    """Which of the things that the model returns is served: a place in a tuple, or a key of a dict."""
    training: TrainConfig = field(default_factory=TrainConfig)
    student: Callable[[float], nn.Module] | None = None
    """Builds the model at a share of its width, such as `lambda share: Net(round(64 * share))`: a family that `distill` searches."""
    teacher: Callable[[], nn.Module] | None = None
    """Builds a better model, trained, that takes the same inputs: students learn from it, not from the baseline."""
    augment: Callable[[Tensor, Any], Tensor] | None = None
    """(batch, generator) to batch, on the first input as it is stored, in training only."""
    preprocess: nn.Module | None = None
    """Goes into the served graph, before the model, on the first input. Default for uint8: x / 255."""
    labels: Sequence[str] | None = None
    """Class names, in the order of the model's outputs."""
    groups: str | None = None
    """Column of a table that says which rows belong together. (Arrays: pass (x, y, groups).)"""
    target: str | None = None
    """Column of a table to be predicted."""
    image_size: tuple[int, int] | None = None
    """(height, width) that images from files are resized to."""
    read: Callable[[Path], Any] | None = None
    """How `tenfold update` reads new data: a path to what `train` may be. None: as a path given as `train` is read."""
    slices: Callable[[Split], Mapping[str, Array]] | None = None
    """Parts of the data to report on: names to boolean masks (n,). None: by class, where there are classes."""
    slice_margins: Mapping[str, float] = field(default_factory=dict)
    """Margins that single slices must keep as well."""
    demo: bool = False
    """A demonstration: its figures claim nothing."""

    def __post_init__(self) -> None:
        if not (isinstance(self.margin, (int, float)) and math.isfinite(self.margin) and self.margin > 0):
            raise WorkloadError(f"margin is {self.margin!r}: it must be a number above 0, in units of the metric")
        if not callable(self.model):
            raise WorkloadError("model= must be a function that builds the model, such as `lambda: Net()`")
        if self.margin_kind not in ("absolute", "relative"):
            raise WorkloadError(f"margin_kind is {self.margin_kind!r}: use 'absolute' or 'relative'")
        for what, known in (("loss", _LOSSES), ("metric", _METRICS)):
            value = getattr(self, what)
            if not callable(value) and value not in known:
                raise WorkloadError(f"{what} {value!r} is not known: use {', '.join(known)}, or a function")

    @property
    def metric_name(self) -> str:
        return self.metric if isinstance(self.metric, str) else _name_of(self.metric)

    @property
    def better_is_higher(self) -> bool:
        if self.higher_is_better is not None:
            return self.higher_is_better
        return _METRICS[self.metric][1] if isinstance(self.metric, str) else True

    @property
    def classifies(self) -> bool:
        """Outputs are one logit a class."""
        if self.class_scores is not None:
            return self.class_scores
        return self.loss == "cross_entropy" or self.metric in ("accuracy", "log_loss")

    def scores(self, outputs: Array, targets: Array) -> Scores:
        """One score an example, shape (n,), higher is better (the metric's sign is turned where it is not).

        Raises:
            WorkloadError: the metric gives another length, or values that are not finite.
        """
        function = self.metric if callable(self.metric) else _METRICS[self.metric][0]
        try:
            raw = np.asarray(function(outputs, targets), dtype=np.float64)
        except Exception as error:  # the metric may be the user's own, or not fit the model's outputs
            raise WorkloadError(
                f"metric {self.metric_name} does not take outputs of shape {outputs.shape} with targets of shape {targets.shape} "
                f"({type(error).__name__}: {first_line(error)}): make them fit"
            ) from error
        if raw.shape != (len(targets),):
            raise WorkloadError(
                f"metric {self.metric_name} gave shape {raw.shape} for {len(targets)} examples: "
                "it must give one score an example, shape (n,)"
            )
        if not np.isfinite(raw).all():
            raise WorkloadError(
                f"metric {self.metric_name} gave NaN or infinity for example {int(np.flatnonzero(~np.isfinite(raw))[0])}"
            )
        return raw if self.better_is_higher else -raw

    def perplexity(self, score: float) -> float | None:
        """What a mean score says as a perplexity, where it is a log loss."""
        return math.exp(-score) if self.metric == "log_loss" and score > -_LARGEST_EXPONENT else None

    def built(self, what: Literal["model", "teacher"]) -> nn.Module:
        """What the function of that name builds.

        Raises:
            WorkloadError: it raises, or builds no module.
        """
        from torch import nn

        try:
            module = getattr(self, what)()
        except Exception as error:  # the user's own code may raise anything
            raise WorkloadError(f"building the {what} raised {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(module, nn.Module):
            raise WorkloadError(f"{what}= gave a {type(module).__name__}: it must build a torch.nn.Module")
        return module

    def loss_function(self, device: torch.device | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """Of (output, target), on a device; by default the one that trains."""
        from torch import nn

        from tenfold.train.loop import pick_device

        if isinstance(self.loss, nn.Module):  # it may hold weights of classes
            return self.loss.to(device or pick_device())
        return self.loss if callable(self.loss) else _LOSSES[self.loss]()

    def absolute_margin(self, baseline: float) -> float:
        """The margin in units of the score, for a baseline of this mean score."""
        return self.margin * abs(baseline) if self.margin_kind == "relative" else self.margin


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A workload's data, loaded, divided and checked."""

    train: Split | None
    valid: Split
    confirm: Split
    test: Split
    notes: tuple[str, ...]
    labels: tuple[str, ...] | None
    classes: int | None
    """Number of classes, where the workload classifies."""
    unlabelled: Split | None = None

    def split(self, name: str) -> Split:
        split: Split | None = getattr(self, name)
        if split is None:
            raise WorkloadError(f"there is no {name} split: give {name}= in the workload")
        return split

    @property
    def can_teach(self) -> bool:
        """Whether a student could learn from them."""
        return self.train is not None or self.unlabelled is not None

    @functools.cached_property
    def to_learn_from(self) -> Split:
        """Inputs of train and of what has no labels, for a student that learns what its teacher answers."""
        parts = [s for s in (self.train, self.unlabelled) if s is not None]
        if not parts:
            raise WorkloadError("there is nothing that a student could learn from: give train= or unlabelled=")
        if len(parts) == 1:
            return Split(inputs=parts[0].inputs)
        return joined(*(Split(inputs=p.inputs) for p in parts))

    @property
    def identity(self) -> str:
        return digest([s.identity if s is not None else None for s in (self.train, self.valid, self.confirm, self.test)])

    def sizes(self) -> dict[str, int]:
        return {name: len(s) if (s := getattr(self, name)) is not None else 0 for name in SPLITS}


def load(workload: Workload) -> Examples:
    """Read, divide and check the data of a workload.

    Raises:
        WorkloadError: a split is empty, has NaN or infinity, has labels out of range, or one class only;
            or there is nothing to carve a missing split from.
    """
    labels = _labels(workload)
    splits: dict[str, Split | None] = {
        name: to_split(
            getattr(workload, name), name,
            target=workload.target, group=workload.groups, image_size=workload.image_size, labels=labels,
        )
        for name in SPLITS
    }  # fmt: skip
    for name, split in splits.items():
        if split is not None:
            check_numbers(split, name)
            splits[name] = dataclasses.replace(split, inputs=tuple(map(as_served, split.inputs)))
    given = [(name, split) for name, split in splits.items() if split is not None]
    for name, split in given[1:]:
        splits[name] = split.in_columns_of(given[0][1], name, f"{given[0][0]}, and name target= where it is not the last of them")
    splits, notes = carve(splits)
    present = {name: split for name, split in splits.items() if split is not None}
    for name in SPLITS[1:]:
        if name not in present:
            raise WorkloadError(f"there is no {name} split and too little to carve it from: give {name}= in the workload")
    shapes = {name: tuple(x.shape[1:] for x in split.inputs) for name, split in present.items()}
    if len(set(shapes.values())) > 1:
        raise WorkloadError(f"the splits differ in the shape of an example ({shapes}): give them all one shape")
    for name, split in present.items():
        if split.targets is None:
            raise WorkloadError(f"{name} has no targets: give it as (x, y)")
        if name != "train" and split.groups is not None and len(np.unique(split.groups)) < 2:
            raise WorkloadError(f"{name} has one group only: no interval can be had from it, give it more groups")
    unlabelled = _unlabelled(workload, present["valid"])
    if unlabelled is not None:
        unlabelled = _not_held_out(unlabelled, present, notes)
    classes = _check_classes(present, labels) if workload.classifies else None
    for pair, count in duplicates(present).items():
        notes.append(f"{count:,} examples of {pair.partition('/')[2]} are exact duplicates of some in {pair.partition('/')[0]}")
    return Examples(
        train=splits["train"], valid=present["valid"], confirm=present["confirm"], test=present["test"],
        notes=tuple(notes), labels=tuple(map(str, labels)) if labels else None, classes=classes,
        unlabelled=unlabelled,
    )  # fmt: skip


def _unlabelled(workload: Workload, like: Split) -> Split | None:
    """The inputs without targets, checked against the others."""
    source = workload.unlabelled
    split = to_split((source, None) if hasattr(source, "dtype") or isinstance(source, tuple) else source, "unlabelled",
                     target=workload.target, group=workload.groups, image_size=workload.image_size, labelled=False)  # fmt: skip
    if split is None:
        return None
    check_numbers(split, "unlabelled")
    split = split.in_columns_of(like, "unlabelled", "the labelled data, less the target")
    inputs = tuple(map(as_served, split.inputs))
    shapes = [[x.shape[1:] for x in inputs], [x.shape[1:] for x in like.inputs]]
    if shapes[0] != shapes[1] or [x.dtype for x in inputs] != [x.dtype for x in like.inputs]:
        raise WorkloadError(
            f"unlabelled has examples of {shapes_of(inputs)}, the labelled data of {shapes_of(like.inputs)}: give both in one form"
        )
    return Split(inputs=inputs)


def _not_held_out(unlabelled: Split, present: Mapping[str, Split], notes: list[str]) -> Split:
    """Less the examples that quality is judged on: a student would learn the baseline's very answers on them."""
    judged = {h for name, split in present.items() if name != "train" for h in split.row_hashes}
    free = np.array([h not in judged for h in unlabelled.row_hashes])
    if free.all():
        return unlabelled
    if not free.any():
        raise WorkloadError("unlabelled holds nothing but examples of valid, confirm or test: give inputs that quality is not judged on")
    notes.append(f"{int((~free).sum()):,} of the unlabelled examples are exact duplicates of some in valid, confirm or test: left out")
    return unlabelled.take(np.flatnonzero(free))


def shapes_of(inputs: Sequence[Array]) -> str:
    """Of an example, in words."""
    return ", ".join(f"{tuple(x.shape[1:])} {x.dtype}" for x in inputs)


def as_served(array: Array) -> Array:
    """Inputs in a dtype that PyTorch computes with and ONNX graphs take: float64 as float32, wide unsigned as int64."""
    narrow = {"f8": np.float32, "u2": np.int64, "u4": np.int64, "u8": np.int64}.get(array.dtype.str[1:])
    return array if narrow is None else array.astype(narrow)


def _labels(workload: Workload) -> Sequence[str] | None:
    if workload.labels is not None:
        return workload.labels
    for name in SPLITS:
        source = getattr(workload, name)
        if isinstance(source, (str, Path)) and Path(source).is_dir() and workload.classifies:
            classes = image_classes(Path(source))
            if classes and any(f.suffix.lower() in IMAGE_SUFFIXES for f in (Path(source) / classes[0]).rglob("*")):
                return classes
    return None


def _check_classes(splits: Mapping[str, Split], labels: Sequence[str] | None) -> int:
    """The number of classes; refuses labels that are no class indices, out of range, or all the same."""
    highest = 0
    for name, split in splits.items():
        y = split.targets
        assert y is not None
        if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and (y == np.floor(y)).all()):
            raise WorkloadError(f"{name}: class labels must be whole numbers from 0: encode them first")
        if y.min() < 0:
            raise WorkloadError(f"{name}: label {y.min()} in row {int(y.argmin())} is below 0: number the classes from 0")
        if labels is not None and y.max() >= len(labels):
            raise WorkloadError(
                f"{name}: label {y.max()} in row {int(y.argmax())} is out of range for {len(labels)} labels: "
                "mend the label or list its class in labels="
            )
        if len(np.unique(y)) < 2:
            raise WorkloadError(f"{name} has one class only ({y.flat[0]}): give examples of at least two")
        highest = max(highest, int(y.max()))
    return len(labels) if labels is not None else highest + 1


# ---------------------------------------------------------------- metrics and losses by name


def class_axis(outputs: Sequence[int], targets: Sequence[int], *, last: bool = False) -> int | None:
    """The axis of outputs that holds one logit a class: the one without which they have the shape of the targets; None: there is none.

    Args:
        outputs, targets: their shapes, (batch, …).
        last: where two would do, the last is it; else the one after the batch, as the cross-entropy of PyTorch has it.
    """
    places = (len(outputs) - 1, 1) if last else (1, len(outputs) - 1)
    return next((i for i in places if 0 < i < len(outputs) and (*outputs[1:i], *outputs[i + 1 :]) == tuple(targets[1:])), None)


def _accuracy(outputs: Array, targets: Array) -> Array:
    """Of each example, or the mean over its positions."""
    axis = class_axis(outputs.shape, targets.shape)
    if axis is None:
        right: Array = outputs.reshape(len(outputs), -1).argmax(axis=1) == targets.reshape(-1)
        return right
    return _rows(outputs.argmax(axis=axis) == targets)


def _log_loss(outputs: Array, targets: Array) -> Array:
    """Negative log probability of the right class in nats, the mean over an example's positions."""
    from scipy.special import logsumexp

    axis = class_axis(outputs.shape, targets.shape)
    if axis is None:
        raise ValueError("no axis of the outputs holds one logit a class")
    scores = []
    for first in range(0, len(outputs), _ROWS_AT_ONCE):
        logits = np.moveaxis(outputs[first : first + _ROWS_AT_ONCE], axis, -1).astype(np.float64)
        right = targets[first : first + _ROWS_AT_ONCE, ..., None].astype(np.int64)
        scores.append(_rows(logsumexp(logits, axis=-1) - np.take_along_axis(logits, right, axis=-1)[..., 0]))
    return np.concatenate(scores)


_LARGEST_EXPONENT = 700.0
_ROWS_AT_ONCE = 256
"""Of the examples whose probabilities are computed in float64: a vocabulary may be large."""


def _rows(values: Array) -> Array:
    mean: Array = values.reshape(len(values), -1).mean(axis=1)
    return mean


def _error(outputs: Array, targets: Array) -> Array:
    return outputs.reshape(len(outputs), -1).astype(np.float64) - targets.reshape(len(targets), -1)


_METRICS: dict[str, tuple[Callable[[Array, Array], Array], bool]] = {
    "accuracy": (_accuracy, True),
    "log_loss": (_log_loss, False),
    "squared_error": (lambda outputs, targets: _rows(_error(outputs, targets) ** 2), False),
    "absolute_error": (lambda outputs, targets: _rows(np.abs(_error(outputs, targets))), False),
}


def _cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    from torch.nn import functional

    def loss(output: Tensor, target: Tensor) -> Tensor:
        axis = class_axis(output.shape, target.shape)
        return functional.cross_entropy(output if axis is None else output.movedim(axis, 1), target.long())

    return loss


def _elementwise(name: str) -> Callable[[], Callable[[Tensor, Tensor], Tensor]]:
    def make() -> Callable[[Tensor, Tensor], Tensor]:
        from torch.nn import functional

        function = getattr(functional, name)
        return lambda output, target: function(output, target.reshape(output.shape).to(output.dtype))

    return make


_LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": _elementwise("binary_cross_entropy_with_logits"),
    "mse": _elementwise("mse_loss"),
    "l1": _elementwise("l1_loss"),
}


# ---------------------------------------------------------------- identity


def identity(workload: Workload, examples: Examples, model: nn.Module) -> str:
    """Hash of all that decides what is learned: data, structure, code and first weights of the model, loss, training.

    Args:
        model: as it is before training, or with the weights that were given.
    """
    return digest(
        {
            "data": examples.identity,
            "model": [repr(model), code_identity(workload.model), weights_identity(model)],
            "classes": sorted(
                {canonical(code_identity(c)) for m in model.modules() if not (c := type(m)).__module__.startswith("torch.")}
            ),
            "loss": code_identity(workload.loss),
            "metric": metric_identity(workload),
            "augment": code_identity(workload.augment),
            "preprocess": repr(workload.preprocess),
            "training": workload.training.to_json(),
        }
    )


def metric_identity(workload: Workload) -> list[Any]:
    """Something JSON that changes when how quality is measured does."""
    return [code_identity(workload.metric), workload.better_is_higher]


def judged_by(workload: Workload) -> list[Any]:
    """Something JSON that changes when the text of the metric does, whatever else its module holds."""
    return [_own_text(workload.metric), workload.better_is_higher]


def structure_identity(workload: Workload, model: nn.Module) -> str:
    """Hash of how a model is built and computes, whatever its weights are and whatever else its module holds."""
    classes = {type(m) for m in model.modules() if not type(m).__module__.startswith("torch.")}
    return digest([repr(model), sorted(canonical(_own_text(c)) for c in classes), repr(workload.preprocess)])


def _own_text(value: Any) -> Any:
    """Something JSON that changes when a function's or class's own text, or what it holds, does."""
    if isinstance(value, str):
        return value
    if isinstance(value, functools.partial):
        return [_own_text(value.func), _frozen(value.args), _frozen(value.keywords)]
    return [_frozen(value) if inspect.isroutine(value) or inspect.isclass(value) else _name_of(value), _held(value)]


def weights_identity(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names.

    Raises:
        WorkloadError: a layer waits for its first input before it has weights.
    """
    import torch
    from torch.nn.parameter import is_lazy

    if lazy := next((n for n, p in model.named_parameters() if is_lazy(p)), None):
        raise WorkloadError(f"{lazy} has no size before the model has seen an input: give the lazy layer its sizes")
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return weights.hexdigest()


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _name_of(function.func)
    return getattr(function, "__name__", type(function).__name__)


def code_identity(value: Any) -> Any:
    """Something JSON that changes when the code of a function, or what it or an object holds, does."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, functools.partial):
        return [code_identity(value.func), _frozen(value.args), _frozen(value.keywords)]
    module = inspect.getmodule(value) or inspect.getmodule(type(value))
    own = module is None or module.__name__ == "__main__" or module.__name__.startswith("tenfold.")
    code = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    try:  # of a user's code the whole module, since a function's own text does not show what it calls
        text = inspect.getsource(code if own or module is None else module)
    except (OSError, TypeError):
        text = _name_of(code)
    held = _held(value)
    return [_name_of(value), hashlib.sha256(text.encode()).hexdigest(), *([held] if held else [])]


def _held(value: Any) -> dict[str, Any]:
    """What a closure has caught, or an object's attributes, in a form that is the same in every process."""
    if inspect.isfunction(value):
        caught = inspect.getclosurevars(value).nonlocals if value.__closure__ else {}
        return {name: _frozen(v) for name, v in sorted(caught.items())}
    if inspect.ismethod(value):
        return _held(value.__self__)
    if inspect.isroutine(value) or inspect.isclass(value):
        return {}
    return {name: _frozen(v) for name, v in sorted(vars(value).items())} if hasattr(value, "__dict__") else {}


def _frozen(value: Any, depth: int = 0) -> Any:
    """A value as JSON that is the same in every process: plain values as they are, numbers in bulk by their hash,
    modules by structure and weights, functions by their text, other objects by their attributes."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth >= _HELD_DEPTH:
        return name
    if isinstance(value, (list, tuple)):
        return [_frozen(v, depth + 1) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_frozen(v, depth + 1) for v in value), key=canonical)
    if isinstance(value, Mapping):
        return {repr(k): _frozen(v, depth + 1) for k, v in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value):
        try:
            return [_name_of(value), hashlib.sha256(inspect.getsource(value).encode()).hexdigest()]
        except (OSError, TypeError):
            return _name_of(value)
    if hasattr(value, "state_dict") and callable(value):
        return [name, repr(value), _frozen(value.state_dict(), depth + 1)]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return hashlib.sha256(canonical(repr(array.tolist())).encode() if array.dtype == object else array.tobytes()).hexdigest()
    return [name, _frozen(vars(value), depth + 1)] if hasattr(value, "__dict__") else name


_HELD_DEPTH = 4


# ---------------------------------------------------------------- finding


def find(spec: str, data: Path | None = None) -> Workload:
    """The workload that a command line names: a built-in's name, or path/to/file.py[:name].

    Raises:
        WorkloadError: there is none of that name; the file does not exist, raises, or holds no workload.
    """
    from tenfold.workloads import built_in

    path_text, _, attribute = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    if path_text.endswith(".py"):
        return _from_file(Path(path_text), attribute, data)
    known = built_in()
    if spec not in known:
        raise WorkloadError(f"there is no workload {spec!r}: use {', '.join(sorted(known))}, or path/to/task.py[:name]")
    return known[spec](data)


def _from_file(path: Path, attribute: str, data: Path | None) -> Workload:
    if not path.is_file():
        raise WorkloadError(f"{path} does not exist: name a Python file that builds a tenfold.Workload")
    name = f"tenfold_task_{path.stem}"  # a task may be called json.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that inspect and dataclasses find it
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result
            spec.loader.exec_module(module)
        named = {n: v for n, v in vars(module).items() if isinstance(v, Workload)}
        found = getattr(module, attribute, None) if attribute else getattr(module, "workload", None)
        if found is None and not attribute and len(named) == 1:
            (found,) = named.values()
        if data is not None and not (callable(found) and inspect.signature(found).parameters):
            raise WorkloadError(f"{path} takes no --data: make its workload a function of the folder, or leave --data out")
        if callable(found):
            found = found(data) if inspect.signature(found).parameters else found()
    except WorkloadError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything, or leave with exit code 0
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        where = f", line {lines[-1]}" if lines else ""
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise WorkloadError(f"{path}{where} raised {type(error).__name__}: {reason}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(found, Workload):
        wanted = attribute or "workload"
        raise WorkloadError(f"{path} has no tenfold.Workload named {wanted!r}: assign one, or name it with {path}:NAME")
    return found if found.name else _named(found, path.stem)


def _named(workload: Workload, name: str) -> Workload:
    return dataclasses.replace(workload, name=name)
