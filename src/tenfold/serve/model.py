"""A bundle that is ready to answer: verified, replayed, fit for this machine, and on the schedule that measured best."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import device
from tenfold.bundle import Bundle, BundleError, CpuClassWarning
from tenfold.data.split import Array
from tenfold.engine import Outputs
from tenfold.errors import TenfoldError, first_line
from tenfold.limits import limit_bytes
from tenfold.serve.protocol import DATATYPES, TensorSpec
from tenfold.serve.queue import Schedule

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
TOGETHER = 64
"""Examples of a call, at the most: what a bundle's cost was measured with, and with it what memory a call takes."""
PAYS = 0.8
"""Times what an example takes alone, below which it pays to put examples together."""
ALIKE = 1e-4
"""Of the largest output: what answers may differ by for being computed together."""
INLINE_SECONDS = 0.4e-3
"""A call that takes less is made in the event loop."""
TURNS = 10
"""Times that, which all requests that came together may take in one turn of it: longer, and others wait for them."""
TIMED_SECONDS, TIMED_CALLS = 0.05, 3
"""For each kind of call; a call is timed as often as this at least."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from, as it was named on the command line."""

    path: Path
    name: str | None = None
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Of `PATH`, `NAME=PATH` or `NAME@VERSION=PATH`.

        Raises:
            TenfoldError: the name or the version is none.
        """
        named, equals, path = text.partition("=")
        if not equals or Path(text).exists():  # a folder may have = in its name
            return cls(path=Path(text))
        name, at, version = named.partition("@")
        if not NAME.fullmatch(name):
            raise TenfoldError(f"{name!r} is no name of a model: use letters, digits, dots, hyphens and underscores")
        if at and not re.fullmatch(r"[0-9]{1,18}", version):
            raise TenfoldError(f"{version!r} is no version of {name}: give a whole number")
        return cls(path=Path(path), name=name, version=version or None)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Made with `open_model`."""

    name: str
    version: str
    bundle: Bundle
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Outputs
    """Of any number of examples, those of a call at most `TOGETHER`."""
    schedule: Schedule
    notes: tuple[str, ...]
    """What was found while it was opened."""

    @property
    def labels(self) -> list[str] | None:
        labels: list[str] | None = self.bundle.manifest["labels"]
        return labels

    @cached_property
    def class_names(self) -> list[str]:
        """One a class: labels, or numbers."""
        count, labels = self.outputs[0].values, self.labels
        return labels if labels and len(labels) == count else [str(i) for i in range(count)]

    @property
    def classifies(self) -> bool:
        return bool(self.bundle.manifest["task"] == "classification")

    def metadata(self, versions: Sequence[str]) -> dict[str, Any]:
        return {
            "name": self.name, "versions": list(versions), "platform": "onnx_onnxv1",
            "inputs": [i.to_json() for i in self.inputs], "outputs": [o.to_json() for o in self.outputs],
        }  # fmt: skip


def open_model(source: Source, *, force: bool = False, version: str = "1", known: Mapping[str, Schedule] | None = None) -> Model:
    """Open a bundle, check that it answers as it did where it was certified, and find the schedule.

    Args:
        force: warn, where it would be refused for this machine.
        version: where the source says none.
        known: schedules that were measured before, by the graph's hash.

    Raises:
        TenfoldError: it must not be served, and why.
    """
    try:
        return _opened(source, force=force, version=version, known=known or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of a manifest whose parts are none
        raise BundleError(f"{source.path}/manifest.json is none of a bundle's ({first_line(error)}): copy the bundle again") from error


def _opened(source: Source, *, force: bool, version: str, known: Mapping[str, Schedule]) -> Model:
    bundle = Bundle.load(source.path, verify=False)
    notes = _fit_machine(bundle, force=force)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CpuClassWarning)  # it is in the notes
        bundle.verify()
    specs = {side: tuple(TensorSpec.of(s) for s in bundle.manifest[side]) for side in ("inputs", "outputs")}
    if unknown := {s.dtype.name for s in (*specs["inputs"], *specs["outputs"])} - DATATYPES.keys():
        raise BundleError(f"{source.path} takes or gives {', '.join(sorted(unknown))}, which the protocol has no word for: export it with another dtype")
    name = source.name or re.sub(r"[^A-Za-z0-9._-]", "-", str(bundle.manifest.get("workload") or source.path.resolve().name)).lstrip("._-") or "model"
    alike = _alike(bundle)
    step = TOGETHER if alike else int(bundle.manifest["operating_point"]["batch"])
    schedule = known.get(graph_of(bundle))
    if schedule is None:
        schedule, note = _scheduled(bundle, alike=alike)
        notes.append(note)
    return Model(
        name=name[:63], version=source.version or version, bundle=bundle, **specs, run=_in_steps(bundle.run, step), schedule=schedule, notes=tuple(notes)
    )


