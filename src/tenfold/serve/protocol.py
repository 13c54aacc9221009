"""The Open Inference Protocol v2, REST: requests to arrays and outputs to responses, in JSON and in the binary tensor extension.

Pure functions over bytes. https://github.com/kserve/open-inference-protocol; the binary extension is Triton's
(https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md), as is classification.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import orjson

from tenfold.data.split import Array

HEADER_LENGTH = "inference-header-content-length"
"""Bytes of a body that are JSON; tensors follow."""
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""Of numpy's dtypes."""
_DATATYPES = {np.dtype(name): word for name, word in DATATYPES.items()}
"""By dtype: its name is made anew each time that it is asked for."""
KINDS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""Of JSON's values, that a dtype of that kind takes."""
MOST_OTHER_BRACKETS = 200
"""Of a request, beside those around examples and their rows."""
MOST_CLASSES = 100
"""That are told of an example."""
MOST_SAID = 80
"""Characters of a request that an error repeats."""


class RejectedError(Exception):
    """A request that is not answered; with the HTTP status, and one sentence."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        """
        Args:
            headers: of the response; _ stands for -.
        """
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What a model takes, or gives."""

    name: str
    shape: tuple[int, ...]
    """Of an example."""
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> TensorSpec:
        """Of an input or output in a bundle's manifest."""
        return cls(name=manifest["name"], shape=tuple(manifest["shape"][1:]), dtype=np.dtype(manifest["dtype"]))

    @cached_property
    def datatype(self) -> str:
        return DATATYPES[self.dtype.name]

    @property
    def values(self) -> int:
        """Of an example."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}


def largest_request(specs: Sequence[TensorSpec], examples: int) -> int:
    """Bytes that so many examples take in JSON, each value written with all its digits, and room for the rest of a request."""
    return 4096 + examples * sum(spec.values * (26 if spec.dtype.kind == "f" else 22) for spec in specs)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An output that is asked for."""

    name: str
    binary: bool = False
    classes: int = 0
    """0: the tensor; k: the k most probable classes, as text."""


@dataclass(frozen=True, kw_only=True)
class Request:
    inputs: list[Array]
    """In the order of the model's; each (n, …)."""
    id: str | None = None
    outputs: Sequence[Wanted] = field(default_factory=tuple)


def parse(body: bytes, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], most: int) -> Request:
    """A request's body as arrays that fit the model.

    Args:
        header_length: of the HTTP header `HEADER_LENGTH`; None: all is JSON.
        most: examples in a request.

    Raises:
        RejectedError: it is none, or does not fit; status 400.
    """
    size = len(body) if header_length is None else _whole(header_length)
    if size > len(body):
        raise RejectedError(400, f"{HEADER_LENGTH} is {size}, the body has {len(body)} bytes")
    head = decoded(body[:size], inputs, most)
    if not isinstance(head, dict):
        raise RejectedError(400, 'the request is no JSON object: give {"inputs": [...]}')
    name = head.get("id")
    if name is not None and not isinstance(name, str):
        raise RejectedError(400, "id has to be a text")
    arrays = _inputs(head.get("inputs"), memoryview(body)[size:], inputs, most)
    return Request(inputs=arrays, id=name, outputs=_outputs(head, outputs))


def decoded(body: bytes, inputs: Sequence[TensorSpec], most: int) -> Any:
    """JSON, with no more brackets than so many examples of these inputs need: an empty list takes twenty times the memory of its text.

    Raises:
        RejectedError: it is none; status 400.
    """
    needed = MOST_OTHER_BRACKETS + sum(1 + most * sum(math.prod(s.shape[:i]) for i in range(len(s.shape))) + most for s in inputs)
    if body.count(b"[") + body.count(b"{") > needed:
        raise RejectedError(400, f"the request has more brackets than {most} examples need")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RejectedError(400, f"the request is not JSON: {error}") from error


def quoted(given: Any) -> str:
    """What was given, as an error may repeat it."""
    text = given if isinstance(given, str) else reprlib.repr(given)
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}…"


def of_shape(spec: TensorSpec) -> str:
    return f"[n{''.join(f', {n}' for n in spec.shape)}]"


