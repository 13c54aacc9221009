"""Intel Neural Compressor's own accept rule on planted accuracies. Runs in an environment of requirements-inc.txt.

    python inc_rule.py PLANTS.npz DECISIONS.json
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from importlib import metadata

import numpy as np
import torch
from neural_compressor.common.base_tuning import TuningMonitor
from neural_compressor.torch.quantization import RTNConfig, TuningConfig, autotune

WIDTH = 64
"""Of the one layer that is tuned; at least as many as there are candidates."""


def accepts(baseline: float, candidate: float, loss: float) -> bool:
    """What `autotune` asks after every trial: stop, because the goal is met (of trials there are enough)."""
    monitor = TuningMonitor(TuningConfig(tolerable_loss=loss, max_trials=1_000))
    monitor.set_baseline(baseline)
    monitor.add_trial_result(1, candidate, None)
    return bool(monitor.need_stop())


def tuned(baseline: float, candidates: list[float], loss: float) -> int:
    """The whole of `autotune` over candidates in order of cost: which one does it return?

    The candidates are weight-only configs told apart by their group size (candidate c has c + 1); the
    evaluation function that it is given answers with the planted accuracy of the model it is shown.
    """

    def evaluate(model: torch.nn.Module) -> float:
        which = candidate_of(model)
        return baseline if which is None else candidates[which]

    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 1))
    configs = RTNConfig(bits=4, group_size=[c + 1 for c in range(len(candidates))])  # it tries them in this order
    best = autotune(model, TuningConfig(config_set=[configs], tolerable_loss=loss, max_trials=len(candidates)), eval_fn=evaluate)
    which = None if best is None else candidate_of(best)
    return -1 if which is None else which


def candidate_of(model: torch.nn.Module) -> int | None:
    layer = model[0]
    return None if isinstance(layer, torch.nn.Linear) else int(layer.group_size) - 1


def main(plants: str, decisions: str) -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with np.load(plants) as file:
        data = dict(file)
    # its tolerance is relative only: the same drop in terms of the true accuracy of the baseline
    margin = float(data["margin"])
    loss = margin / float(data["baseline_accuracy"])
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        accepted = [
            sum(accepts(int(b) / n, int(c) / n, loss) for b, c in zip(base, cand))
            for n, base, cand in zip(data["cell_n"].tolist(), data["cell_baseline"], data["cell_candidate"])
        ]
        shipped, within = [], []
        for n, base, cand in zip(data["sel_n"].tolist(), data["sel_baseline"], data["sel_candidate"]):
            chosen = [tuned(int(b) / n, [int(c) / n for c in cands], loss) for b, cands in zip(base, cand)]
            shipped.append(chosen)
            within.append([c >= 0 and accepts(int(b) / n, int(row[c]) / n, loss) for c, b, row in zip(chosen, base, cand)])
        returned = tuned(0.9, [0.5], loss)
    out = {
        "peer": "inc",
        "version": metadata.version("neural_compressor_pt"),
        "rule": "neural_compressor.common.base_tuning.TuningMonitor.need_stop; selection by the whole of autotune",
        "accepted": accepted,
        "shipped": shipped,
        "within": within,
        "handed_over": [
            {
                "max_trials": 1,
                "allowed_drop": margin,
                "returned": "nothing" if returned < 0 else "a model",
                "delivered_drop": 0.4 if returned >= 0 else 0.0,
            }
        ],
    }
    with open(decisions, "w", encoding="utf-8") as file:
        json.dump(out, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
