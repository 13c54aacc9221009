"""Recipes on their way through a search: entered, measured, and what the ladder came to; and how they are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.certify import Standing, front
from tenfold.lever import Config, Stage, spread
from tenfold.plan import Plan
from tenfold.recipe import Recipe
from tenfold.verdict import Decision, Interval, Verdict

MOST_PARTS = 6
"""Models that are compressed as parts of a whole."""
ABOUT_THE_COST = 1.1
"""Costs within this factor are about the same: a model is no part of a whole where one of about its cost is better."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What a lever is pulled on."""

    recipe: Recipe
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Entrant(Rung):
    """A recipe to be measured, with its last pull."""

    lever: str
    config: Config

    @property
    def label(self) -> str:
        return short(self.lever, self.config)


@dataclass(frozen=True, kw_only=True)
class Candidate(Entrant):
    """A recipe that was measured."""

    stage: Stage
    verdict: Verdict
    gain: Interval | None
    """Cost ratio against the baseline."""
    whole: bool = False
    """Measured on the whole of valid."""
    training_seconds: float = 0.0
    """What its last training took; the baseline's does not count."""
    training_cpu_seconds: float = 0.0
    answering_seconds: float = 0.0
    """What its teacher took to answer on an epoch, beforehand."""
    timing_seconds: float = 0.0
    """Its part of what timing its rounds took."""

    @property
    def standing(self) -> Standing | None:
        """As it stands on valid; None where quality or cost could not be measured."""
        if self.gain is None or self.verdict.quality is None:
            return None
        return Standing(recipe=self.recipe.id, quality=self.verdict.quality, gain=self.gain)


@dataclass
class Ladder:
    """What a search came to."""

    recipe: Recipe
    plan: Plan
    rows: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    joint: dict[str, Any] | None = None
    """What the rounds of the joint search came to, those that learn and those at random."""

    def put(self, row: dict[str, Any]) -> None:
        """Add a lever's row; where it had one at this stage, that of the two which was taken, or else is cheaper, stands for both."""
        at = next((i for i, r in enumerate(self.rows) if (r["stage"], r["lever"]) == (row["stage"], row["lever"])), None)
        if at is None:
            self.rows.append(row)
        else:
            before = self.rows[at]
            stands = row if _effect(row) > _effect(before) else before
            self.rows[at] = {**stands, "tried": row["tried"] + before["tried"]}


def _effect(row: dict[str, Any]) -> tuple[bool, float]:
    return row["verdict"] == Decision.TAKE, (row["cost_ratio"] or {"value": 0.0})["value"]


def parts_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of those measured in full, what no other beats in quality at about its cost or below."""
    standings = [s for c in candidates if c.whole and (s := c.standing) is not None]
    unbeaten = [
        s for s in standings
        if not any(o.quality.value > s.quality.value and o.gain.value * ABOUT_THE_COST >= s.gain.value for o in standings)
    ]  # fmt: skip
    best = front(unbeaten)
    kept = {s.recipe for s in spread(best, MOST_PARTS)}
    return [c for c in candidates if c.recipe.id in kept]


def best_single(candidates: Sequence[Candidate], margin: float) -> Candidate | None:
    """The cheapest that one lever alone came to, of those whose quality on valid is within the margin."""
    able = [
        (s.gain.value, c) for c in candidates
        if c.whole and len(c.recipe.levers()) == 1 and (s := c.standing) is not None and s.quality.value >= -margin
    ]  # fmt: skip
    return max(able, key=lambda pair: pair[0])[1] if able else None


def judged(candidate: Candidate) -> Candidate:
    """A candidate that is only known to be cheaper is no candidate yet."""
    if candidate.verdict.decision is not Decision.TAKE or candidate.verdict.quality is not None:
        return candidate
    verdict = Verdict(
        decision=Decision.INCONCLUSIVE,
        reason=f"the budget ended before it was trained ({candidate.verdict.reason})",
        cost=candidate.verdict.cost,
    )
    return replace(candidate, verdict=verdict)


def row_of(
    stage: str, lever: str, decision: Decision, reason: str, *,
    config: Config | None = None, quality: Interval | None = None, cost: Interval | None = None,
    recipe: str | None = None, tried: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A row of the ladder as it stands in result.json."""
    return {
        "stage": str(stage),
        "lever": lever,
        "config": config,
        "quality_difference": quality.to_json() if quality else None,
        "cost_ratio": cost.to_json() if cost else None,
        "verdict": str(decision),
        "reason": reason,
        "recipe": recipe,
        "tried": tried,
    }


def short(lever: str, config: Config) -> str:
    """A config in a few words: text as it is, switches by name, numbers with theirs; what is off is left out."""
    words: list[str] = []
    for name, value in config.items():
        if isinstance(value, dict):
            words.append(short("", value)[1:-1])
        elif isinstance(value, list):
            words.append(_short_parts(value))
        elif isinstance(value, bool):
            words += [name.replace("_", " ")] if value else []
        elif isinstance(value, str):
            words.append(value)
        elif value:
            words.append(f"{name.replace('_', ' ')} {value:g}")
    return f"{lever}({', '.join(words)})"


def _short_parts(parts: list[dict[str, Any]]) -> str:
    """Recipes that a config holds, by their pulls, and what each hands on."""
    labels = [" + ".join(short(p["lever"], p["config"]) for p in part["pulls"]) or "baseline" for part in parts]
    shares = [f" → {part['hand_on']:.0%} to " for part in parts[:-1]] + [""]
    return "".join(label + share for label, share in zip(labels, shares, strict=True))


def recipe_label(recipe: Recipe) -> str:
    return " + ".join(short(p.lever, p.config) for p in recipe.pulls) or "baseline"