def _inputs(given: Any, tail: memoryview, specs: Sequence[TensorSpec], most: int) -> list[Array]:
    if not isinstance(given, list) or not all(isinstance(i, dict) for i in given):
        raise RejectedError(400, "inputs has to be a list of tensors")
    by_name, found, offset = {s.name: s for s in specs}, dict[str, Array](), 0
    for tensor in given:
        name = tensor.get("name")
        if not isinstance(name, str) or name not in by_name or name in found:
            raise RejectedError(400, f"the model takes the inputs {', '.join(by_name)}, each once, not {quoted(name)}")
        spec = by_name[name]
        shape, parameters = _shape(tensor, spec, most), _parameters(tensor, name)
        if "shared_memory_region" in parameters:
            raise RejectedError(400, f"{name} lies in shared memory, which is not served: send its values")
        size = parameters.get("binary_data_size")
        if size is None:
            found[name] = _of_json(tensor.get("data"), spec, shape)
            continue
        expected = math.prod(shape) * spec.dtype.itemsize
        if not isinstance(size, int) or isinstance(size, bool) or size != expected:
            raise RejectedError(400, f"{name} of shape {list(shape)} and {spec.datatype} has {expected} bytes, binary_data_size is {quoted(size)}")
        if tensor.get("data") is not None:
            raise RejectedError(400, f"{name} has data and binary_data_size: give one of the two")
        if offset + size > len(tail):
            raise RejectedError(400, f"the body ends before {name}: {offset + size} bytes were said to follow the JSON, {len(tail)} do")
        found[name] = _of_bytes(tail[offset : offset + size], spec, shape)
        offset += size
    if missing := [n for n in by_name if n not in found]:
        raise RejectedError(400, f"the model takes {', '.join(missing)} as well")
    if offset != len(tail):
        raise RejectedError(400, f"{len(tail) - offset} bytes follow the last tensor that belong to none")
    if len({len(a) for a in found.values()}) > 1:
        raise RejectedError(400, "the inputs have different numbers of examples")
    return [found[s.name] for s in specs]


def _shape(tensor: Mapping[str, Any], spec: TensorSpec, most: int) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise RejectedError(400, f"shape of {spec.name} has to be a list of whole numbers")
    if not shape or tuple(shape[1:]) != spec.shape:
        raise RejectedError(400, f"{spec.name} has shape {quoted(shape)}: the model takes {of_shape(spec)}")
    if not 1 <= shape[0] <= most:
        raise RejectedError(400, f"{spec.name} holds {shape[0]} examples: give from 1 to {most}")
    if tensor.get("datatype") != spec.datatype:
        raise RejectedError(400, f"{spec.name} is {quoted(tensor.get('datatype'))}: the model takes {spec.datatype}")
    return tuple(shape)


def _of_json(data: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if not isinstance(data, list):
        raise RejectedError(400, f"{spec.name} lacks data: give a list of numbers, row by row, or binary_data_size")
    array = numbers(data, spec)
    if array.size != math.prod(shape) or array.shape not in ((array.size,), shape):
        raise RejectedError(400, f"data of {spec.name} has shape {quoted(list(array.shape))}: shape says {list(shape)}")
    return array.reshape(shape)


def numbers(data: Any, spec: TensorSpec) -> Array:
    """Numbers of JSON, nested or not, in the model's dtype.

    Raises:
        RejectedError: they are no numbers, or none that the dtype holds; or lists of different lengths.
    """
    shape: list[int] = []
    values = [data]
    while values and isinstance(values[0], list):
        width = len(values[0])
        if len(shape) > len(spec.shape) or not all(type(v) is list and len(v) == width for v in values):
            raise RejectedError(400, f"data of {spec.name} is no array of {of_shape(spec)}: its rows have different lengths, or there are too many brackets")
        shape.append(width)
        values = list(chain.from_iterable(values))
    if not set(map(type, values)) <= KINDS[spec.dtype.kind]:  # before numpy, which would make texts of all for one text
        raise RejectedError(400, f"data of {spec.name} are no numbers that {spec.datatype} holds")
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=spec.dtype).reshape(shape)
    except OverflowError as error:
        raise RejectedError(400, f"data of {spec.name} are beyond what {spec.datatype} holds") from error
    return finite(array, spec)


