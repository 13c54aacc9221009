"""What cascades would come to by the recorded answers of their parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tenfold import foresee
from tenfold.insights import confidence
from tenfold.lever import Part
from tenfold.recipe import Recipe
from tenfold.testing import part
from tenfold.verdict import ONE_SIDED, safety_of


def test_what_is_foreseen_is_what_handing_on_would_give() -> None:
    rng = np.random.default_rng(0)
    n = 1_000
    baseline = dataclasses.replace(part("base", rng.random(n) < 0.95, rng.random(n), 1.0), recipe=Recipe(workload="w"))
    sureness = rng.random(n)
    small = part("small", rng.random(n) < 0.7 + 0.3 * sureness, sureness, 0.1)
    middle = part("middle", rng.random(n) < 0.93, rng.random(n), 0.4)
    found = foresee.best([baseline, small, middle], 0.05, tested=1_000)
    assert found
    for f in found:
        scores, rows = f.parts[0].scores.copy(), np.arange(n)
        cost = f.parts[0].cost
        for before, after, share in zip(f.parts, f.parts[1:], f.hand_on, strict=False):
            order = np.argsort(confidence(before.outputs)[rows], kind="stable")
            cost += foresee.OVERHEAD * len(rows) / n
            rows = rows[order[: round(share * n)]]
            scores[rows] = after.scores[rows]
            cost += len(rows) / n * after.cost
        assert f.quality == pytest.approx((scores - baseline.scores).mean(), abs=1e-9)
        assert f.deviation == pytest.approx((scores - baseline.scores).std(), abs=1e-9)
        assert f.cost == pytest.approx(cost, abs=1e-9)
    assert [f.cost for f in found] == sorted((f.cost for f in found), reverse=True)  # from safe to cheap


def test_answers_are_blended_where_two_models_err_less_together() -> None:
    """What is foreseen of a blend is what the blended answers score."""
    rng = np.random.default_rng(3)
    n, targets = 1_000, rng.integers(0, 3, 1_000)

    def score(outputs: np.ndarray) -> np.ndarray:
        return (outputs.argmax(1) == targets).astype(float)

    def noisy(name: str, noise: float, cost: float) -> Part:
        outputs = 4 * np.eye(3)[targets] + noise * rng.normal(size=(n, 3))
        return Part(recipe=Recipe(workload="w").then("distill", {"name": name}), outputs=outputs, scores=score(outputs), cost=cost)

    baseline = dataclasses.replace(noisy("base", 2.0, 1.0), recipe=Recipe(workload="w"))
    small, middle = noisy("small", 3.0, 0.1), noisy("middle", 2.5, 0.3)
    parts = [baseline, small, middle]
    found = foresee.best(parts, 0.05, tested=1_000, score=lambda rows, outputs: (outputs.argmax(1) == targets[rows]).astype(float))
    assert {f.blend for f in found} - {0.0}
    assert min(f.cost for f in found) < min(f.cost for f in foresee.best(parts, 0.05, tested=1_000))
    for f in found:
        so_far = f.parts[0].outputs
        answers, rows = so_far.copy(), np.arange(n)
        for after, share in zip(f.parts[1:], f.hand_on, strict=True):
            rows = rows[np.argsort(confidence(so_far)[rows], kind="stable")[: round(share * n)]]
            so_far = (1 - f.blend) * after.outputs + f.blend * so_far
            answers[rows] = so_far[rows]
        assert f.quality == pytest.approx((score(answers) - baseline.scores).mean(), abs=1e-9)


def test_of_two_parts_at_about_one_cost_the_better_stays(monkeypatch) -> None:
    """Where there are more than can be compared; the worse one, a hair cheaper, once drove the better one out."""
    monkeypatch.setattr(foresee, "MOST_PARTS", 4)
    rng, n = np.random.default_rng(0), 1_000
    shares = {"tiny": (0.05, 0.8), "worse": (0.117, 0.9), "better": (0.118, 0.94), "large": (0.4, 0.95), "larger": (0.7, 0.955)}
    parts = [dataclasses.replace(part("base", rng.random(n) < 0.96, rng.random(n), 1.0), recipe=Recipe(workload="w"))]
    parts += [part(name, np.arange(n) < right * n, rng.random(n), cost) for name, (cost, right) in shares.items()]
    kept = [p.recipe.pulls[-1].config["name"] if p.recipe.pulls else "base" for p in foresee._useful(parts)]
    assert kept == ["tiny", "better", "large", "base"]


def test_cascades_of_many_classes_are_compared_on_a_part_of_the_rows(monkeypatch) -> None:
    rng = np.random.default_rng(5)
    n, looked_at = 1_000, []
    sureness = rng.random(n)
    baseline = dataclasses.replace(part("base", rng.random(n) < 0.95, rng.random(n), 1.0), recipe=Recipe(workload="w"))
    small = part("small", rng.random(n) < 0.7 + 0.3 * sureness, sureness, 0.1)

    def score(rows: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        assert len(rows) == len(outputs)
        looked_at.append(rows)
        return baseline.scores[rows]

    whole = foresee.best([baseline, small], 0.05, tested=1_000, score=score)
    assert all(np.array_equal(rows, np.arange(n)) for rows in looked_at)
    monkeypatch.setattr(foresee, "MOST_OUTPUTS", 250 * baseline.outputs.shape[1])
    monkeypatch.setattr(foresee, "LEAST_ROWS", 10)
    looked_at.clear()
    some = foresee.best([baseline, small], 0.05, tested=1_000, score=score)
    assert {len(rows) for rows in looked_at} == {250}
    assert {f.parts[0].recipe for f in some} == {f.parts[0].recipe for f in whole} == {small.recipe}


def test_the_cost_of_a_decision_is_the_median_of_what_cascades_cost_beside_their_parts() -> None:
    parts = [part(str(i), np.ones(10), np.ones(10), 1.0) for i in range(3)]
    pair = foresee.Foreseen(parts=(parts[0], parts[1]), hand_on=(0.2,), quality=0.0, deviation=0.0, cost=0.5 + 0.005)
    triple = foresee.Foreseen(parts=tuple(parts), hand_on=(0.5, 0.1), quality=0.0, deviation=0.0, cost=0.6 + 1.5 * 0.005)
    assert foresee.overhead_of([(pair, 0.52), (triple, 0.6 + 1.5 * 0.04), (pair, 0.9)]) == pytest.approx(0.04)
    assert foresee.overhead_of([(pair, 0.1)]) == 0.0


def test_nothing_is_foreseen_where_one_model_alone_is_better() -> None:
    rng = np.random.default_rng(1)
    n = 1_000
    right = rng.random(n) < 0.95
    baseline = dataclasses.replace(part("base", right, rng.random(n), 1.0), recipe=Recipe(workload="w"))
    perfect = part("perfect", np.ones(n), rng.random(n), 0.1)
    assert foresee.best([baseline, perfect], 0.005, tested=1_000) == []


def test_the_least_share_is_the_first_that_wins_back_enough() -> None:
    rng = np.random.default_rng(4)
    n = 500
    baseline = part("base", rng.random(n) < 0.95, rng.random(n), 1.0)
    sureness = rng.random(n)
    small = part("small", rng.random(n) < 0.6 + 0.4 * sureness, sureness, 0.1)
    order = np.argsort(confidence(small.outputs), kind="stable")

    def difference(k: int) -> float:
        scores = small.scores.copy()
        scores[order[:k]] = baseline.scores[order[:k]]
        return float((scores - baseline.scores).mean())

    for aim in (-0.1, -0.02, 0.0):
        k = round(foresee.least_share(small, baseline, aim) * n)
        assert difference(k) >= aim - 1e-9
        assert all(difference(i) < aim for i in range(k))
    assert foresee.least_share(baseline, baseline, 0.0) == 0.0
    worse = dataclasses.replace(small, scores=np.zeros(n))
    assert foresee.least_share(worse, baseline, 0.0) > 0.9


def test_a_small_student_is_promising_before_one_that_is_sure_of_more() -> None:
    rng = np.random.default_rng(5)
    n = 2_000
    baseline = part("base", np.ones(n), rng.random(n), 1.0)

    def student(name: str, errs: float, cost: float) -> Part:
        sureness = rng.random(n)
        return part(name, sureness > errs, sureness, cost)  # errs on what it is least sure of

    small, middle, worse, dear = student("a", 0.4, 0.05), student("b", 0.1, 0.15), student("c", 0.6, 0.06), student("d", 0.05, 0.9)
    assert foresee.promising([dear, middle, worse, small], baseline, 0.005) == [3, 1]
    assert foresee.promising([dataclasses.replace(dear, cost=1.2)], baseline, 0.005) == []
    assert foresee.promising([], baseline, 0.005) == []
    better = student("e", 0.36, 0.05)
    assert foresee.promising([small, better, middle], baseline, 0.005) == [1, 2]
    assert foresee.promising([small, better, middle], baseline, 0.005, keeps=[1.0, 1.5, 1.0]) == [0, 2], "it hardly learns on"


def test_what_is_trained_in_full_stands_beside_what_is_sought() -> None:
    rng = np.random.default_rng(6)
    n = 2_000
    baseline = part("base", np.ones(n), rng.random(n), 1.0)
    sureness = rng.random(n)
    full, small, large = (part(name, sureness > errs, sureness, cost) for name, errs, cost in (("f", 0.2, 0.2), ("s", 0.4, 0.05), ("l", 0.3, 0.3)))
    assert foresee.promising([full, small, large], baseline, 0.005, in_full=1) == [1]
    assert foresee.promising([full], baseline, 0.005, in_full=1) == []


def test_a_weak_student_behind_another_hands_on_all_that_it_would_alone() -> None:
    """What is hard for the first is hard for the second: a good one behind it is worth its cost."""
    sureness = np.random.default_rng(7).random(2_000)
    baseline = part("base", np.ones(2_000), sureness, 1.0)
    first, weak, good = (part(name, sureness > errs, sureness, cost) for name, errs, cost in (("f", 0.4, 0.05), ("w", 0.3, 0.08), ("g", 0.05, 0.2)))
    assert foresee.promising([first, weak, good], baseline, 0.005) == [0, 2]


@pytest.mark.parametrize(("n", "tested"), [(1_000, 1_000), (3_000, 10_000)])
def test_safety_is_how_often_certification_lets_through(n: int, tested: int) -> None:
    """Simulated: what was found on valid, and then what a test split of that size says."""
    rng = np.random.default_rng(8)
    margin, deviation = 0.02, 0.25
    for wanted, often in ((1.28, 0.9), (0.0, 0.5), (-0.4, 0.34)):
        quality = wanted * deviation * np.sqrt(1 / n + 1 / tested) - margin + ONE_SIDED * deviation / np.sqrt(tested)
        assert safety_of(quality, deviation, margin, n, tested) == pytest.approx(wanted)
        true = quality + rng.normal(0, deviation / np.sqrt(n), 20_000)
        on_test = true + rng.normal(0, deviation / np.sqrt(tested), 20_000)
        assert (on_test - ONE_SIDED * deviation / np.sqrt(tested) >= -margin).mean() == pytest.approx(often, abs=0.02)
    assert safety_of(0.0, 0.0, margin, n, tested) == np.inf


def test_more_is_handed_on_where_less_is_known() -> None:
    """The safest cascade depends on the sizes of the splits, the cheapest hardly."""
    rng = np.random.default_rng(9)
    n = 2_000
    baseline = dataclasses.replace(part("base", rng.random(n) < 0.9, rng.random(n), 1.0), recipe=Recipe(workload="w"))
    sureness = rng.random(n)
    small = part("small", rng.random(n) < 0.7 + 0.3 * sureness, sureness, 0.1)
    few, many = (foresee.best([baseline, small], 0.02, tested=tested) for tested in (1_000, 100_000))
    assert few[0].hand_on > many[0].hand_on
    assert few[0].cost > many[0].cost


def drawn(rng: np.random.Generator, n: int) -> list[Part]:
    """A baseline and five others of many costs, on examples of unequal difficulty, and how sure they are says something of where they err."""
    hard = rng.random(n) ** 2
    parts = [dataclasses.replace(part("base", rng.random(n) > 0.25 * hard, rng.random(n), 1.0), recipe=Recipe(workload="w"))]
    for i, (error, cost) in enumerate([(0.75, 0.05), (0.65, 0.08), (0.55, 0.12), (0.45, 0.2), (0.38, 0.3)]):
        parts.append(part(str(i), rng.random(n) > error * hard, np.clip(1.0 - 0.8 * hard - 0.2 * rng.random(n), 0.01, 1.0), cost))
    return parts


def elsewhere(found: foresee.Foreseen, parts: list[Part]) -> float:
    """The quality difference of a cascade on other examples."""
    by_recipe = {p.recipe.id: p for p in parts}
    chain = [by_recipe[p.recipe.id] for p in found.parts]
    scores, rows = chain[0].scores.copy(), np.arange(len(chain[0].scores))
    for before, after, share in zip(chain, chain[1:], found.hand_on, strict=False):
        rows = rows[np.argsort(before.sureness[rows], kind="stable")[: round(share * len(scores))]]
        scores[rows] = after.scores[rows]
    return float((scores - parts[0].scores).mean())


def test_what_luck_there_is_in_choosing_is_taken_off(monkeypatch) -> None:
    """Of cascades that should lie above what is certified half the time, by no standard error, hardly any do where luck is not looked for."""
    rng, tested, margin = np.random.default_rng(5), 5_000, 0.015
    monkeypatch.setattr(foresee, "SAFETY", (0.0,))
    many = drawn(rng, 100_000)
    above: dict[int, list[bool]] = {0: [], foresee.SPLITS: []}
    for _ in range(16):
        parts = drawn(rng, 3_000)
        for splits, kept in above.items():
            monkeypatch.setattr(foresee, "SPLITS", splits)
            for found in foresee.best(parts, margin, tested=tested):
                kept.append(elsewhere(found, many) >= ONE_SIDED * found.deviation / np.sqrt(tested) - margin)
    blind, seeing = above.values()
    assert len(blind) == 16
    assert len(seeing) >= 10
    assert np.mean(blind) < 0.3
    assert np.mean(seeing) > 0.5
