"""The statistics: against closed forms, brute-force likelihood, scipy, and enumeration or simulation of what they promise."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from tenfold.verdict import (
    COST_BAR,
    Decision,
    Interval,
    Verdict,
    bootstrap_difference,
    certify,
    choose,
    corpus_difference,
    cost_ratio,
    exact_ratio,
    examples_to_decide,
    fixed_sequence,
    p_value,
    paired_binary_interval,
    quality_difference,
    quality_p,
    student_quantile,
    tango_statistic,
)

Z90 = stats.norm.ppf(0.95)
BISECTED = 1e-12  # sixty halvings of an interval of at most 2 leave 2e-18; the rest is float64


def scores_of(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Paired 0/1 scores with so many pairs that only the candidate, or only the baseline, has right."""
    baseline, candidate = np.zeros(n), np.zeros(n)
    candidate[:gained] = 1
    baseline[gained : gained + lost] = 1
    both = (n - gained - lost) // 2
    baseline[n - both :] = candidate[n - both :] = 1
    return baseline, candidate


def tango(gained: int, lost: int, n: int, level: float = 0.9) -> Interval:
    return paired_binary_interval(*scores_of(gained, lost, n), level=level)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """(gained, lost, n) of a paired two-by-two table."""
    n = draw(st.integers(1, 700))
    gained = draw(st.integers(0, n))
    return gained, draw(st.integers(0, n - gained)), n


# ---------------------------------------------------------------- Tango's interval


def by_brute_force(gained: int, lost: int, n: int, difference: float) -> float:
    """The score statistic with the constrained maximum-likelihood estimate found numerically."""

    def minus_log_likelihood(q: float) -> float:
        cells = ((gained, q + difference), (lost, q), (n - gained - lost, 1 - 2 * q - difference))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    lowest, highest = max(0.0, -difference), (1 - difference) / 2
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (12, 2, 50), (3, 3, 40), (5, 9, 600), (40, 20, 160)])
@pytest.mark.parametrize("difference", [-0.4, -0.05, -0.005, 0.01, 0.3])
def test_the_statistic_is_the_score_at_the_constrained_likelihood_maximum(gained, lost, n, difference):
    ours = float(tango_statistic(gained, lost, n, difference))
    # a bounded search finds a flat maximum to about the square root of float64's precision
    assert ours == pytest.approx(by_brute_force(gained, lost, n, difference), rel=1e-5)


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (12, 2, 50), (5, 9, 600), (40, 20, 160)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_inverts_the_brute_force_statistic(gained, lost, n, level):
    z, estimate = stats.norm.ppf((1 + level) / 2), (gained - lost) / n
    low = optimize.brentq(lambda d: by_brute_force(gained, lost, n, d) - z, -0.999, estimate)
    high = optimize.brentq(lambda d: by_brute_force(gained, lost, n, d) + z, estimate, 0.999)
    ours = tango(gained, lost, n, level)
    # as above, and the statistic's slope in d is of the order of sqrt(n)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-6)


