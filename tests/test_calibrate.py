"""What branches say of the critical batch size, against steps that follow the law exactly or nearly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.batch.calibrate import Point, calibrate, steps_to


def points(factor: float, noises: list[float], sizes: tuple[int, ...] = (8, 32, 128, 512), scatter: float = 0.0, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(checkpoint=i, noise=n, batch=b, steps=(100 + 50 * i) * (1 + factor * n / b) * math.exp(scatter * rng.normal()))
        for i, n in enumerate(noises) for b in sizes
    ]  # fmt: skip


@given(st.floats(0.05, 20.0), st.floats(5.0, 2000.0))
def test_steps_that_follow_the_law_give_its_factor_back(factor: float, noise: float) -> None:
    if not 2 < factor * noise < 4000:
        return  # then all sizes lie on one side of it, and the steps hardly depend on it
    found = calibrate(points(factor, [noise, 2 * noise]))
    assert found.factor == pytest.approx(factor, rel=0.02)
    assert found.low <= found.factor <= found.high


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    inside = [c.low <= 1.5 <= c.high for c in (calibrate(points(1.5, [50.0, 100.0], scatter=0.15, seed=s)) for s in range(200))]
    assert 0.84 <= np.mean(inside) <= 0.95


def test_where_nothing_can_be_told_the_interval_is_open() -> None:
    one = calibrate(points(1.0, [50.0, 100.0], sizes=(32,)))
    assert (one.factor, one.low, one.high) == (1.0, 0.0, math.inf), "a size alone says nothing of any factor"
    two = calibrate(points(1.0, [50.0], sizes=(8, 512)))
    assert (two.low, two.high) == (0.0, math.inf)
    assert math.isnan(two.scatter)
    far_below = calibrate(points(1.0, [1e7, 1e7], scatter=0.01))
    assert far_below.high == math.inf, "steps in proportion to 1/B say that the critical batch size is large, not how large"


@pytest.mark.parametrize(("noise", "steps"), [(0.0, 10.0), (math.inf, 10.0), (10.0, 0.0)])
def test_points_that_cannot_be_are_refused(noise: float, steps: float) -> None:
    with pytest.raises(ValueError, match="finite noise scale"):
        calibrate([Point(checkpoint=0, noise=noise, batch=8, steps=steps)])
    with pytest.raises(ValueError, match="needs points"):
        calibrate([])


def test_steps_to_a_loss_lie_between_the_lengths_that_were_tried() -> None:
    assert steps_to(1.0, [10, 40], [1.5, 0.5]) == pytest.approx(20.0)
    assert steps_to(0.5, [10, 40], [1.5, 0.5]) == pytest.approx(40.0)
    assert steps_to(2.0, [10, 40], [1.5, 0.5]) == 10.0, "no shorter than what was tried"
    assert steps_to(0.4, [10, 40], [1.5, 0.5]) is None
    assert steps_to(1.0, [10, 20, 40], [math.nan, 1.4, 0.9]) == pytest.approx(20 * 2**0.8)
    assert steps_to(1.0, [10, 20], [0.9, 1.2]) == 10.0, "a longer branch that ends worse counts as one as good"
    assert steps_to(1.0, [10], [math.nan]) is None
