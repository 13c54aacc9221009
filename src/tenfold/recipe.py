"""Pure data with an identity: what was done to a model, in which order, under which seed.

A recipe travels; a closure never does. Its hash is its identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
