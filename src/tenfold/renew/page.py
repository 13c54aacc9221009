"""The page of a run's upgrades: one HTML file that needs no network, no script and nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.report import environment
from tenfold.report.strips import scale_of, strip
from tenfold.report.words import score_digits
from tenfold.store import write_atomic


def write_page(upgrades: Sequence[Mapping[str, Any]], path: Path, *, judged: int) -> None:
    """Write the page of upgrades that ended, at least one, in their order.

    Args:
        upgrades: what their `result.json` hold.
        judged: that have had their share of the error; some may have been removed since.

    Raises:
        OSError: `path` cannot be written.
    """
    compared = [c for u in upgrades for c in u["comparisons"]]
    digits = score_digits(upgrades[-1]["workload"]["margin"])
    scale = scale_of([c["quality"] for c in compared], max(c["margin"] for c in compared)) if compared else None
    rows = [{**u, "strips": [(c, strip(c["quality"], c["margin"], digits, scale)) for c in u["comparisons"]]} for u in upgrades]
    html = environment().get_template("upgrades.html.j2").render(
        rows=rows, last=upgrades[-1], serving=next((u for u in reversed(upgrades) if u["let_in"]), None),
        let_in=sum(u["let_in"] for u in upgrades), judged=judged, digits=digits,
    )  # fmt: skip
    write_atomic(path, html.encode("utf-8", "replace").decode())
