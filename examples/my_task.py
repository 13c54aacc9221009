"""Your own model in under 20 lines:  tenfold run examples/my_task.py"""

from sklearn.datasets import load_digits
from torch import nn

import tenfold

x, y = load_digits(return_X_y=True)


def net():
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


workload = tenfold.Workload(
    model=net,
    train=(x.astype("float32") / 16, y),  # valid, confirm and test are carved out of it
    margin=0.02,  # two points of accuracy may be given up
    training=tenfold.TrainConfig(epochs=15, batch_size=64, learning_rate=2e-3),
)
