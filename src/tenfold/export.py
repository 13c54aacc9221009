"""From a PyTorch model to an ONNX graph with a really dynamic batch, checked against the model."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.data.split import Array
from tenfold.engine import GraphError, SessionConfig, open_session, run_in_batches
from tenfold.errors import ExportError, WorkloadError
from tenfold.operators import operators
from tenfold.rewrite import rewrite
from tenfold.store import is_full, unwritable
from tenfold.train.feed import tensor_of

PARITY_BATCHES = (1, 2, 7, 64)
# relative to the largest output: float32 sums in another order differ in the last three digits
PARITY_TOLERANCE = 1e-3
# an integer graph may round a float that lies between two steps the other way
BATCH_TOLERANCE = 0.05
_FIXED = "the model fixes its batch size somewhere (len(x), or a reshape with a number in it?), use -1 or x.shape[0] there"


class ScaleBytes(nn.Module):
    """uint8 to float in [0, 1]: what a model sees of images where the workload says nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255.0


class Normalize(nn.Module):
    """uint8 images (batch, channels, height, width) to (x / 255 - mean) / std, by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = 1.0 / (255.0 * torch.tensor(std))
        self.register_buffer("scale", scale.reshape(1, -1, 1, 1))
        self.register_buffer("offset", (-torch.tensor(mean) / torch.tensor(std)).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.scale + self.offset

    def extra_repr(self) -> str:
        return f"scale={self.scale.flatten().tolist()}, offset={self.offset.flatten().tolist()}"


class Served(nn.Module):
    """What is trained and served: pre-processing of the first input, then the model."""

    def __init__(self, model: nn.Module, preprocess: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.preprocess is not None:
            inputs = (self.preprocess(inputs[0]), *inputs[1:])
        output: Tensor = self.model(*inputs)
        return output


class Selected(nn.Module):
    """Of a model that returns several things, the one that is served."""

    def __init__(self, inner: nn.Module, output: int | str) -> None:
        """
        Args:
            output: a place in a tuple, or a key of a dict.
        """
        super().__init__()
        self.inner = inner
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.inner(*inputs)
        if isinstance(found, Tensor):  # a teacher or student may return nothing else
            return found
        try:
            served: Tensor = found[self.output]
        except (KeyError, IndexError, TypeError) as error:
            there = f"the keys {', '.join(map(repr, found))}" if isinstance(found, Mapping) else f"{len(found)} places" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"
            raise WorkloadError(f"output={self.output!r} is not in what the model returns, {there}: name one of it") from error
        return served


def as_seen_by_model(inputs: Sequence[Array], preprocess: nn.Module | None) -> tuple[Tensor, ...]:
    """Inputs after pre-processing, that of the workload or, for uint8, the default."""
    tensors = tuple(tensor_of(x, torch.device("cpu")) for x in inputs)
    if preprocess is None and tensors[0].dtype == torch.uint8:
        preprocess = ScaleBytes()
    return tensors if preprocess is None else (preprocess(tensors[0]), *tensors[1:])


def input_names(count: int) -> list[str]:
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def export(model: nn.Module, example: Sequence[Array], path: Path) -> None:
    """Write `model` as ONNX with a dynamic batch, and check it against the model at several batch sizes.

    Args:
        example: one array an input, (at least 2, …).

    Raises:
        ExportError: an operator has no ONNX form, the batch is fixed somewhere in the model, or the
            graph answers otherwise than the model does.
    """
    model = model.cpu().eval()
    inputs = tuple(tensor_of(x[:2] if len(x) > 1 else np.repeat(x, 2, axis=0), torch.device("cpu")) for x in example)
    batch = torch.export.Dim("batch")
    try:
        with _silence(), _operators_read_once():
            torch.onnx.export(
                model, inputs, path,
                dynamo=True, verbose=False, external_data=False,
                input_names=input_names(len(inputs)), output_names=["output"],
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            )  # fmt: skip
    except Exception as error:  # the exporter raises types of its own for each of its phases
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        if is_full(error):  # no fault of the model
            raise unwritable(path, error) from error
        raise ExportError(_explain(error)) from error
    rewrite(path)
    check_parity(model, path, example)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is what the exporter ran into: it reports all that is raised within it as an error of its own."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, KeyboardInterrupt):
            return True
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
    return False


@contextlib.contextmanager
def _operators_read_once() -> Iterator[None]:
    """torch's exporter reads the source of all its operators at each call, which takes as long as a small model's export; here it does so once."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        reads = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):  # not public: another torch may keep it elsewhere, and is slower then
        yield
        return
    with patch.object(ONNXRegistry, "from_torchlib", staticmethod(partial(_kept, reads))):
        yield


