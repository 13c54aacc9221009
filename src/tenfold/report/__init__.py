"""The report of a run: one HTML file that needs no network, no script and nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tenfold.report import words
from tenfold.report.view import view
from tenfold.store import write_atomic

SCHEMA = 1


def render(result: Mapping[str, Any]) -> str:
    """The document for a result (the content of `result.json`).

    Raises:
        ValueError: the result is of another schema.
    """
    if result["schema"] != SCHEMA:
        raise ValueError(f"this report reads results of schema {SCHEMA}, not {result['schema']}: use the Tenfold that wrote it")
    html = environment().get_template("report.html.j2").render(view(result))
    return html.encode("utf-8", "replace").decode()  # a class name may hold half a surrogate pair


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write the document of `result` to `path`.

    Raises:
        ValueError: the result is of another schema.
        OSError: `path` cannot be written.
    """
    write_atomic(path, render(result))


@lru_cache(maxsize=1)
def environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tenfold.report"),
        autoescape=True,  # whatever the template's name: every name, label and reason is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        words.exact, words.number, words.signed, words.ratio, words.percent, words.level, words.chance, words.micros,
        words.duration, words.size, words.day, words.settings, words.plain, words.verdict, words.engine,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    environment.tests["picture"] = lambda entry: words.picture(entry) is not None
    return environment
