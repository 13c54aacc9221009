"""What a run says while it works: a live view in a terminal, plain lines when piped, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

REDRAW_SECONDS = 0.2


class View(Protocol):
    """Told what happens. Never asked, never slow, and still while something is timed."""

    def note(self, activity: str, share: float) -> None:
        """Long work goes on: `share` of it is done."""
        ...

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def row(self, row: dict[str, Any]) -> None:
        """A row of the ladder is decided."""
        ...

    def lever(self, name: str, stage: str, seconds_left: float) -> None:
        """A lever is being pulled."""
        ...

    def close(self) -> None: ...


class Quiet:
    def note(self, activity: str, share: float) -> None: ...
    def say(self, text: str) -> None: ...
    def row(self, row: dict[str, Any]) -> None: ...
    def lever(self, name: str, stage: str, seconds_left: float) -> None: ...
    def close(self) -> None: ...


@dataclass
class Lines:
    """A line an event, on standard error; long work every ten seconds."""

    every: float = 10.0
    _next: float = field(default_factory=time.monotonic)

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def note(self, activity: str, share: float) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every
            self._print(f"  {activity} {share:.0%}")

    def say(self, text: str) -> None:
        self._print(text)

    def row(self, row: dict[str, Any]) -> None:
        self._print(f"  {mark(row['verdict'])} {row['lever']}: {row['reason']}")

    def lever(self, name: str, stage: str, seconds_left: float) -> None:
        self._print(f"{stage}: {name} ({clock(seconds_left)} left)")

    def close(self) -> None: ...


class Live:
    """The ladder so far, the lever at work and the time left, redrawn in place.

    It draws only when told something: no thread of its own wakes while costs are measured.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(stderr=True)
        self._rows: list[dict[str, Any]] = []
        self._now = ""
        self._drawn = 0.0
        self._live = RichLive(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1), show_header=bool(self._rows))
        for column in ("", "lever", "factor", "quality", "why"):
            table.add_column(column, justify="right" if column in ("factor", "quality") else "left")
        for r in self._rows:
            cost, quality = r.get("cost_ratio"), r.get("quality_difference")
            table.add_row(
                mark(r["verdict"]),
                escape(r["lever"]),
                f"{cost['value']:.2f}×" if cost else "",
                f"{quality['value']:+.4f}" if quality else "",
                escape(r["reason"]),
            )
        self._live.update(Group(table, Text(self._now, style="dim")), refresh=True)
        self._drawn = time.monotonic()

    def note(self, activity: str, share: float) -> None:
        self._now = f"{activity} {share:.0%}"
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self._draw()

    def say(self, text: str) -> None:
        from rich.markup import escape

        self._console.print(escape(text), highlight=False)

    def row(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._draw()

    def lever(self, name: str, stage: str, seconds_left: float) -> None:
        self._now = f"{stage}: {name} — {clock(seconds_left)} left"
        self._draw()

    def close(self) -> None:
        self._live.stop()


def mark(verdict: str) -> str:
    return {"take": "✓", "refuse": "✗"}.get(verdict, "?")


def clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "no limit"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


def make_view(kind: str) -> View:
    """`live`, `lines` or `quiet`; `auto`: live in a terminal, else lines."""
    if kind == "auto":
        kind = "live" if sys.stderr.isatty() else "lines"
    makers: dict[str, Callable[[], View]] = {"live": Live, "lines": Lines, "quiet": Quiet}
    return makers[kind]()
