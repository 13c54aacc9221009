"""`language` by an LSTM."""

from __future__ import annotations

from pathlib import Path

from tenfold.data.named import tinyshakespeare
from tenfold.workload import Workload
from tenfold.workloads.language import of_text


def workload(data: Path | None = None) -> Workload:
    """Characters by an LSTM; tinyshakespeare, or the text in `data`."""
    return of_text(data or tinyshakespeare(), name="language-lstm", net="lstm")