def test_the_published_example_comes_out_as_published():
    # airway hyper-responsiveness (Bentur et al. 2009), 1 and 7 discordant of 21; the 95 % interval as
    # Fagerland, Lydersen & Laake (2014), Statistics in Medicine 33:2850-2875, give it, to its three digits
    # (the ends quoted from memory: to be checked; brute force above agrees with them)
    ours = tango(1, 7, 21, level=0.95)
    assert (round(ours.low, 3), round(ours.high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("n", [1, 7, 50, 600, 10_000])
def test_without_discordant_pairs_the_interval_is_wilsons(n):
    # b = c = 0: the constrained variance is |d|(1-|d|)/n, so the ends solve n d = z^2 (1 - d)
    end = Z90**2 / (n + Z90**2)
    ours = tango(0, 0, n)
    assert (ours.low, ours.value, ours.high) == pytest.approx((-end, 0.0, end), abs=BISECTED)


def test_all_pairs_discordant_the_same_way_reach_the_end_of_the_scale():
    assert tango(30, 0, 30).high == 1.0
    assert tango(0, 30, 30).low == -1.0


@given(tables())
def test_exchanging_the_sides_mirrors_the_interval(table):
    gained, lost, n = table
    there, back = tango(gained, lost, n), tango(lost, gained, n)
    assert (there.low, there.value, there.high) == pytest.approx((-back.high, -back.value, -back.low), abs=BISECTED)


@given(tables())
def test_the_interval_holds_its_estimate_and_stays_on_the_scale(table):
    ours = tango(*table)
    assert -1 <= ours.low <= ours.value <= ours.high <= 1
    assert ours.low < ours.high


@given(tables(), st.floats(0.5, 0.98))
def test_a_higher_level_gives_a_wider_interval(table, level):
    narrow, wide = tango(*table, level=level), tango(*table, level=level + 0.01)
    assert wide.low <= narrow.low
    assert wide.high >= narrow.high


@given(tables())
def test_one_more_pair_gained_instead_of_lost_never_lowers_the_bounds(table):
    gained, lost, n = table
    if lost == 0:
        return
    before, after = tango(gained, lost, n), tango(gained + 1, lost - 1, n)
    assert after.low >= before.low - BISECTED
    assert after.high >= before.high - BISECTED


@given(tables(), st.floats(-0.99, 0.98), st.floats(0.001, 0.01))
def test_the_statistic_falls_as_the_hypothesised_difference_rises(table, difference, step):
    gained, lost, n = table
    here, further = (float(tango_statistic(gained, lost, n, d)) for d in (difference, difference + step))
    assert further <= here + 1e-9  # float64 after a square root


def test_more_examples_at_the_same_rates_narrow_the_interval():
    widths = [tango(2 * k, 3 * k, 100 * k).high - tango(2 * k, 3 * k, 100 * k).low for k in (1, 4, 16)]
    assert widths[0] > widths[1] > widths[2]


def passes(gained: np.ndarray, lost: np.ndarray, n: int, margin: float) -> np.ndarray:
    return tango_statistic(gained, lost, n, -margin) >= Z90


@pytest.mark.parametrize("n", [50, 600])
@pytest.mark.parametrize("margin", [0.005, 0.02, 0.05])
def test_enumerated_a_candidate_at_the_margin_passes_at_most_56_times_in_1000(n, margin):
    gained, lost = np.divmod(np.arange((n + 1) ** 2), n + 1)
    possible = gained + lost <= n
    gained, lost = gained[possible], lost[possible]
    passed = passes(gained, lost, n, margin)
    for discordance in margin * np.array([1.0, 1.1, 1.5, 2, 3, 5, 8, 12, 18]):
        if discordance > 1:
            continue
        cells = ((discordance - margin) / 2, (discordance + margin) / 2, 1 - discordance)
        probability = stats.multinomial.pmf(np.stack([gained, lost, n - gained - lost], axis=1), n, cells)
        # nominal 5 %: the score test of discrete data overshoots it a little, nowhere by more than 0.6 points
        assert probability[passed].sum() <= 0.056, f"discordance {discordance}"


@given(tables(), st.sampled_from([0.005, 0.01, 0.02, 0.1]))
def test_what_is_enumerated_above_is_what_certify_decides(table, margin):
    gained, lost, n = table
    statistic = float(tango_statistic(gained, lost, n, -margin))
    if abs(statistic - Z90) < 1e-6:  # on the very edge the last bit decides
        return
    certified = certify(tango(gained, lost, n), margin, n).decision is Decision.TAKE
    assert certified == bool(passes(np.array(gained), np.array(lost), n, margin))


@pytest.mark.parametrize("scores", [([], []), ([1, 0], [1]), ([[1]], [[0]])])
def test_scores_that_are_no_pairs_are_refused(scores):
    with pytest.raises(ValueError, match="equally long"):
        paired_binary_interval(*scores)


# ---------------------------------------------------------------- bootstrap


RNG = np.random.default_rng(7)
SKEWED = RNG.exponential(size=18) - 0.7


def averaged(differences: np.ndarray, groups: np.ndarray | None = None, seeds: int = 8) -> np.ndarray:
    """Ends of the interval, averaged over seeds."""
    drawn = [bootstrap_difference(np.zeros_like(differences), differences, groups=groups, seed=s) for s in range(seeds)]
    return np.mean([(i.low, i.high) for i in drawn], axis=0)


# The standard error of a 5 % quantile from B draws is sqrt(.05 * .95 / B) / .103 standard errors of the
# mean (.103: the normal density there): .017 for our 8 × 2,000 draws, .015 for scipy's 20,000. Four times
# their root sum of squares is .09.
MONTE_CARLO = 0.09


def test_bca_agrees_with_scipy_on_skewed_differences():
    theirs = stats.bootstrap(
        (SKEWED,), np.mean, confidence_level=0.9, method="BCa", n_resamples=20_000, batch=2_000, rng=np.random.default_rng(1)
    ).confidence_interval
    error = SKEWED.std(ddof=1) / math.sqrt(len(SKEWED))
    assert averaged(SKEWED) == pytest.approx((theirs.low, theirs.high), abs=MONTE_CARLO * error)
    # and the data tell the methods apart: a percentile interval would not have passed
    draws = SKEWED[np.random.default_rng(2).integers(18, size=(20_000, 18))].mean(axis=1)
    assert abs(np.quantile(draws, 0.95) - theirs.high) > 2 * MONTE_CARLO * error


def test_bca_by_group_agrees_with_scipy_on_a_ratio_of_sums():
    counts = RNG.integers(1, 9, size=25)
    groups = np.repeat(np.arange(25), counts)
    differences = RNG.exponential(size=25)[groups] + RNG.normal(size=len(groups)) * 0.3
    sums = np.bincount(groups, weights=differences)
    theirs = stats.bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        confidence_level=0.9, method="BCa", n_resamples=20_000, batch=2_000, rng=np.random.default_rng(3),
    )  # fmt: skip
    shuffled = np.random.default_rng(4).permutation(len(groups))  # members of a group need not be neighbours
    ours = averaged(differences[shuffled], np.array([f"user {g}" for g in groups])[shuffled])
    ends = theirs.confidence_interval
    assert ours == pytest.approx((ends.low, ends.high), abs=MONTE_CARLO * theirs.standard_error)


def test_the_same_seed_draws_the_same_interval():
    assert bootstrap_difference(np.zeros(18), SKEWED) == bootstrap_difference(np.zeros(18), SKEWED)
    assert bootstrap_difference(np.zeros(18), SKEWED) != bootstrap_difference(np.zeros(18), SKEWED, seed=1)


def test_groups_of_one_are_no_groups():
    assert bootstrap_difference(np.zeros(18), SKEWED, groups=np.arange(18)) == bootstrap_difference(np.zeros(18), SKEWED)


def test_correlated_groups_cover_by_group_and_not_example_by_example():
    rng = np.random.default_rng(11)
    groups = np.repeat(np.arange(40), 5)
    trials, by_group, naive = 60, 0, 0
    for trial in range(trials):
        differences = rng.normal(size=40)[groups] * 0.8 + rng.normal(size=200) * 0.5  # the truth is 0
        drawn = bootstrap_difference(np.zeros(200), differences, groups=groups, seed=trial)
        by_group += drawn.low <= 0 <= drawn.high
        drawn = bootstrap_difference(np.zeros(200), differences, seed=trial)
        naive += drawn.low <= 0 <= drawn.high
    # 90 % wanted; a bootstrap of 40 units covers about 88 %, and 60 trials have a standard error of 4 %
    assert by_group / trials >= 0.76
    # the design effect is 1 + 4 × 0.72: by examples the interval is half as wide as it must be, and covers 60 %
    assert naive / trials <= 0.76
    assert naive < by_group


def test_a_bootstrap_stays_in_order_at_every_level_however_skewed():
    # one outlier among equals is the most skewed sample there is: acceleration ±1/6
    for outlier in (-1.0, 1.0):
        differences = np.r_[np.full(9, 0.1), outlier]
        bounds = [bootstrap_difference(np.zeros(10), differences, level=1 - 2 * p) for p in (0.3, 0.05, 1e-3, 1e-5, 1e-6)]
        assert all(a.low >= b.low and a.high <= b.high for a, b in pairwise(bounds))


def test_a_corpus_metric_that_is_a_mean_gets_the_interval_of_the_mean():
    rng = np.random.default_rng(5)
    baseline, candidate = rng.normal(size=(2, 200))
    ours = corpus_difference(lambda rows: baseline[rows].mean(), lambda rows: candidate[rows].mean(), 200)
    error = (candidate - baseline).std() / math.sqrt(200)
    estimate = (candidate - baseline).mean()
    assert ours.value == pytest.approx(estimate, abs=1e-12)  # float64, summed in another order
    # 1,000 draws: a 5 % quantile has a standard error of .067 of the mean's (see above); four of them
    assert (ours.low, ours.high) == pytest.approx((estimate - Z90 * error, estimate + Z90 * error), abs=0.27 * error)


def test_a_corpus_metric_draws_groups_whole():
    seen = []
    groups = np.array(["a", "b", "b", "c", "c", "c"])

    def metric(rows: np.ndarray) -> float:
        seen.append(np.bincount(rows, minlength=6))
        return float(len(rows))

    corpus_difference(metric, metric, 6, groups=groups, resamples=50)
    for counts in seen:
        assert counts[1] == counts[2]
        assert counts[3] == counts[4] == counts[5]


# ---------------------------------------------------------------- quality


def test_independent_binary_scores_get_tangos_interval():
    assert quality_difference(*scores_of(3, 5, 200)) == tango(3, 5, 200)


def test_errors_counted_downwards_are_as_binary_as_hits():
    hits = scores_of(3, 5, 200)
    assert quality_difference(*(side - 1.0 for side in hits)) == quality_difference(*hits)


def test_real_scores_get_the_bootstrap():
    assert quality_difference(np.zeros(18), SKEWED) == bootstrap_difference(np.zeros(18), SKEWED)


def test_binary_scores_in_groups_are_never_surer_than_independent_ones():
    # nothing differs, so a bootstrap alone would claim a width of zero from 60 examples
    same = np.tile([0.0, 1.0], 30)
    ours = quality_difference(same, same, groups=np.repeat(np.arange(20), 3))
    # but the 20 groups show no more than 20 independent examples would
    assert (ours.low, ours.high) == pytest.approx((tango(0, 0, 20).low, tango(0, 0, 20).high))
    # and where much differs in step, the groups decide
    candidate = np.repeat(np.arange(20) % 2, 3).astype(float)
    groups = np.repeat(np.arange(20), 3)
    ours = quality_difference(np.zeros(60), candidate, groups=groups)
    assert ours == bootstrap_difference(np.zeros(60), candidate, groups=groups)


def test_a_bootstrap_claims_no_p_below_one_draw_and_the_score_interval_does():
    same = np.tile([0.0, 1.0], 2_000)
    assert quality_p(same, same, 0.05) == pytest.approx(1e-6)
    assert quality_p(same, same, 0.05, groups=np.arange(4_000) // 2) == pytest.approx(1 / 2_000)


@given(tables(), st.sampled_from([0.005, 0.02, 0.1]))
@settings(max_examples=20, deadline=None)
@example((0, 0, 600), 0.005)
def test_p_is_at_most_5_percent_just_when_the_90_percent_interval_passes(table, margin):
    lower = tango(*table).low
    if abs(lower + margin) < 1e-9:  # p is then 5 % to within what its bisection resolves
        return
    p = p_value(lambda level: tango(*table, level=level), margin)
    assert (p <= 0.05) == (lower >= -margin)


@pytest.mark.parametrize(("gained", "lost", "n"), [(5, 9, 600), (12, 20, 2_000), (9, 5, 600)])
def test_p_is_the_tail_of_the_score_statistic(gained, lost, n):
    p = p_value(lambda level: tango(gained, lost, n, level=level), 0.01)
    # bisected on a log scale to 2^-40 of its range, the interval to 2e-18
    assert p == pytest.approx(stats.norm.sf(float(tango_statistic(gained, lost, n, -0.01))), rel=1e-6)


def test_p_of_a_candidate_below_the_margin_is_half_or_more():
    assert p_value(lambda level: tango(10, 40, 600, level=level), 0.01) == 1.0
    # at no difference at all, the closed form of b = c = 0 for a margin of next to nothing
    p = p_value(lambda level: tango(0, 0, 600, level=level), 1e-12)
    assert p == pytest.approx(stats.norm.sf(math.sqrt(600 * 1e-12)), rel=1e-6)  # the bisection, as above


def test_p_of_a_bootstrap_is_dual_too():
    for margin in (0.05, 0.3):
        interval = bootstrap_difference(np.zeros(18), SKEWED - 0.1)
        p = p_value(lambda level: bootstrap_difference(np.zeros(18), SKEWED - 0.1, level=level), margin)
        assert (p <= 0.05) == (interval.low >= -margin)


@pytest.mark.parametrize(("value", "low", "margin"), [(0.0, -0.02, 0.01), (-0.004, -0.012, 0.005), (0.01, -0.03, 0.02)])
def test_with_the_examples_it_asks_for_the_bound_would_reach_the_margin(value, low, margin):
    n = 500
    needed = examples_to_decide(Interval(value=value, low=low, high=1.0), margin, n)
    # the distance of the bound shrinks as one over the root of n
    assert value - (value - low) * math.sqrt(n / needed) >= -margin
    assert value - (value - low) * math.sqrt(n / (needed - 1)) < -margin + 1e-12


def test_no_number_of_examples_certifies_an_estimate_at_or_below_the_margin():
    for value in (-0.01, -0.02):
        assert examples_to_decide(Interval(value=value, low=-0.03, high=0.0), 0.01, 500) is None


# ---------------------------------------------------------------- decisions


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


CHEAP = interval(2.0, 1.5, 2.5)


@pytest.mark.parametrize(
    ("quality", "cost", "decision", "words"),
    [
        (interval(-0.03, -0.05, -0.0100001), CHEAP, Decision.REFUSE, "worse"),
        (interval(-0.03, -0.05, -0.01), CHEAP, Decision.TAKE, "2.00× cheaper"),
        (interval(0.0, -0.05, 0.05), interval(1.5, COST_BAR, 2.0), Decision.TAKE, "1.50× cheaper"),
        (interval(0.0, -0.05, 0.05), interval(1.5, COST_BAR - 1e-9, 2.0), Decision.REFUSE, "not shown to be cheaper"),
        (interval(0.0, -0.05, 0.05), interval(0.9, 0.8, 1.0), Decision.REFUSE, "not cheaper"),
        (interval(-0.03, -0.05, -0.02), interval(0.9, 0.8, 1.0), Decision.REFUSE, "worse"),
    ],
)
def test_choosing_refuses_only_what_is_shown_worse_or_not_shown_cheaper(quality, cost, decision, words):
    verdict = choose(quality, cost, 0.01)
    assert (verdict.decision, verdict.quality, verdict.cost) == (decision, quality, cost)
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("quality", "decision", "words"),
    [
        (interval(0.0, -0.01, 0.01), Decision.TAKE, "within the margin"),
        (interval(0.0, -0.0100001, 0.01), Decision.INCONCLUSIVE, "would decide it, 500 are there"),
        (interval(-0.02, -0.05, -0.01), Decision.INCONCLUSIVE, "no number of examples"),
        (interval(-0.02, -0.05, -0.0100001), Decision.REFUSE, "worse"),
    ],
)
def test_certifying_passes_only_what_is_shown_within_the_margin(quality, decision, words):
    verdict = certify(quality, 0.01, 500)
    assert verdict.decision is decision
    assert words in verdict.reason


def test_a_fixed_sequence_evaluates_nothing_after_the_first_failure():
    evaluated = []

    def candidates(*decisions: Decision):
        for decision in decisions:
            evaluated.append(decision)
            yield Verdict(decision=decision, reason="")

    take, refuse, inconclusive = Decision.TAKE, Decision.REFUSE, Decision.INCONCLUSIVE
    for sequence, last, looked_at in [
        ((take, take, inconclusive, take), 1, 3),
        ((refuse, take), None, 1),
        ((take, take), 1, 2),
        ((), None, 0),
    ]:
        evaluated.clear()
        assert fixed_sequence(candidates(*sequence)) == last
        assert len(evaluated) == looked_at


# ---------------------------------------------------------------- cost


def costs(rng: np.random.Generator, rounds: int, inputs: int, shared: float, own: float) -> tuple[np.ndarray, np.ndarray]:
    """Costs whose expected ratio is 2: effects of input and round, the latter in part of one side only, and noise."""

    def effect(spread: float, *shape: int) -> np.ndarray:
        return np.exp(rng.normal(0, spread, shape) - spread**2 / 2)

    common = effect(shared, rounds, 1) * effect(0.5, 1, inputs)
    base, cand = (common * effect(own, rounds, 1) * effect(0.05, rounds, inputs) for _ in range(2))
    return 2 * base, cand


@pytest.mark.parametrize(
    ("rounds", "inputs", "shared", "own"),
    [(5, 12, 0.3, 0.0), (5, 12, 0.1, 0.05), (8, 1, 0.1, 0.05)],
    ids=["rounds slow both sides alike", "rounds slow one side", "training steps"],
)
def test_the_cost_interval_covers_a_known_ratio(rounds, inputs, shared, own):
    rng = np.random.default_rng(3)
    trials = 150
    ends = np.array(
        [(i.low, i.high) for s in range(trials) for i in [cost_ratio(*costs(rng, rounds, inputs, shared, own), seed=s)]]
    )
    covered = np.mean((ends[:, 0] <= 2) & (ends[:, 1] >= 2))
    overstated = np.mean(ends[:, 0] > 2)
    # 90 % wanted, 5 % on the side that matters; standard errors of 150 trials are 2.4 and 1.8 %, three of
    # them allowed. Where rounds hit both sides alike, the pigeonhole bootstrap is known to be conservative.
    assert covered >= 0.9 - 3 * 0.024
    assert overstated <= 0.05 + 3 * 0.018


def test_a_ratio_of_constant_costs_is_exact():
    ours = cost_ratio(np.full((5, 20), 6.0), np.full((5, 20), 4.0))
    # sums of whole numbers times 6 and 4 are exact in float64
    assert (ours.value, ours.low, ours.high) == (1.5, 1.5, 1.5)


def test_costs_that_are_proportional_have_no_error():
    base, _ = costs(np.random.default_rng(0), 5, 20, 0.3, 0.1)
    ours = cost_ratio(base, base / 3)
    assert (ours.value, ours.low, ours.high) == pytest.approx((3, 3, 3), rel=1e-12)  # float64, a hundred terms


@given(st.floats(1e-9, 1e9), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_unit_of_cost_does_not_matter(scale, seed):
    base, cand = costs(np.random.default_rng(seed), 4, 6, 0.1, 0.1)
    plain, scaled = cost_ratio(base, cand), cost_ratio(base * scale, cand * scale)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-12)  # float64


def test_exchanging_the_sides_gives_the_reciprocal():
    base, cand = costs(np.random.default_rng(0), 5, 20, 0.1, 0.1)
    there, back = cost_ratio(base, cand), cost_ratio(cand, base)
    assert there.value == pytest.approx(1 / back.value, rel=1e-12)
    # the same draws, but a quantile between two draws is interpolated: neighbours are within 1 % here
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low), rel=0.01)


