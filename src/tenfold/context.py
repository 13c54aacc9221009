"""What every part of a run needs: what was asked, of what, and where it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenfold.build import Builder
from tenfold.execute import Evaluator
from tenfold.ledger import Ledger
from tenfold.plan import Plan
from tenfold.progress import View
from tenfold.search import Settings
from tenfold.workload import Examples, Workload


@dataclass(frozen=True, kw_only=True)
class Context:
    """One run at work. What it has found so far is in the ledger."""

    id: str
    """Of the run, wherever its folder is."""
    command: str
    """What reproduces it."""
    settings: Settings
    folder: Path
    ledger: Ledger
    view: View
    workload: Workload
    examples: Examples
    builder: Builder
    evaluator: Evaluator

    @property
    def baseline(self) -> Plan:
        return self.evaluator.baseline

    @property
    def margin(self) -> float:
        """Absolute, in units of the score, for the baseline's quality on valid."""
        return self.workload.absolute_margin(self.ledger["baseline"]["valid"])
