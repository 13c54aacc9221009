"""`language` over byte pairs, on the Brown corpus."""

from __future__ import annotations

from pathlib import Path

from tenfold.data.named import brown
from tenfold.workload import Workload
from tenfold.workloads.language import BYTE_PAIRS, of_text


def workload(data: Path | None = None) -> Workload:
    """Byte pairs by a transformer; the Brown corpus, divided by file, or the text in `data`."""
    return of_text(data or brown(), name="language-bytepair", bytepairs=BYTE_PAIRS)
