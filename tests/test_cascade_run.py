"""A run that a cascade wins: most inputs are easy, and for the others a large net is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tenfold import Bundle, TrainConfig, Workload, run
from tenfold.data.split import Split
from tenfold.levers import distill
from tenfold.pipeline import Result

CLASSES, WIDTH = 4, 1024
HARD = 0.2
"""Share of the inputs near one of many centres, each of a class by chance: a net learns them one by one."""
CENTRES = 1200


def sequences(n: int, seed: int) -> Split:
    """Inputs (n, 8, 8): no built-in family of students fits, only smaller nets of the user's own."""
    fixed = np.random.default_rng(0)
    easy, centres, labels = fixed.normal(0, 1, (CLASSES, 64)), fixed.normal(0, 1, (CENTRES, 64)), fixed.integers(0, CLASSES, CENTRES)
    rng = np.random.default_rng(seed + 1)
    targets, of = rng.integers(0, CLASSES, n), rng.integers(0, CENTRES, n)
    hard = rng.random(n) < HARD
    targets = np.where(hard, labels[of], targets)
    rows = np.where(hard[:, None], centres[of], 2 * easy[targets]) + rng.normal(0, 0.3, (n, 64))
    return Split(inputs=(rows.reshape(n, 8, 8).astype(np.float32),), targets=targets.astype(np.int64))


def net(share: float = 1.0) -> nn.Module:
    width = round(WIDTH * share)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


@pytest.fixture(scope="module")
def won(tmp_path_factory: pytest.TempPathFactory) -> Result:
    splits = {name: sequences(n, seed) for seed, (name, n) in enumerate({"train": 30_000, "valid": 2000, "confirm": 1000, "test": 3000}.items())}
    workload = Workload(
        name="easy and hard", model=net, student=net, margin=0.02,
        training=TrainConfig(epochs=4, batch_size=128, learning_rate=1e-3), **splits,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # the full trainings would take what the budget allows
        patch.setattr(distill, "MOST_LENGTH", 0.75)
        patch.setattr("tenfold.lever.MOST_TEACHERS", 1)
        return run(workload, out=tmp_path_factory.mktemp("runs") / "won", budget=600, trials=10, levers=["distill", "cascade"], view="quiet")


def test_a_cascade_is_certified_and_beats_what_one_model_comes_to(won: Result) -> None:
    document = won.document
    assert document["exit_code"] == 0
    assert document["certified"]["label"].startswith("cascade(")
    assert document["gain"]["serve"]["low"] > 1.3
    assert document["certified"]["quality_difference"]["low"] > -0.02
    single = document["best_single"]
    assert single is None or single["times"]["value"] > 1.02
    recipes = [c["recipe"] for c in document["candidates"]]
    assert len(recipes) == len(set(recipes)), "what was measured when cascades were first looked for is not measured again"
    assert document["points"][0]["worst_to_mean"] > 1.2, "a row that goes all the way costs more than the mean"


def test_its_bundle_answers_any_batch_as_it_answers_single_rows(won: Result) -> None:
    bundle = Bundle.load(Path(won.folder) / "bundle")
    rows = sequences(300, 9).inputs[0]
    one = np.concatenate([bundle.predict(rows[i : i + 1]) for i in range(300)])
    for size in (7, 64, 300):
        many = np.concatenate([bundle.predict(rows[i : i + size]) for i in range(0, 300, size)])
        assert np.abs(one - many).max() < 1e-3 * np.abs(one).max()
