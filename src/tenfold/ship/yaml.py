"""Kubernetes objects as YAML, plain or as the templates of a Helm chart: one tree, in which what an installation may change is marked.

Texts are written as JSON has them, which YAML takes too, so that none is taken for a number or a truth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Value:
    """A leaf that an installation may change."""

    path: str
    """In the chart's values, with dots."""
    default: Any
    schema: Mapping[str, Any]
    """JSON Schema of it."""
    about: str
    required: bool = True
    """False: may be taken away, with null."""

    @property
    def chart(self) -> str:
        """As a template has it."""
        if isinstance(self.default, str):
            return f"{{{{ .Values.{self.path} | quote }}}}"
        return f"{{{{ .Values.{self.path} | toJson }}}}"


@dataclass(frozen=True)
class Computed:
    """A leaf that a template computes."""

    default: Any
    chart: str


@dataclass(frozen=True)
class When:
    """A part that is there where a value is neither empty nor false; or only where it is."""

    value: Value
    tree: Any
    otherwise: bool = False

    @property
    def is_there(self) -> bool:
        return bool(self.value.default) != self.otherwise


@dataclass(frozen=True)
class Each:
    """An item of a list for each text of a value, which stands for {{ . }} in it."""

    value: Value
    tree: Any


def plain(tree: Any) -> str:
    """With the defaults in their places."""
    return _text(_filled(tree))


def template(tree: Any) -> str:
    """As a file of a chart."""
    return _text(tree)


def _filled(tree: Any) -> Any:
    if isinstance(tree, (Value, Computed)):
        return tree.default
    if isinstance(tree, When):
        return _filled(tree.tree)
    if isinstance(tree, Mapping):
        return {k: _filled(v) for k, v in tree.items() if not (isinstance(v, When) and not v.is_there)}
    if not isinstance(tree, list):
        return tree
    kept = [v for v in tree if not (isinstance(v, When) and not v.is_there)]
    return [item for v in kept for item in (_of_each(v) if isinstance(v, Each) else [_filled(v)])]


def _of_each(each: Each) -> list[Any]:
    return [json.loads(json.dumps(each.tree).replace("{{ . }}", text)) for text in each.value.default]


def _text(tree: Any) -> str:
    return "\n".join(_lines(tree, 0)) + "\n"


def _lines(tree: Any, depth: int) -> Iterator[str]:
    if isinstance(tree, When):
        yield f"{{{{- if {'not ' if tree.otherwise else ''}.Values.{tree.value.path} }}}}"
        yield from _lines(tree.tree, depth)
        yield "{{- end }}"
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _entry(f"{'  ' * depth}{key}:", value, depth + 1, lambda v, key=key: {key: v}, depth)
    else:
        assert isinstance(tree, list)
        for value in tree:
            yield from _entry(f"{'  ' * depth}-", value, depth + 1, lambda v: [v], depth)


def _entry(head: str, value: Any, inner: int, alone: Any, depth: int) -> Iterator[str]:
    """A key or a dash with what stands behind it or below."""
    if isinstance(value, (When, Each)):
        begin = f"range .Values.{value.value.path}" if isinstance(value, Each) else f"if {'not ' if value.otherwise else ''}.Values.{value.value.path}"
        yield f"{{{{- {begin} }}}}"
        yield from _lines(alone(value.tree), depth)
        yield "{{- end }}"
    elif isinstance(value, (Value, Computed)):
        yield f"{head} {value.chart}"
    elif isinstance(value, (Mapping, list)) and value:
        lines = list(_lines(value, inner))
        if head.endswith("-") and not lines[0].startswith("{{"):  # a list's mapping begins on the line of its dash
            lines[0] = f"{head} {lines[0].lstrip()}"
            yield from lines
        else:
            yield head
            yield from lines
    else:
        yield f"{head} {json.dumps(value)}"


def values_file(values: Sequence[Value]) -> str:
    """The content of values.yaml, each value below what it is about."""
    return "\n".join(_commented(_nested(values), 0)) + "\n"


def _nested(values: Sequence[Value]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for value in values:
        *folders, name = value.path.split(".")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return out


def _commented(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Value):
            yield f"{'  ' * depth}# {value.about}"
            yield f"{'  ' * depth}{key}: {json.dumps(value.default)}"
        else:
            yield f"{'  ' * depth}{key}:"
            yield from _commented(value, depth + 1)


def schema(values: Sequence[Value]) -> dict[str, Any]:
    """The content of values.schema.json: nothing may be misspelt, nothing left out."""

    def described(tree: Mapping[str, Any]) -> dict[str, Any]:
        properties = {k: {**v.schema, "description": v.about} if isinstance(v, Value) else described(v) for k, v in tree.items()}
        required = [k for k, v in tree.items() if not isinstance(v, Value) or v.required]
        return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}

    found = described(_nested(values))
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found, "properties": {"global": {"type": "object"}, **found["properties"]}}
