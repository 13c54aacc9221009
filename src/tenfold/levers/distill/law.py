"""What students are expected to come to before any of them is trained: a law by which structures are ranked.

How much worse than its teacher a student is after a short training goes as `weights^0.3 products^-0.46 epochs^-0.3`: fitted to 75 trainings
of students of Fashion-MNIST and CIFAR-10; `python benchmarks/law/run.py` says how well it fits those that are on record now. Of two that compute alike the one with fewer
weights is better, as it looks closer; and in a given time what trains faster sees more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

WEIGHTS, PRODUCTS, EPOCHS = 0.3, -0.46, -0.3
KEEPS = -0.27
"""Power of its weights, with which the loss of a student goes down from a short training to a long one: the small are at their end soon."""
WORTH_OF_COST, CHEAP_ENOUGH = 0.7, 24.0
"""Of a part that answers first: logarithm of its loss for one of its cost, as the whole is `cost + share handed on`, and that share goes as the loss;
and how many times cheaper than the baseline it need not be, as next to nothing of the whole is its cost then."""


def keeps(weights: Sequence[int]) -> list[float]:
    """Of its loss after a short training, what each of some students is expected to keep through a long one, over what they keep in the mean."""
    logs = [math.log(max(w, 1)) for w in weights]
    mean = sum(logs) / max(1, len(logs))
    return [math.exp(KEEPS * (log - mean)) for log in logs]


def rank(weights: int, products: int, ratio: float, epoch_seconds: float) -> float:
    """Of a student: the lower, the more it is expected to be worth.

    Args:
        weights, products: of the student, and of a prediction of it.
        ratio: how many times cheaper than the baseline it is.
        epoch_seconds: of its training; for a given time.
    """
    weights = max(weights, 1)
    products = max(products, weights)  # those of recurrent layers are not counted
    loss = WEIGHTS * math.log(weights) + PRODUCTS * math.log(products) - EPOCHS * math.log(max(epoch_seconds, 1e-6))
    return loss - WORTH_OF_COST * math.log(min(ratio, CHEAP_ENOUGH))
