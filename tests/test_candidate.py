"""What a ladder keeps: which models are worth compressing as parts of a whole, the best single lever, a row a lever."""

from __future__ import annotations

import dataclasses

from tenfold.candidate import MOST_PARTS, Candidate, Ladder, best_single, parts_front, row_of
from tenfold.lever import Stage
from tenfold.recipe import Recipe
from tenfold.verdict import Decision, Interval, Verdict


def candidate(name: str, quality: float, gain: float, *, whole: bool = True) -> Candidate:
    verdict = Verdict(decision=Decision.REFUSE, reason="", quality=Interval(value=quality, low=quality - 0.01, high=quality + 0.01))
    config = {"name": name}
    return Candidate(
        recipe=Recipe(workload="w", seed=0).then("distill", config), plan=None, lever="distill", config=config, stage=Stage.MODEL,  # type: ignore[arg-type]
        verdict=verdict, gain=Interval(value=gain, low=gain, high=gain), whole=whole,
    )  # fmt: skip


def names(candidates: list[Candidate]) -> list[str]:
    return [c.config["name"] for c in candidates]


def test_a_short_training_is_no_part_beside_the_same_student_in_full() -> None:
    """Timing by chance puts the worse one a little ahead."""
    short, full, middle = candidate("short", -0.058, 20.4), candidate("full", -0.024, 20.0), candidate("middle", -0.015, 9.0)
    assert names(parts_front([short, full, middle])) == ["full", "middle"]


def test_a_part_that_another_beats_is_none() -> None:
    assert names(parts_front([candidate("a", -0.01, 3.0), candidate("b", -0.02, 2.0), candidate("c", -0.03, 6.0)])) == ["a", "c"]


def test_only_what_was_measured_in_full_counts() -> None:
    assert names(parts_front([candidate("a", -0.01, 3.0), candidate("b", 0.0, 9.0, whole=False)])) == ["a"]


def test_where_there_are_many_both_ends_stay() -> None:
    found = parts_front([candidate(str(i), -0.01 * i, 1.5**i) for i in range(12)])
    assert len(found) == MOST_PARTS
    assert names(found)[0] == "0"
    assert names(found)[-1] == "11"


def test_the_best_single_lever_is_the_cheapest_within_the_margin() -> None:
    good, cheap, worse = candidate("good", 0.0, 2.0), candidate("cheap", -0.004, 3.0), candidate("worse", -0.006, 9.0)
    short = candidate("screened", 0.0, 9.0, whole=False)
    two = dataclasses.replace(candidate("two", 0.0, 9.0), recipe=good.recipe.then("quantize", {}))
    assert best_single([good, cheap, worse, short, two], 0.005) is cheap
    assert best_single([good, two], 0.005) is good
    assert best_single([worse, short, two], 0.005) is None


def test_of_a_lever_that_was_pulled_twice_what_was_taken_stands() -> None:
    def row(decision: Decision, gain: float, tried: int) -> dict:
        return row_of("compose", "cascade", decision, "", cost=Interval(value=gain, low=gain, high=gain), tried=tried)

    ladder = Ladder(recipe=Recipe(workload="w"), plan=None)  # type: ignore[arg-type]
    for decision, gain, tried in ((Decision.TAKE, 4.0, 5), (Decision.REFUSE, 8.0, 2), (Decision.TAKE, 5.0, 1), (Decision.TAKE, 4.5, 1)):
        ladder.put(row(decision, gain, tried))
    assert [(r["verdict"], r["cost_ratio"]["value"], r["tried"]) for r in ladder.rows] == [("take", 5.0, 9)]