def _of_bytes(data: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    array = np.frombuffer(data, spec.dtype.newbyteorder("<")).astype(spec.dtype, copy=False)
    if not array.flags.aligned:
        array = array.copy()
    if spec.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise RejectedError(400, f"{spec.name} is BOOL and holds bytes that are neither 0 nor 1")
    return finite(array.reshape(shape), spec)


def finite(array: Array, spec: TensorSpec) -> Array:
    """The array.

    Raises:
        RejectedError: it has NaN or infinity.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RejectedError(400, f"{spec.name} has NaN, infinity, or numbers beyond what {spec.datatype} holds")
    return array


def _outputs(head: Mapping[str, Any], specs: Sequence[TensorSpec]) -> list[Wanted]:
    binary = _flag(_parameters(head, "the request"), "binary_data_output", False)
    given = head.get("outputs")
    if not given:
        return [Wanted(name=s.name, binary=binary) for s in specs]
    if not isinstance(given, list) or not all(isinstance(o, dict) for o in given):
        raise RejectedError(400, "outputs has to be a list of tensors")
    known, out = [s.name for s in specs], list[Wanted]()
    for output in given:
        name = output.get("name")
        if name not in known or name in [w.name for w in out]:
            raise RejectedError(400, f"the model gives {', '.join(known)}, each once, not {quoted(name)}")
        parameters = _parameters(output, name)
        if "shared_memory_region" in parameters:
            raise RejectedError(400, f"{name} is wanted in shared memory, which is not served")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or not 0 <= classes <= MOST_CLASSES:
            raise RejectedError(400, f"classification of {name} has to be a number of classes, {MOST_CLASSES} at the most")
        out.append(Wanted(name=name, binary=_flag(parameters, "binary_data", binary), classes=classes))
    return out


def _parameters(of: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = of.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RejectedError(400, f"parameters of {what} have to be an object")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise RejectedError(400, f"{name} has to be true or false")
    return value


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise RejectedError(400, f"{HEADER_LENGTH} is {quoted(text)!r}: give a number of bytes")
    return int(text)


# ---------------------------------------------------------------- responses


def answer(model: str, version: str, request: Request, outputs: Mapping[str, Array], labels: Sequence[str] | None) -> tuple[bytes, int | None]:
    """The body of a response, and how many of its bytes are JSON; None: all are. NaN and infinity are null in JSON, which has no word for them.

    Args:
        outputs: by name, each (n, …).
        labels: of classes.
    """
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": []}
    if request.id is not None:
        head["id"] = request.id
    tails: list[bytes] = []
    for wanted in request.outputs:
        array = outputs[wanted.name]
        if wanted.classes:
            tensor = _classified(array, wanted, labels)
        else:
            tensor = {"name": wanted.name, "datatype": _DATATYPES[array.dtype], "shape": array.shape, "data": np.ascontiguousarray(array).reshape(-1)}
        if wanted.binary:
            raw = _bytes_of(tensor.pop("data"))
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tails.append(raw)
        head["outputs"].append(tensor)
    encoded = orjson.dumps(head, default=_listed, option=orjson.OPT_SERIALIZE_NUMPY)
    return (encoded, None) if not tails else (b"".join([encoded, *tails]), len(encoded))


def _listed(array: Any) -> Any:
    """What orjson does not write itself."""
    if isinstance(array, np.ndarray):
        return array.tolist()
    raise TypeError(type(array).__name__)


def _bytes_of(data: Array | list[str]) -> bytes:
    if isinstance(data, list):
        return b"".join(struct.pack("<I", len(raw)) + raw for raw in (text.encode() for text in data))
    return data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()


def _classified(array: Array, wanted: Wanted, labels: Sequence[str] | None) -> dict[str, Any]:
    """`score:index` or `score:index:label` of the largest scores of each row, as Triton writes them."""
    if array.ndim != 2:
        raise RejectedError(400, f"classification of {wanted.name} needs one row of class scores an example")
    count = min(wanted.classes, array.shape[1])
    best = np.argsort(-array, axis=1, kind="stable")[:, :count]
    named = labels if labels and len(labels) == array.shape[1] else None
    texts = [f"{array[row, i]:f}:{i}" + (f":{named[i]}" if named else "") for row in range(len(array)) for i in best[row]]
    return {"name": wanted.name, "datatype": "BYTES", "shape": [len(array), count], "data": texts}
