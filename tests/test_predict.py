"""Batch sizes from noise and step time, against what the model of both comes to by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.batch.predict import (
    StepTime,
    choose,
    devices_worth,
    examples_over_least,
    learning_rate,
    second_beta,
    soonest,
    steps_over_least,
    times,
    warm_up,
)

SIZES = tuple(4**i for i in range(8))


def affine(a: float, b: float) -> StepTime:
    """A step that takes a, and b for each example."""
    return StepTime(sizes=SIZES, seconds=tuple(a + b * s for s in SIZES))


@given(st.floats(1e-4, 1e-2), st.floats(1e-7, 1e-4), st.floats(1.0, 1e5))
def test_the_best_batch_is_the_root_of_noise_times_overhead(a: float, b: float, critical: float) -> None:
    best = math.sqrt(critical * a / b)  # where (1 + c/B)(a + bB) is least
    found = soonest(range(1, 1 << 14, 7), StepTime(sizes=SIZES, seconds=tuple(a + b * s for s in SIZES)), critical)
    grid = soonest(SIZES, affine(a, b), critical)
    if 4 < best < 4096:
        assert best / 4 <= found <= best * 4
        assert best / 4 <= grid <= best * 4, "the next power of four on either side"


def test_a_step_between_two_sizes_is_between_their_times() -> None:
    time = StepTime(sizes=(1, 100), seconds=(1e-3, 1e-2))
    assert time.at(10) == pytest.approx(math.sqrt(1e-5))
    assert time.at(1) == pytest.approx(1e-3)
    assert time.at(1000) == pytest.approx(0.1), "beyond what was measured an example costs what it did"


@pytest.mark.parametrize(("sizes", "seconds"), [((), ()), ((1, 2), (1.0,)), ((2, 1), (1.0, 1.0)), ((0, 1), (1.0, 1.0)), ((1, 2), (0.0, 1.0))])
def test_step_times_that_cannot_be_are_refused(sizes, seconds) -> None:
    with pytest.raises(ValueError, match="batch sizes"):
        StepTime(sizes=sizes, seconds=seconds)


@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_steps_and_examples_lie_on_the_hyperbola(batch: float, critical: float) -> None:
    """(S/S_min - 1)(E/E_min - 1) = 1, equation 2.11."""
    assert (steps_over_least(batch, critical) - 1) * (examples_over_least(batch, critical) - 1) == pytest.approx(1)


def test_an_uncertain_noise_scale_gives_an_uncertain_batch() -> None:
    time = affine(1e-3, 1e-5)
    choice = choose(SIZES, time, 160.0, 10.0, 40_000.0)
    assert choice.best == soonest(SIZES, time, 160.0)
    assert choice.low < choice.best < choice.high
    by_hand = [t[SIZES.index(choice.best)] / t.min() for t in (times(SIZES, time, 10.0), times(SIZES, time, 40_000.0))]
    assert choice.worst == pytest.approx(max(by_hand))
    sure = choose(SIZES, time, 160.0, 160.0, 160.0)
    assert (sure.low, sure.best, sure.high, sure.worst) == (choice.best, choice.best, choice.best, 1.0)


def test_where_nothing_but_noise_is_seen_examples_should_be_cheap() -> None:
    assert choose(SIZES, affine(1e-3, 1e-5), math.inf, 100.0, math.inf).best == SIZES[-1]


def test_devices_help_until_the_batch_is_critical() -> None:
    """With steps that take as long as their examples, n devices take n times the batch: 1 + c/(nB) falls off at n = c/B."""
    time = StepTime(sizes=(32,), seconds=(0.01,))
    counts = {critical: devices_worth(time, critical) for critical in (1.0, 320.0, 32_000.0)}
    assert counts[1.0] == 1
    assert counts[320.0] < counts[32_000.0]
    for critical, n in counts.items():
        def speed(k: int, c: float = critical) -> float:
            return 1 / (1 + c / (32 * k))

        assert speed(2 * n) / speed(n) < 1.5, "twice as many are not worth it"
        assert n == 1 or speed(n) / speed(n // 2) >= 1.5


def test_a_growing_batch_pays_where_noise_grows() -> None:
    time = affine(1e-3, 1e-5)
    grows = warm_up(SIZES, time, [10.0, 1_000.0, 100_000.0], [1 / 3] * 3)
    assert list(grows.sizes) == sorted(grows.sizes)
    assert grows.sizes[0] < grows.sizes[-1]
    assert grows.gain > 1
    assert warm_up(SIZES, time, [500.0] * 3, [1 / 3] * 3).gain == pytest.approx(1)


def test_rates_go_by_the_batch_and_no_further_than_the_noise() -> None:
    assert learning_rate(0.1, 32, 64, optimizer="sgd", critical=math.inf) == pytest.approx(0.2)
    assert learning_rate(0.1, 32, 64, optimizer="sgd", critical=1e9) == pytest.approx(0.2, rel=1e-3)
    assert learning_rate(0.1, 32, 64, optimizer="adamw", critical=1e9) == pytest.approx(0.1 * math.sqrt(2), rel=1e-3)
    assert learning_rate(0.1, 3200, 6400, optimizer="sgd", critical=1.0) == pytest.approx(0.1, rel=1e-3)
    there = learning_rate(0.1, 32, 512, optimizer="sgd", critical=100.0)
    assert learning_rate(there, 512, 32, optimizer="sgd", critical=100.0) == pytest.approx(0.1)


def test_a_half_life_in_examples_stays() -> None:
    half_life = math.log(0.5) / math.log(0.999) * 32
    other = second_beta(0.999, 32, 1024)
    assert math.log(0.5) / math.log(other) * 1024 == pytest.approx(half_life)
    assert np.isclose(second_beta(0.999, 32, 32), 0.999)
