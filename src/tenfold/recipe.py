"""Pure data with an identity: what was done to a model, in which order, under which seed.

A recipe travels; a closure never does. Its hash is its identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


def canonical(data: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is not data: a recipe holds only JSON")


def digest(data: Any) -> str:
    """SHA-256 of the canonical text, in hexadecimal."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


@dataclass(frozen=True)
class Pull:
    """A lever pulled with a config (a JSON object)."""

    lever: str
    config: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v}" for k, v in self.config.items())
        return f"{self.lever}({inner})"

    @property
    def inner(self) -> list[Pull]:
        """The pulls of the recipes that its config holds."""
        return [Pull(**p) for part in self.config.get("parts", ()) for p in part["pulls"]]

    def find(self, lever: str) -> list[Pull]:
        own = [self] if self.lever == lever else []
        return own + [p for pull in self.inner for p in pull.find(lever)]

    def levers(self) -> set[str]:
        """Its own, and those of the recipes that its config holds."""
        return {self.lever}.union(*(p.levers() for p in self.inner))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to a workload's model: ordered pulls, and the seed of all that is random."""

    workload: str  # identity of the workload: model, data, loss, metric
    pulls: tuple[Pull, ...] = ()
    seed: int = 0

    @property
    def id(self) -> str:
        return digest(self.to_json())[:16]

    def then(self, lever: str, config: dict[str, Any]) -> Recipe:
        return dataclasses.replace(self, pulls=(*self.pulls, Pull(lever, config)))

    def levers(self) -> set[str]:
        """All that are pulled anywhere in the tree."""
        return set().union(*(p.levers() for p in self.pulls))

    def find(self, lever: str) -> list[Pull]:
        """Its pulls of a lever, anywhere in the tree."""
        return [p for pull in self.pulls for p in pull.find(lever)]

    def only(self, levers: Iterable[str]) -> Recipe:
        """The recipe with no other levers than these.

        Of a pull that goes and holds recipes, the last is what stays: the best of its parts. Parts that
        become the same stay once.
        """
        return dataclasses.replace(self, pulls=_only(self.pulls, frozenset(levers)))

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "pulls": [{"lever": p.lever, "config": p.config} for p in self.pulls],
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        pulls = tuple(Pull(p["lever"], p["config"]) for p in data["pulls"])
        return cls(workload=data["workload"], pulls=pulls, seed=data["seed"])


def _only(pulls: Sequence[Pull], levers: frozenset[str]) -> tuple[Pull, ...]:
    out: list[Pull] = []
    for pull in pulls:
        if "parts" not in pull.config:
            out += [pull] if pull.lever in levers else []
            continue
        parts = [{**part, "pulls": [_plain(p) for p in _only([Pull(**p) for p in part["pulls"]], levers)]} for part in pull.config["parts"]]
        parts = [part for i, part in enumerate(parts) if part["pulls"] not in [later["pulls"] for later in parts[i + 1 :]]]
        if pull.lever in levers and len(parts) > 1:
            out.append(Pull(pull.lever, {**pull.config, "parts": parts}))
        else:
            out += [Pull(**p) for p in parts[-1]["pulls"]]
    return tuple(out)
