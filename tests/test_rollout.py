"""Upgrades: what may come in, what is judged, and that a worse bundle is taken back without a failed request."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.serving import command, images_bundle, load, slow_bundle, table_bundle
from tests.test_serve import INFER, damaged, picture_request, there

from tenfold.bundle import Bundle
from tenfold.errors import TenfoldError
from tenfold.rollout import guard
from tenfold.rollout.run import plan, roll
from tenfold.rollout.seen import Finding, Seen, judge, read, together
from tenfold.serve.pool import CANARY, STABLE, read_there


def seen(ok: int = 1000, failed: int = 0, *, turned_away: int = 0, refused: int = 0, milliseconds: float = 1.0, classes: dict[str, int] | None = None) -> Seen:
    codes = Counter({"200": ok, "500": failed, "503": turned_away, "400": refused})
    bounds = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
    within = Counter({b / 1e3: round(codes.total() * min(1.0, b / milliseconds / 2)) for b in bounds} | {math.inf: codes.total()})
    return Seen(codes, within, Counter(classes or {"a": ok // 2, "b": ok - ok // 2}))


@pytest.mark.parametrize(("stable", "canary", "finding", "reason"), [
    (seen(), seen(), Finding.GOOD, "1,000 requests"), (seen(), seen(50), Finding.WAIT, "200 each"), (seen(10), seen(), Finding.WAIT, "200 each"),
    (seen(), seen(40, 20), Finding.WORSE, "20 of 60 requests fail"), (seen(900, 100), seen(900, 100), Finding.GOOD, ""), (seen(1000, 1), seen(1000, 4), Finding.GOOD, ""),
    (seen(), seen(700, turned_away=300), Finding.WORSE, "turned away"), (seen(), seen(milliseconds=4), Finding.WORSE, "50% of its requests take up to"), (seen(), seen(700, refused=300), Finding.WORSE, "are refused"),
    (Seen(), seen(40, 20), Finding.WORSE, "20 of 60 requests fail"), (Seen(), seen(60, 1), Finding.WAIT, "200 each"),
    (seen(milliseconds=0.1), seen(milliseconds=0.3), Finding.GOOD, ""), (seen(), seen(classes={"a": 990, "b": 10}), Finding.WORSE, "other classes"),
    (seen(), seen(classes={"c": 1000}), Finding.WORSE, "other classes"), (seen(), seen(classes={"a": 399}), Finding.WAIT, "399 examples were answered by it and 1,000 by the others"),
    (seen(classes={"a": 399}), seen(), Finding.WAIT, "400 each"), (Seen(seen().codes, seen().within), Seen(seen().codes, seen().within), Finding.GOOD, "1,000 requests"),
])  # fmt: skip
def test_a_canary_is_judged_by_those_beside_it(stable: Seen, canary: Seen, finding: Finding, reason: str) -> None:
    found = judge(stable, canary)
    assert found.finding is finding
    assert reason in found.reason


def test_two_that_are_alike_are_hardly_ever_told_apart() -> None:
    rng = np.random.default_rng(0)
    worse = 0
    for _ in range(300):
        each = [seen(2000 - bad, bad, classes=dict(zip("abc", rng.multinomial(2000, [0.6, 0.3, 0.1]).tolist(), strict=True))) for bad in rng.binomial(2000, 0.01, 2).tolist()]
        worse += judge(*each).finding is Finding.WORSE
    assert worse <= 3


def test_counters_are_read_and_a_server_that_began_anew_counts_from_nothing() -> None:
    text = """\
