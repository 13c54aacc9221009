"""What a bundle says of its data, and what a server makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold.serve.drift import LEAST, SAMPLED, Drift
from tenfold.statistics import BINS, count, describe, feature_names, features, stability_index


def test_narrow_inputs_are_looked_at_by_column_and_wide_ones_by_mean_and_spread() -> None:
    narrow, wide = np.arange(12.0).reshape(3, 2, 2), np.arange(600).reshape(2, 3, 10, 10)
    assert feature_names(narrow.shape[1:]) == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(features(narrow), narrow.reshape(3, 4))
    assert feature_names(wide.shape[1:]) == ["mean", "spread"]
    np.testing.assert_allclose(features(wide), [[149.5, np.arange(300).std()], [449.5, np.arange(300).std()]])
    assert features(np.array([True, False])).tolist() == [[1.0], [0.0]]
    assert feature_names(()) == ["0"]


def test_bins_hold_about_equal_shares_and_ties_fewer_bins() -> None:
    rng = np.random.default_rng(0)
    found = describe({"x": np.stack([rng.normal(size=5000), np.ones(5000), rng.integers(0, 2, 5000)], axis=1)}, None)
    assert found["classes"] is None
    smooth, constant, coin = found["inputs"][0]["features"]
    assert len(smooth["shares"]) == BINS == len(smooth["edges"]) + 1
    np.testing.assert_allclose(smooth["shares"], 1 / BINS, atol=0.002)
    assert constant == {"name": "1", "edges": [1.0], "shares": [0.0, 1.0]}
    assert len(coin["shares"]) <= 3
    assert all(sum(f["shares"]) == pytest.approx(1) for f in (smooth, constant, coin))
    np.testing.assert_array_equal(count(np.array([-5.0, 0.5, 1.0, 9.0]), np.array([0.0, 1.0])), [1, 1, 2])


def test_the_stability_index_is_that_of_the_textbook_and_finite() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    expected = float(((p - q) * np.log(p / q)).sum())
    assert stability_index(q, p * 1e6) == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(stability_index(np.array([1.0, 0.0]), np.array([0, 50])))
    assert stability_index(q, q * 1000) < 1e-3


def test_drift_is_told_once_enough_was_seen_and_old_examples_fade() -> None:
    rng = np.random.default_rng(1)
    known = {"x": rng.normal(size=(5000, 2))}
    drift = Drift(describe(known, rng.normal(size=(1000, 3))), classes=3)
    assert list(drift.of_inputs()) == []
    assert drift.of_answers() is None
    for _ in range(20 * SAMPLED):
        drift.see([rng.normal(size=(50, 2))], rng.integers(0, 3, 50))
    assert all(index < 0.1 for _, _, index in drift.of_inputs())
    assert drift.of_answers() < 0.1
    for _ in range(1000 * SAMPLED):
        drift.see([rng.normal((0, 3), size=(50, 2))], np.zeros(50, dtype=int))
    found = {feature: index for _, feature, index in drift.of_inputs()}
    assert found["0"] < 0.1
    assert found["1"] > 1
    assert drift.of_answers() > 1


def test_without_statistics_nothing_is_told() -> None:
    drift = Drift({})
    for _ in range(LEAST * SAMPLED):
        drift.see([np.zeros((4, 2))], None)
    assert list(drift.of_inputs()) == []
    assert drift.of_answers() is None
