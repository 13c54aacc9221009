"""The page of a study: one HTML file that needs no network, no script and nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.report import environment
from tenfold.report.scale import Linear, Log
from tenfold.store import write_atomic

Chart = dict[str, Any]


def write_page(document: Mapping[str, Any], path: Path) -> None:
    """Write the page of `batch.json`.

    Raises:
        OSError: `path` cannot be written.
    """
    html = environment().get_template("batch.html.j2").render(
        doc=document, by_time=_by_time(document), by_noise=_by_noise(document), rows=_steps(document), paths=_paths(document["paths"]),
    )  # fmt: skip
    write_atomic(path, html.encode("utf-8", "replace").decode())


def _by_time(document: Mapping[str, Any]) -> Chart:
    """Time to the reference's loss over that of its own batch: expected, with its interval, and measured by branches."""
    curve, base = document["curve"], document["reference"]["batch"]
    own = next(c for c in curve if c["batch"] == base)["seconds"]["value"]
    rows = [{"batch": c["batch"], **{k: v / own for k, v in c["seconds"].items()}} for c in curve]
    measured = document["measured"]
    values = [*(r[k] for r in rows for k in ("low", "value", "high")), *(m["over_base"] for m in measured)]
    x = Log(rows[0]["batch"] / 1.2, rows[-1]["batch"] * 1.2)
    y = Log(min(values) / 1.3, min(max(values), 100 * min(values)) * 1.3)
    return {
        "line": _line([(x(r["batch"]), y(r["value"])) for r in rows]),
        "band": _line([*((x(r["batch"]), y(r["high"])) for r in rows), *((x(r["batch"]), y(r["low"])) for r in reversed(rows))]),
        "points": [{"x": x(m["batch"]), "y": round(100 - y(m["over_base"]), 2), **m} for m in measured],
        "x_ticks": _sizes(x, [r["batch"] for r in rows]),
        "y_ticks": [{"at": round(100 - t.at, 2), "text": t.text} for t in y.ticks(lambda v, _: f"{v:g}×")],
    }


def _by_noise(document: Mapping[str, Any]) -> Chart:
    known = [n for n in document["noise"] if n["value"]]
    if not known:
        return {"points": []}
    ends = [end for n in known for end in (n["low"] or n["value"], n["high"] or n["value"])]
    x, y = Linear(0, 1), Log(min(ends) / 1.5, max(ends) * 1.5)
    points = [
        {"x": x(n["share"]), "y": round(100 - y(n["value"]), 2), "top": round(100 - y(n["high"] or max(ends) * 1.5), 2),
         "bottom": round(100 - y(n["low"] or min(ends) / 1.5), 2), **n}
        for n in known
    ]  # fmt: skip
    return {
        "points": points, "x_ticks": x.ticks(lambda v, _: f"{v:.0%}"),
        "y_ticks": [{"at": round(100 - t.at, 2), "text": t.text} for t in y.ticks(lambda v, _: f"{v:,g}")],
    }  # fmt: skip


def _steps(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a batch size: what a step takes, and how many are expected."""
    expected = {c["batch"]: c for c in document["curve"]}
    memory = {f["batch"]: f["bytes"] for f in document["fits"]}
    return [
        {"batch": int(b), "milliseconds": t["wall"], "bytes": memory.get(int(b)), **{k: expected[int(b)][k] for k in ("steps", "seconds", "cpu_seconds")}}
        for b, t in document["step_milliseconds"].items()
    ]  # fmt: skip


def _paths(found: Mapping[str, Any]) -> Chart:
    """The loss as cells, darker where it is lower, and the paths over them; in percent of the plane's width and height. Or the reason why not."""
    if "reason" in found:
        return dict(found)
    x, y = Linear(found["x"][0], found["x"][-1]), Linear(found["y"][0], found["y"][-1])
    finite = [v for row in found["loss"] for v in row if v is not None]
    shade = Log(min(finite), max(finite)) if min(finite) > 0 and max(finite) > min(finite) else None
    wide, high = 100 / len(found["x"]), 100 / len(found["y"])
    cells = [
        {"x": round(i * wide, 3), "y": round(100 - (j + 1) * high, 3), "shade": round((100 - (shade(v) if shade else 50)) / 100, 2)}
        for j, row in enumerate(found["loss"]) for i, v in enumerate(row) if v is not None
    ]  # fmt: skip
    lines = [
        {"name": name, "line": _line([(x(a), y(b)) for a, b in path])} for name, path in found["paths"].items()
    ]  # fmt: skip
    return {**found, "cells": cells, "wide": round(wide + 0.05, 3), "high": round(high + 0.05, 3), "lines": lines}


def _line(places: Sequence[tuple[float, float]]) -> str:
    """SVG points, of places in percent from the left and from below."""
    return " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in places)


def _sizes(x: Log, sizes: Sequence[int]) -> list[dict[str, Any]]:
    every = max(1, math.ceil(len(sizes) / 8))
    return [{"at": x(s), "text": f"{s:,}"} for s in sizes[::every]]
