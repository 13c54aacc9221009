"""How well the law by which students are ranked (`tenfold.levers.distill.law`) fits the short trainings on record.

    python benchmarks/law/run.py

For each set of data: the exponents that fit best to how much worse than their teacher students are after up to five epochs, how well
they fit, and how well the law in use does, and the geometric mean of weights and products, which chose before. Then, over students that were also trained
for long, what their loss goes down by: with epochs, and by their weights. Reads records/budgets, trains nothing.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tenfold.levers.distill import law
from tenfold.levers.distill.students import ImageStudent, image_student
from tenfold.recipe import Recipe

SHAPES = {"fashion-mnist": (1, 28), "cifar10": (3, 32)}
"""Channels and side of images."""
SHORT = 5.0
"""Epochs at the most."""
LEAST_LOSS = 0.001
"""A student that is hardly worse than its teacher says nothing of the law."""


def main() -> None:
    for name, (channels, side) in SHAPES.items():
        students = {s["recipe"]: s for path in sorted(Path("records/budgets").glob(f"{name}-*.gz")) for s in trained(path)}
        rows = [s | size(s["student"], channels, side) for s in students.values() if s["loss"] > LEAST_LOSS and not s["mixup"]]
        short = [r for r in rows if r["epochs"] <= SHORT]
        loss = np.log([r["loss"] for r in short])
        found, told = fitted(short, loss)
        in_use = np.array([law.WEIGHTS * math.log(r["weights"]) + law.PRODUCTS * math.log(r["products"]) + law.EPOCHS * math.log(r["epochs"]) for r in short])
        before = np.log([math.sqrt(r["weights"] * max(r["weights"], r["products"])) for r in short])
        print(f"{name}: {len(short)} short trainings; loss as weights^{found[0]:.2f} products^{found[1]:.2f} epochs^{found[2]:.2f}, correlation {np.corrcoef(told, loss)[0, 1]:.2f},")
        print(f"  typical error {math.expm1(float((loss - told).std())):.0%}; the law in use: {np.corrcoef(in_use, loss)[0, 1]:.2f}; the geometric mean of weights and products: {np.corrcoef(before, loss)[0, 1]:.2f}")
        if len(pairs := list(of_two_lengths(rows))) >= 4:
            down = np.log([b["loss"] / a["loss"] for a, b in pairs])
            longer = np.log([b["epochs"] / a["epochs"] for a, b in pairs])
            weights = np.log([a["weights"] for a, _ in pairs])
            (by_weights, by_epochs), *_ = np.linalg.lstsq(np.stack([weights - weights.mean(), longer], axis=1), down, rcond=None)
            print(f"  {len(pairs)} trained for long too: their loss went down as epochs^{by_epochs:.2f}, and by weights^{by_weights:.2f} more")


def trained(path: Path) -> Iterator[dict[str, Any]]:
    """Students of images that a run measured on the whole of valid: config and loss, in points of the score below the baseline."""
    ledger = {e["key"]: e["value"] for e in (json.loads(line.partition(b" ")[2]) for line in gzip.decompress(path.read_bytes()).splitlines())}
    root = Recipe(workload=ledger["settings"]["workload"], seed=ledger["settings"]["seed"])
    asked = [value for key, value in ledger.items() if key.startswith("propose:") and ":distill:" in key]
    for config in (c for a in asked for c in a.get("configs", []) if c["student"]["family"] == "image"):
        recipe = root.then("distill", config).id
        quality = ledger.get(f"quality:{recipe}:None", {}).get("quality")
        if quality is not None:
            yield {"recipe": recipe, "student": config["student"], "epochs": config["epochs"], "mixup": config["mixup"], "loss": -quality["value"]}


def size(student: dict[str, Any], channels: int, side: int) -> dict[str, float]:
    """Its weights, and its products a prediction."""
    model = image_student(ImageStudent(**{k: v for k, v in student.items() if k != "family"}), channels, side, (10,)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(torch.zeros(1, channels, side, side))
    return {"weights": sum(p.numel() for p in model.parameters()), "products": counted.get_total_flops() / 2}


def fitted(rows: list[dict[str, Any]], loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exponents of weights, products and epochs by least squares, and what they tell."""
    columns = np.log([[r["weights"], r["products"], r["epochs"]] for r in rows])
    columns = np.concatenate([columns, [[r["student"]["operator"] == "separable", 1.0] for r in rows]], axis=1)
    found, *_ = np.linalg.lstsq(columns, loss, rcond=None)
    return found, columns @ found


def of_two_lengths(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Trainings of one structure: the shortest, and the longest where that is at least four times as long."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        alike.setdefault(json.dumps(r["student"], sort_keys=True), []).append(r)
    for same in alike.values():
        first, last = (pick(same, key=lambda r: r["epochs"]) for pick in (min, max))
        if last["epochs"] >= 4 * first["epochs"]:
            yield first, last


if __name__ == "__main__":
    main()