def test_one_round_is_a_row_and_needs_no_second_dimension():
    base, cand = costs(np.random.default_rng(0), 1, 30, 0.1, 0.1)
    assert cost_ratio(base, cand) == cost_ratio(base[0], cand[0])


@pytest.mark.parametrize("sides", [(np.ones((2, 3)), np.ones((3, 2))), (np.ones((0, 3)), np.ones((0, 3)))])
def test_costs_that_do_not_match_are_refused(sides):
    with pytest.raises(ValueError, match="equal, non-empty"):
        cost_ratio(*sides)


@pytest.mark.parametrize("freedom", [3, 4, 7, 9, 19, 99])
def test_students_quantile_agrees_with_scipy(freedom):
    # a series in 1 / freedom cut after the third power: 0.3 % at 3 degrees, better above
    assert student_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.95, freedom), rel=0.003)


def test_bytes_have_no_sampling_error():
    assert exact_ratio(300, 100) == Interval(value=3.0, low=3.0, high=3.0)
    assert exact_ratio(300, 100).to_json() == {"value": 3.0, "low": 3.0, "high": 3.0, "level": 0.9}


@pytest.mark.parametrize(("low", "high"), [(0.0, 100.0), (0.0, 0.5), (3.0, 7.0)])
def test_scores_that_never_differ_do_not_claim_a_width_of_zero(low, high):
    scores = np.where(np.arange(60) % 3 == 0, low, high)
    scores[0] = (low + high) / 2  # three values: not binary
    interval = quality_difference(scores, scores)
    z = NormalDist().inv_cdf(0.95)
    assert interval.low == pytest.approx(-(high - low) * z * z / (60 + z * z))
    grouped = quality_difference(scores, scores, groups=np.arange(60) // 6)
    assert grouped.low < interval.low, "ten groups show less than sixty examples"
