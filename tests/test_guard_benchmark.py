"""The guard's benchmark, made small: what it writes, and that its rates agree with the exact ones."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "guard" / "run.py"
REPETITIONS, RUNS, HEADLINE = 40, 4, 2
UNLIKELY = 1e-4
"""A count this improbable under the exact rate is no Monte-Carlo error. Seeds are fixed: it does not flicker."""


def benchmark(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    small = ["--repetitions", str(REPETITIONS), "--replications", "1", "--runs", str(RUNS), "--headline", str(HEADLINE), "--candidates", "8"]
    return subprocess.run([sys.executable, SCRIPT, "--out", out, *small, *more], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("guard")
    return out, benchmark(out)


@pytest.fixture(scope="module")
def result(written: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    out, done = written
    assert done.returncode in (0, 1), done.stderr  # 1: a bar was missed, which so few draws may do
    return dict(json.loads((out / "guard.json").read_text()))


def test_every_cell_of_the_plan_is_there(result: dict[str, Any]) -> None:
    cells = {(c["n"], c["discordance"]) for c in result["boundary"]}
    assert cells == {(n, d) for n in (600, 10_000) for d in (0.01, 0.04, 0.08)}
    assert {c["difference"] for c in result["boundary"]} == {-result["margin"]}
    assert {c["difference"] for c in result["equal"]} == {0.0}
    assert all(sum(c["counts"].values()) == REPETITIONS for c in result["boundary"] + result["equal"])
    assert {(s["scenario"], s["n"], s["runs"]) for s in result["selection"]} == {
        (s, n, r) for s in ("boundary", "worse", "mixed") for n in (600, 10_000) for r in (HEADLINE, RUNS)
    }
    assert {"python", "numpy", "scipy"} <= set(result["environment"]["versions"])


def test_boundary_plants_are_shipped_as_rarely_as_the_bar_wants(result: dict[str, Any]) -> None:
    assert all(c["exact_shipped"] <= 0.056 for c in result["boundary"])
    assert all(s["size"] <= 0.056 for s in result["worst_exact_size"])
    assert all(stats.binom.sf(c["counts"]["take"] - 1, REPETITIONS, 0.056) > UNLIKELY for c in result["boundary"])


def test_simulated_and_exact_rates_agree(result: dict[str, Any]) -> None:
    for cell in result["boundary"] + result["equal"]:
        shipped, exact = cell["counts"]["take"], cell["exact_shipped"]
        assert shipped == cell["oracle_shipped"]
        assert stats.binomtest(shipped, REPETITIONS, min(exact, 1.0)).pvalue > UNLIKELY, cell


def test_good_candidates_are_not_turned_away(result: dict[str, Any]) -> None:
    good = [c for c in result["equal"] if c["n"] == 10_000 and c["discordance"] <= 0.03]
    assert len(good) == 4
    assert all(1 - c["exact_shipped"] <= 0.20 for c in good)


def test_selections_end_to_end(result: dict[str, Any], written: tuple[Path, Any]) -> None:
    for row in result["selection"]:
        assert stats.binom.sf(row["wrong"] - 1, row["runs"], 0.05) > UNLIKELY
        if row["exact_error"] is not None:  # all that meets the test split is wrong: the first decides
            assert row["exact_error"] <= 0.051  # Tango's test is not exact: see worst_exact_size
    with open(written[0] / "selection.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * RUNS
    assert all(int(r["met_test"]) <= 5 for r in rows)


def test_bars_are_judged_and_printed(result: dict[str, Any], written: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert all(b["met"] == (b["measured"] <= b["at_most"]) for b in result["bars"])
    assert written[1].returncode == (0 if all(b["met"] for b in result["bars"]) else 1)
    assert "True difference −margin: shipped" in written[1].stdout


def test_the_same_seed_gives_the_same_files(tmp_path: Path, written: tuple[Path, Any]) -> None:
    benchmark(tmp_path)
    for name in ("guard.json", "selection.csv"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()


def test_an_unknown_peer_is_refused(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--peer", "other=python")
    assert done.returncode == 2
    assert "nncf, inc" in done.stderr
