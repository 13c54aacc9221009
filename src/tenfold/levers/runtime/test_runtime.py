from __future__ import annotations

import pytest

from tenfold import device
from tenfold.build import Builder
from tenfold.lever import Lever, Refusal, Stage, Tried
from tenfold.plan import Plan
from tenfold.testing import LeverContract
from tenfold.verdict import Decision, Interval, Verdict


class TestRuntime(LeverContract):
    name = "runtime"

    def test_threads_are_varied_where_time_is_what_counts(self, lever: Lever, small_builder: Builder, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "thread_counts", lambda: [1, 2, 4])

        def tried(config: dict, gain: float) -> Tried:
            even = Interval(value=gain, low=gain, high=gain)
            return Tried(config=config, verdict=Verdict(decision=Decision.TAKE, reason="", quality=even), gain=even)

        for objective, wanted in (("latency", {2, 4}), ("throughput", {2, 4}), ("serve", set())):
            situation = self.situation(small_builder, plan, Stage.RUNTIME, objective=objective)
            first = lever.propose(situation)
            assert not isinstance(first, Refusal)
            assert all(c["threads"] is None for c in first)
            after = tuple(tried(c, 1.0 + i) for i, c in enumerate(first))
            second = lever.propose(self.situation(small_builder, plan, Stage.RUNTIME, objective=objective, tried=after))
            assert not isinstance(second, Refusal)
            assert {c["threads"] for c in second} == wanted
            for config in second:
                assert lever.apply(plan, config).session.threads == config["threads"]
