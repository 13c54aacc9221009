"""Tenfold: the same model quality for a fraction of the cost, measured and certified."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# onnxruntime reports home unless this is set before its import
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from tenfold.bundle import Bundle as Bundle
    from tenfold.compare import compare as compare
    from tenfold.data.split import Split as Split
    from tenfold.errors import TenfoldError as TenfoldError
    from tenfold.pipeline import Result as Result
    from tenfold.pipeline import run as run
    from tenfold.renew.update import Update as Update
    from tenfold.renew.update import update as update
    from tenfold.sweep.study import Study as Study
    from tenfold.sweep.study import study as study
    from tenfold.train.augment import shift_and_flip as shift_and_flip
    from tenfold.train.config import TrainConfig as TrainConfig
    from tenfold.workload import Workload as Workload

__version__ = "0.1.0"

_HOME = {
    "Bundle": "tenfold.bundle",
    "Result": "tenfold.pipeline",
    "Split": "tenfold.data.split",
    "Study": "tenfold.sweep.study",
    "TenfoldError": "tenfold.errors",
    "TrainConfig": "tenfold.train.config",
    "Update": "tenfold.renew.update",
    "Workload": "tenfold.workload",
    "compare": "tenfold.compare",
    "run": "tenfold.pipeline",
    "shift_and_flip": "tenfold.train.augment",
    "study": "tenfold.sweep.study",
    "update": "tenfold.renew.update",
}
__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 - the names above


def __getattr__(name: str) -> Any:
    """Import on first use: `import tenfold` stays quick, and a bundle is served without torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'tenfold' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
