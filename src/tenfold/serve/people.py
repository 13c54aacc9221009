"""Inputs as people have them, and answers as they read them: JSON, an image, a table, a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.bundle import image_input, table_input
from tenfold.data.split import Array
from tenfold.errors import TenfoldError, first_line
from tenfold.serve.model import Model
from tenfold.serve.protocol import RejectedError, TensorSpec, decoded, finite, numbers, of_shape, quoted

FORMS = "application/json, image/png, image/jpeg, text/csv"
IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG"}
"""Pillow's names: of others its decoders have had more faults than they are worth here."""
MOST_PIXELS = 4_000_000
BEST = 5
"""Classes that are told of an example."""


def inputs_of(model: Model, body: bytes, kind: str, most: int) -> list[Array]:
    """The model's inputs, each (n, …), of a request's body.

    Args:
        kind: the body's Content-Type.
        most: examples.

    Raises:
        RejectedError: it cannot be read (400), is of another kind (415), or does not fit (400).
    """
    what = kind.partition(";")[0].strip().lower()
    if what == "application/json":
        inputs = _of_json(model, body, most)
    elif len(model.inputs) > 1:
        raise RejectedError(415, f'the model takes {len(model.inputs)} inputs: give them as application/json, {{"inputs": {{name: values}}}}')
    else:
        inputs = [_of_file(model, body, what)]
    if len({len(x) for x in inputs}) > 1 or not 1 <= len(inputs[0]) <= most:
        raise RejectedError(400, f"give from 1 to {most} examples, each input as many: {', '.join(str(len(x)) for x in inputs)} were given")
    return inputs


def _of_json(model: Model, body: bytes, most: int) -> list[Array]:
    given = decoded(body, model.inputs, most)
    if isinstance(given, dict):
        given = given.get("inputs")
    names = [s.name for s in model.inputs]
    if isinstance(given, dict):
        if given.keys() != set(names):
            raise RejectedError(400, f'the model takes the inputs {", ".join(names)}: give {{"inputs": {{name: values}}}}')
        return [_examples(numbers(given[s.name], s), s) for s in model.inputs]
    if len(names) > 1 or given is None:
        raise RejectedError(400, f'give {{"inputs": values}}, or by name: {", ".join(names)}')
    return [_examples(numbers(given, model.inputs[0]), model.inputs[0])]


def _examples(array: Array, spec: TensorSpec) -> Array:
    """(n, …); one example may come without its batch dimension."""
    if array.shape == spec.shape:
        return array[None]
    if array.ndim == 0 or array.shape[1:] != spec.shape:
        raise RejectedError(400, f"{spec.name} has shape {list(array.shape)}: the model takes {of_shape(spec)}")
    return array


def _of_file(model: Model, body: bytes, what: str) -> Array:
    spec, declared = model.inputs[0], model.bundle.manifest["inputs"][0]
    try:
        if what in IMAGES:
            return _of_image(body, declared, what)
        if what == "text/csv":
            return finite(_cast(table_input(body.decode(), declared, "the table"), spec), spec)
        if what == "text/plain" and (tokens := characters(model)) is not None:
            return _of_text(body.decode(), tokens, spec)
    except UnicodeDecodeError as error:
        raise RejectedError(400, "the text is not UTF-8") from error
    except TenfoldError as error:
        raise RejectedError(400, str(error)[:300]) from error
    raise RejectedError(415, f"{quoted(what) or 'nothing'} is not taken: give {FORMS}{', text/plain' if characters(model) else ''}")


def _of_image(body: bytes, declared: Mapping[str, Any], what: str) -> Array:
    try:
        return image_input(body, declared, "the image", most_pixels=MOST_PIXELS, formats=(IMAGES[what],))
    except TenfoldError:
        raise
    except Exception as error:  # decoders have raised of all kinds over damaged files
        raise RejectedError(400, f"the image cannot be decoded ({first_line(error, 100)})") from error


def _cast(array: Array, spec: TensorSpec) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype)
    if spec.dtype.kind in "iub" and not np.array_equal(cast, array):
        raise RejectedError(400, f"the table has values that {spec.datatype} does not hold")
    return cast


def characters(model: Model) -> dict[str, int] | None:
    """By character, its number, where the model reads and tells the next one; else None."""
    labels, (spec, *more) = model.labels, model.inputs
    reads = not more and spec.dtype.kind in "iu" and len(spec.shape) == 1 and model.bundle.manifest["task"] == "classification by position"
    return {c: i for i, c in enumerate(labels)} if reads and labels and sum(len(c) == 1 for c in labels) >= len(labels) - 1 else None


def _of_text(text: str, tokens: dict[str, int], spec: TensorSpec) -> Array:
    unknown = sorted({c for c in text if c not in tokens})
    if unknown:
        raise RejectedError(400, f"the model knows no {' '.join(map(repr, unknown[:5]))}")
    if not text:
        raise RejectedError(400, "the text is empty")
    (context,) = spec.shape
    ids = [tokens[c] for c in text[-context:]]
    return np.array([[ids[0]] * (context - len(ids)) + ids], dtype=spec.dtype)


def said(model: Model, outputs: Array) -> dict[str, Any]:
    """The answer to each example: what is most probable, and what the model gave."""
    out: dict[str, Any] = {"model": model.name, "version": model.version}
    if model.classifies:
        out["predictions"] = [{**best[0], "best": best} for best in _best(outputs, model.class_names)]
    elif characters(model) is not None:
        out["next"] = _best(outputs[:, -1], model.labels or [])  # (n, positions, tokens)
    return {**out, "outputs": outputs.tolist()}


def _best(logits: Array, names: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The most probable classes of each row (n, classes), the best first."""
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    best = np.argsort(-share, axis=1, kind="stable")[:, :BEST]
    return [[{"label": names[i], "probability": float(share[row, i])} for i in best[row]] for row in range(len(share))]
