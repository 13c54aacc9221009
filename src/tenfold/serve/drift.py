"""How far what a server sees lies from what its model was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.data.split import Array
from tenfold.statistics import count, features, stability_index

SAMPLED = 8
"""Of so many requests one is looked at."""
REMEMBERED = 10_000
"""Examples, in which what was seen before comes to count half."""
MOST_OF_A_REQUEST = 16
"""Examples."""
COUNTED = 256
"""Examples that are counted together."""
LEAST = 200
"""Examples that are seen before drift is told."""


class Drift:
    """Counts of inputs' features and of classes, in which old ones fade, against a bundle's statistics."""

    def __init__(self, statistics: Mapping[str, Any], *, classes: int | None = None) -> None:
        """
        Args:
            statistics: of a manifest, see `tenfold.statistics.describe`; empty: nothing is held against anything.
            classes: that the model tells apart; statistics of another number of them are not looked at.
        """
        self._inputs = [
            (place, of["name"], column, feature["name"], np.array(feature["edges"]), np.array(feature["shares"]))
            for place, of in enumerate(statistics.get("inputs", ()))
            for column, feature in enumerate(of["features"])
        ]
        shares = statistics.get("classes")
        self._classes = np.array(shares) if shares and len(shares) == classes else None
        self._seen = [np.zeros(len(shares)) for *_, shares in self._inputs]
        self._answers = None if self._classes is None else np.zeros(len(self._classes))
        self._examples = 0.0
        self._requests = 0
        self._waiting: list[tuple[list[Array], Array | None]] = []
        """Features and classes of requests that are still to be counted: together, as each takes its time."""
        self._examples_waiting = 0

    def see(self, inputs: Sequence[Array], classes: Array | None) -> None:
        """Look at a request, if it is its turn; at some of its examples, if it has many.

        Args:
            classes: that were answered, (n,).
        """
        self._requests += 1
        if self._requests % SAMPLED or not self._inputs:
            return
        some = slice(0, MOST_OF_A_REQUEST)
        self._waiting.append(([features(x[some]) for x in inputs], None if classes is None else classes[some]))
        self._examples_waiting += len(inputs[0][some])
        if self._examples_waiting >= COUNTED:
            self._count()

    def _count(self) -> None:
        if not self._waiting:
            return
        fade = 0.5 ** (self._examples_waiting / REMEMBERED)
        of_inputs = [np.concatenate(each) for each in zip(*(f for f, _ in self._waiting), strict=True)]
        classes = [c for _, c in self._waiting if c is not None]
        for i, (place, _, column, _, edges, _) in enumerate(self._inputs):
            self._seen[i] = fade * self._seen[i] + count(of_inputs[place][:, column], edges)
        if self._answers is not None and classes:
            self._answers = fade * self._answers + np.bincount(np.concatenate(classes), minlength=len(self._answers))
        self._examples = fade * self._examples + self._examples_waiting
        self._waiting, self._examples_waiting = [], 0

    def of_inputs(self) -> Iterator[tuple[str, str, float]]:
        """(input, feature, stability index)."""
        self._count()
        if self._examples >= LEAST:
            for seen, (_, name, _, feature, _, shares) in zip(self._seen, self._inputs, strict=True):
                yield name, feature, stability_index(shares, seen)

    def of_answers(self) -> float | None:
        """The stability index of the classes."""
        return None if self._answers is None or self._classes is None or self._examples < LEAST else stability_index(self._classes, self._answers)