# TYPE tenfold_requests counter
tenfold_requests_total{code="200",model="m",version="1"} 5.0
tenfold_requests_total{code="500",model="m",version="2"} 1.0
# TYPE tenfold_other_requests counter
tenfold_other_requests_total{code="404"} 3.0
tenfold_other_requests_total{code="200"} 99.0
# TYPE tenfold_request_seconds histogram
tenfold_request_seconds_bucket{le="0.001",model="m",version="1"} 4.0
tenfold_request_seconds_bucket{le="+Inf",model="m",version="1"} 6.0
tenfold_request_seconds_count{model="m",version="1"} 6.0
tenfold_request_seconds_sum{model="m",version="1"} 0.5
# TYPE tenfold_predictions counter
tenfold_predictions_total{class="a",model="m",version="1"} 7.0
"""
    found = read(text)
    assert found == Seen(Counter({"200": 5, "500": 1, "404": 3}), Counter({0.001: 4, math.inf: 6}), Counter({"a": 7}))
    assert found.since(found).requests == 0
    assert found.quantile(0.5) == pytest.approx(0.00075)
    assert math.isnan(Seen().quantile(0.5))
    assert together([found, found]).requests == 18
    assert together([]).requests == 0


@pytest.mark.parametrize(("total", "steps"), [(1, [1]), (2, [1]), (3, [1, 2]), (10, [1, 5])])
def test_steps_are_one_and_half_of_the_servers(total: int, steps: list[int]) -> None:
    assert plan(total) == steps


class Fake:
    """A fleet whose canaries answer as they are told to."""

    def __init__(self, canary: Seen, *, ready: bool = True) -> None:
        self.of_canary, self.is_ready, self.now = canary, ready, 0
        self.done: list[str] = []
        self.looks = 0

    def count(self) -> int:
        return 4

    def canary(self, count: int) -> None:
        self.now = count
        self.done.append(f"canary {count}")

    def promote(self) -> None:
        self.done.append("promote")

    def ready(self, track: str) -> int:
        return self.now if track == CANARY and self.is_ready else 0

    def settled(self) -> bool:
        return True

    def seen(self, track: str) -> dict[str, Seen]:
        self.looks += 1
        return {"one": together([self.of_canary if track == CANARY else seen()] * self.looks)}


def rolled(fleet: Fake) -> bool:
    return roll(fleet, watch_seconds=0.01, most_seconds=0.03, say=lambda _: None)[0]


def test_a_good_one_goes_in_by_steps_and_a_worse_one_out(monkeypatch) -> None:
    monkeypatch.setattr("tenfold.rollout.run.READY_SECONDS", 0.1)
    good, worse, few, never = Fake(seen()), Fake(seen(500, 500)), Fake(seen(2)), Fake(seen(), ready=False)
    assert rolled(good)
    assert good.done == ["canary 1", "canary 2", "promote"]
    for fleet in (worse, few, never):
        assert not rolled(fleet)
        assert fleet.done == ["canary 1", "canary 0"]


def test_whatever_happens_what_was_in_service_stays(monkeypatch) -> None:
    fleet = Fake(seen())
    monkeypatch.setattr(fleet, "seen", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rolled(fleet)
    assert fleet.done == ["canary 1", "canary 0"]


# ---------------------------------------------------------------- the guard


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    found = {"one": images_bundle(folder / "one"), "two": images_bundle(folder / "two"), "other": images_bundle(folder / "other", seed=9)}
    return found | {"table": table_bundle(folder / "table"), "slow": slow_bundle(folder / "slow"), "slower": slow_bundle(folder / "slower", size=1400)}


def test_what_takes_something_else_or_is_the_same_is_not_let_in(bundles, tmp_path: Path) -> None:
    one, two, table = (Bundle.load(bundles[n]) for n in ("one", "two", "table"))
    guard.check_same(two, one)
    with pytest.raises(TenfoldError, match="inputs is not that"):
        guard.check_same(table, one)
    with pytest.raises(TenfoldError, match="is the bundle in service"):
        guard.check_same(one, one)
    with pytest.raises(TenfoldError, match="has no neither_here"):
        guard.check_same(Bundle.load(damaged(bundles["two"], tmp_path / "cpu", "cpu"), verify=False), one)


def certified(bundle: Bundle, quality: float, **more) -> Bundle:
    found = {"metric": "accuracy", "margin": 0.01, "certified": {"candidate_quality": quality, "margin": 0.01}}
    return Bundle(bundle.path, bundle.manifest | {"certified": True, "quality": found | more})


def test_certificates_are_held_against_each_other(bundles) -> None:
    one, two = (Bundle.load(bundles[n]) for n in ("one", "two"))
    with pytest.raises(TenfoldError, match="was not certified"):
        guard.check_quality(two, certified(one, 0.9))
    assert "0.8950" in guard.check_quality(certified(two, 0.895), certified(one, 0.9))
    with pytest.raises(TenfoldError, match="was 0.8800, that of the one in service 0.9000"):
        guard.check_quality(certified(two, 0.88), certified(one, 0.9))
    with pytest.raises(TenfoldError, match="cannot be held|no certificates"):
        guard.check_quality(certified(two, 0.9, metric="loss"), certified(one, 0.9))
    upgrade = {"number": 3, "beside": one.manifest["files"]["model.onnx"]}
    assert "upgrade 3" in guard.check_quality(Bundle(two.path, two.manifest | {"certified": True, "upgrade": upgrade}), one)
    with pytest.raises(TenfoldError, match="no certificates"):  # let in beside another one than what is in service
        guard.check_quality(Bundle(two.path, two.manifest | {"certified": True, "upgrade": upgrade | {"beside": "another"}}), one)


def test_what_costs_more_is_not_let_in(bundles) -> None:
    one, two, slow, slower = (Bundle.load(bundles[n]) for n in ("one", "two", "slow", "slower"))
    assert 0.5 < guard.check_cost(two, one, dearer=True).value < 2
    with pytest.raises(TenfoldError, match="costs .* times as much"):
        guard.check_cost(slower, slow, dearer=False)
    assert guard.check_cost(slower, slow, dearer=True).high < 0.9


# ---------------------------------------------------------------- for real


def upgrade(bundle: Path, pool: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tenfold.cli", "upgrade", str(bundle), "--pool", str(pool), "--uncertified", "--dearer", "--watch", "2s", "--most", "20s", *options]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_bundle_is_promoted_taken_back_and_rolled_back_under_load(bundles, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with command(f"small={bundles['one']}", "--port", "0", "--replicas", "2", "--pool", pool, "--no-access-log", "--connection-age", "0.2") as server:
        there(pool, 2)

        def bundles_there() -> set[str]:
            return {s["bundles"][0].partition("=")[2] for s in read_there(pool)["servers"]}

        with load(read_there(pool)["port"], INFER, picture_request(), clients=6) as clients:
            planned = upgrade(bundles["two"], pool, "--dry-run")
            assert planned.returncode == 0, planned.stderr
            assert "1 of 2 servers" in planned.stdout
            done = upgrade(bundles["two"], pool, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["in_service"] == str(bundles["two"])
            assert bundles_there() == {str(bundles["two"])}
            worse = upgrade(bundles["other"], pool)  # it answers another class
            assert worse.returncode == 3, worse.stderr
            assert "other classes" in worse.stderr
            assert bundles_there() == {str(bundles["two"])}
            back = subprocess.run([sys.executable, "-m", "tenfold.cli", "rollback", "--pool", str(pool)], capture_output=True, text=True, check=False)
            assert back.returncode == 0, back.stderr
            ends = time.monotonic() + 30
            while bundles_there() != {str(bundles["one"])} or len(read_there(pool)["servers"]) != 2:
                assert time.monotonic() < ends
                time.sleep(0.1)
            for client in clients:
                client.end()
            assert [f for c in clients for f in c.failed] == []
        assert server.end() == 0


def test_a_ctrl_c_leaves_what_was_in_service(bundles, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with command(bundles["one"], "--port", "0", "--replicas", "2", "--pool", pool, "--no-access-log"):
        there(pool, 2)
        words = [sys.executable, "-m", "tenfold.cli", "upgrade", str(bundles["two"]), "--pool", str(pool), "--uncertified", "--dearer", "--watch", "60s"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
            there(pool, 1, CANARY)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        ends = time.monotonic() + 30
        while [s["track"] for s in read_there(pool)["servers"]] != [STABLE] * 2:
            assert time.monotonic() < ends
            time.sleep(0.1)


def test_what_is_no_pool_is_said(bundles, tmp_path: Path) -> None:
    done = upgrade(bundles["one"], tmp_path)
    assert (done.returncode, "is this the folder of a pool?" in done.stderr) == (2, True)
