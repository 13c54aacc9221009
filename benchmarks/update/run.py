"""Ten batches of new data in a row, three of them spoiled: does a loss beyond the margin get through, on old or on new?

    python benchmarks/update/run.py [--work runs/update] [--repeats 3]

Fashion-MNIST: a small net learns from 8,000 images, a run makes it cheaper, and ten batches of 4,000 more come in. Labels of the third are shuffled, images of the
sixth are negatives, in the ninth two classes have changed places. What is in service after each is held against the model that was certified
first, on 10,000 images that nothing was chosen on, and on as many of the batch's own kind. Needs Fashion-MNIST. Writes records/update; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import device
from tenfold.bundle import Bundle
from tenfold.data.split import Split, joined
from tenfold.pipeline import run
from tenfold.renew.update import update
from tenfold.store import write_atomic
from tenfold.verdict import quality_difference
from tenfold.workload import Workload, find, load
from tenfold.workloads.fashion_mnist import model

FIRST, BATCH, BATCHES, TRUTH = 8_000, 4_000, 10, 10_000
"""Images that the net learns from, that a batch brings, batches, and images that only say what is true."""
WIDTH, EPOCHS, BUDGET, MARGIN = 16, 12, 300.0, 0.02


def shuffled(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return images, rng.permutation(labels)


def negative(images: np.ndarray, labels: np.ndarray, _rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return 255 - images, labels


def exchanged(images: np.ndarray, labels: np.ndarray, _rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pullovers are called coats, and coats pullovers."""
    return images, np.select([labels == 2, labels == 4], [4, 2], labels)


SPOILED = {2: shuffled, 5: negative, 8: exchanged}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/update"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    chains = [chain(seed, arguments.work / str(seed)) for seed in range(arguments.repeats)]
    Path("records/update").mkdir(parents=True, exist_ok=True)
    write_atomic(Path("records/update/fashion-mnist.json"), json.dumps({"margin": MARGIN, "chains": chains, "environment": device.environment()}, indent=1))
    rows = [row for rows in chains for row in rows]
    good, bad = [r for r in rows if r["spoiled"] is None], [r for r in rows if r["spoiled"] is not None]
    # what is in service is held against the first on new data where it was let in for them: who gets labels exchanged is no worse for knowing the old ones
    breaches = sum(r[on]["value"] < -MARGIN for r in rows for on in ("old", *(["new"] if r["let_in"] else [])) if r[on] is not None)
    print(f"{sum(r['let_in'] for r in good)} of {len(good)} good batches and {sum(r['let_in'] for r in bad)} of {len(bad)} spoiled ones were let in; ", end="")
    print(f"what was in service was worse by more than the margin, on old or new, {breaches} times")


def chain(seed: int, folder: Path) -> list[dict[str, Any]]:
    """A run, and its upgrades: what was in service after each, beside what was certified first."""
    whole = load(find("fashion-mnist"))
    assert whole.train is not None
    rng = np.random.default_rng(seed)
    every = joined(whole.train, whole.valid, whole.confirm, whole.test)
    order = rng.permutation(len(every))
    sizes = {"train": FIRST, "valid": 2_500, "confirm": 1_500, "test": 8_000, "truth": TRUTH} | {str(i): BATCH for i in range(BATCHES)}
    ends = np.cumsum(list(sizes.values()))
    parts = {name: every.take(order[end - size : end]) for (name, size), end in zip(sizes.items(), ends, strict=True)}
    task = workload(parts, seed)
    if not (folder / "result.json").exists():
        run(task, out=folder, budget=BUDGET, margin=MARGIN, seed=seed, resume=(folder / "ledger.jsonl").exists(), view="lines")
    return [upgraded(task, parts, folder, i, seed) for i in range(BATCHES)]


def workload(parts: dict[str, Split], seed: int) -> Workload:
    own = find("fashion-mnist")
    return dataclasses.replace(
        own, name=f"update-{seed}", read=pair_of, model=partial(model, WIDTH), margin=MARGIN, training=dataclasses.replace(own.training, epochs=EPOCHS),
        **{name: parts[name] for name in ("train", "valid", "confirm", "test")},
    )  # fmt: skip


def upgraded(task: Workload, parts: dict[str, Split], folder: Path, i: int, seed: int) -> dict[str, Any]:
    here, spoil = folder / "updates" / str(i + 1), SPOILED.get(i)
    new, truth = parts[str(i)], parts["truth"]
    rng = np.random.default_rng([seed, i])
    of_its_kind: Split | None = truth
    if spoil is not None:
        new = as_split(spoil(new.inputs[0], targets_of(new), rng))
        of_its_kind = None if spoil is shuffled else as_split(spoil(truth.inputs[0], targets_of(truth), rng))  # of shuffled labels none is the right one
    if (here / "result.json").exists():
        document = json.loads((here / "result.json").read_text())
    else:
        file = folder.parent / f"new-{seed}-{i + 1}.npz"
        np.savez(file, x=new.inputs[0], y=targets_of(new))
        document = update(folder, file, workload=task, planned=BATCHES, resume=(here / "ledger.jsonl").exists(), view="lines").document
    first, serving = Bundle.load(folder / "bundle"), Bundle.load(document["in_service"])
    row = {
        "batch": i + 1, "spoiled": None if spoil is None else spoil.__name__, "let_in": document["let_in"], "opened": document["opened"],
        "reason": document["reason"], "old": difference(first, serving, truth), "new": None if of_its_kind is None else difference(first, serving, of_its_kind),
        "accuracy": accuracy(serving, truth), "seconds": document["seconds"], "cost_ratio": document["cost_ratio"],
    }  # fmt: skip
    print(f"{folder.name}: batch {row['batch']} {row['spoiled'] or 'good'}: {'in' if row['let_in'] else 'out'}, accuracy {row['accuracy']:.4f}: {row['reason']}", flush=True)
    return row


def pair_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["x"], file["y"]


def as_split(pair: tuple[np.ndarray, np.ndarray]) -> Split:
    return Split(inputs=(pair[0],), targets=pair[1])


def targets_of(split: Split) -> np.ndarray:
    assert split.targets is not None
    return split.targets


def scores(bundle: Bundle, split: Split) -> np.ndarray:
    return (bundle.predict(split.inputs[0]).argmax(1) == split.targets).astype(float)


def accuracy(bundle: Bundle, split: Split) -> float:
    return float(scores(bundle, split).mean())


def difference(first: Bundle, serving: Bundle, split: Split) -> dict[str, float]:
    return quality_difference(scores(first, split), scores(serving, split)).to_json()


if __name__ == "__main__":
    main()
