"""Which of the measured models are worth compressing as parts of a whole."""

from __future__ import annotations

from tenfold.candidate import MOST_PARTS, Candidate, parts_front
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