@cache
def _kept(from_torchlib: Callable[..., Any], opset_version: int) -> Any:
    """The operators of an opset. Not for exports with a custom_translation_table, which would add to them."""
    return from_torchlib(opset_version=opset_version)


def check_parity(model: nn.Module, path: Path, example: Sequence[Array]) -> None:
    """Compare graph and model at batches 1, 2, 7 and 64, on rows of `example` (repeated where they are few)."""
    runner = open_session(path, SessionConfig())
    for batch in PARITY_BATCHES:
        rows = np.arange(batch) % len(example[0])
        feed = [np.ascontiguousarray(x[rows]) for x in example]
        with torch.inference_mode():
            wanted = model(*(tensor_of(x, torch.device("cpu")) for x in feed)).float().numpy()
        try:
            got = runner(feed)
        except GraphError as error:
            raise ExportError(f"the exported graph does not run at batch {batch}: {_FIXED}") from error
        if got.shape != wanted.shape:
            raise ExportError(f"at batch {batch} the exported graph gives shape {got.shape}, the model {wanted.shape}: {_FIXED}")
        deviation = float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-6))
        if not deviation <= PARITY_TOLERANCE:
            raise ExportError(
                f"at batch {batch} the exported graph differs from the model by {deviation:.1e} of its largest output: "
                "look for randomness or state in the model's forward"
            )


def check_batches(path: Path, example: Sequence[Array], config: SessionConfig) -> dict[str, float]:
    """See that a graph answers batches of 2, 7 and 64 as it answers single examples; the largest deviation of each.

    A graph that quantizes activations as they come takes their range from the whole batch: it is
    only asked for the right shape, and its deviation recorded.

    Raises:
        ExportError: it does not.
    """
    runner = open_session(path, config)
    rows = np.arange(max(PARITY_BATCHES)) % len(example[0])
    feed = [np.ascontiguousarray(x[rows]) for x in example]
    single = run_in_batches(runner, feed, 1)
    largest = max(float(np.abs(single).max()), 1e-6)
    dynamic = _quantizes_as_it_comes(path)
    out = {}
    for batch in PARITY_BATCHES[1:]:
        got = run_in_batches(runner, feed, batch)
        if got.shape != single.shape:
            raise ExportError(f"at batch {batch} the graph gives shape {got.shape}, one by one {single.shape}: its batch is not dynamic")
        out[str(batch)] = float(np.abs(got - single).max() / largest)
        if not (dynamic or out[str(batch)] <= BATCH_TOLERANCE):
            raise ExportError(f"at batch {batch} the graph differs by {out[str(batch)]:.1e} of its largest output from what it answers one by one: let an answer depend on its own example alone")
    return out


def _quantizes_as_it_comes(path: Path) -> bool:
    return bool(operators(path).keys() & {"DynamicQuantizeLinear", "DynamicQuantizeLSTM"})


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter's chatter about packages and opsets says nothing to our user."""
    loggers = [
        logging.getLogger(n) for n in ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")
    ]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)


def _explain(error: Exception) -> str:
    """One sentence that names the operator, from the chain of the exporter's errors."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(str(current))
        current = current.__cause__ or current.__context__
    text = "\n".join(texts)
    operator = re.search(r"No ONNX function found for .*?(aten[.:]+\w+(?:\.\w+)?|[\w:.]+)[>'\s]", text)
    operator = operator or re.search(r"[Uu]nsupported (?:FX nodes|operator)s?:?\s*\W*(?:call_function\W*)?([\w:.]+)", text)
    if operator:
        return (
            f"the model cannot be exported: {operator.group(1)} has no ONNX form: "
            "express it with other operators, or leave it out of the served model"
        )
    fixed = ("specialized", "Constraints violated", "refine_dynamic_shapes_from_suggested_fixes")
    if any(words in text for words in fixed) or ("batch" in text and "constant" in text):
        return f"the model cannot be exported: {_FIXED}"
    if "data-dependent" in text.lower() or "GuardOnDataDependentSymNode" in text:
        return (
            "the model cannot be exported: its forward branches on the values of tensors: "
            "use torch.where or torch.cond, or move the branch out of the served model"
        )
    first = next((line.strip() for t in reversed(texts) for line in t.splitlines() if line.strip()), type(error).__name__)
    return f"the model cannot be exported ({first[:200]}): try torch.export.export on it and mend what it names"