def graph_of(bundle: Bundle) -> str:
    """The hash of its graph."""
    return str(bundle.manifest["files"].get("model.onnx"))


def _fit_machine(bundle: Bundle, *, force: bool) -> list[str]:
    """What differs on this machine from where a bundle was certified.

    Raises:
        BundleError: it lacks something, and that is not to be overlooked.
    """
    found = []
    certified, here = str(bundle.manifest["cpu_class"]).split("+"), device.cpu_class().split("+")
    if missing := [f for f in certified if f not in here]:
        found.append(f"it was certified on {'+'.join(certified)}, and this machine has no {', '.join(missing)}: costs, and the numbers of int8, may differ")
    limit, needed = limit_bytes(), bundle.costs.get("peak_memory_bytes")
    if needed is not None and needed > limit:
        found.append(f"it takes {needed / 1e6:,.0f} MB to serve, and this process may have {limit / 1e6:,.0f} MB: raise the limit")
    if found and not force:
        raise BundleError(f"{bundle.path}: {'; '.join(found)} (--force serves it all the same)")
    return found


def _alike(bundle: Bundle) -> bool:
    """Whether answers do not depend on what is computed with them, as they do where a graph quantizes dynamically."""
    examples, _ = bundle.golden()
    alone = _in_steps(bundle.run, 1)(examples)
    return _close(alone, bundle.run(examples)) and _close(alone, _in_steps(bundle.run, int(bundle.manifest["operating_point"]["batch"]))(examples))


def _close(one: Sequence[Array], two: Sequence[Array]) -> bool:
    return all(np.abs(a - b).max() <= ALIKE * max(float(np.abs(a).max()), 1e-6) for a, b in zip(one, two, strict=True))


def _scheduled(bundle: Bundle, *, alike: bool) -> tuple[Schedule, str]:
    """The schedule that measures best, and why."""
    examples, _ = bundle.golden()
    engine = bundle.session
    one = _seconds(bundle.run, examples, 1)
    workers = 1 if engine.engine == "openvino" else max(1, device.cores() // engine.threads)  # an infer request of OpenVINO takes one thread
    inline = max(1, int(INLINE_SECONDS / one)) if one < INLINE_SECONDS else 0
    if not alike:
        return Schedule(workers=workers, inline=inline, soon=inline * TURNS), "answers depend on what is computed with them: requests are computed apart, in calls of the size that was certified"
    many = _seconds(bundle.run, examples, TOGETHER)
    pays = many / TOGETHER < PAYS * one
    note = f"{TOGETHER} examples together take {many / one:.3g} times as long as one: requests that wait are {'' if pays else 'not '}put together"
    each = many / TOGETHER if pays else one
    soon = int(TURNS * INLINE_SECONDS / each) if inline else 0
    return Schedule(workers=workers, most=TOGETHER if pays else 1, inline=min(inline, TOGETHER), soon=soon), note


def _in_steps(run: Outputs, step: int) -> Outputs:
    """So many examples a call, at the most."""

    def steps(inputs: Sequence[Array]) -> tuple[Array, ...]:
        if len(inputs[0]) <= step:
            return run(inputs)
        calls = [run([x[i : i + step] for x in inputs]) for i in range(0, len(inputs[0]), step)]
        return tuple(np.concatenate(parts) for parts in zip(*calls, strict=True))

    return steps


def _seconds(run: Outputs, examples: Sequence[Array], rows: int) -> float:
    """Of a call."""
    inputs = [np.resize(x, (rows, *x.shape[1:])) for x in examples]
    run(inputs)
    times, ends = list[float](), time.perf_counter() + TIMED_SECONDS
    while len(times) < TIMED_CALLS or time.perf_counter() < ends:
        began = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - began)
    return min(times)  # beside others, as in a reload, most are disturbed
