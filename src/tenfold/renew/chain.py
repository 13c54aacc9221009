"""What an upgrade follows: the run that was certified, the upgrades that came after it, and which model is in service.

    RUN/updates/1/             result.json, bundle and weights (where it was let in), ledger.jsonl
    RUN/updates/2/             …
    RUN/updates/upgrades.html  all of them on one page
    RUN/updates/planned.json   over how many of them the error is spent
    RUN/updates/<hash>.jsonl   those that were judged with the test split of that hash: each has had its share
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tenfold.bundle import Bundle
from tenfold.certify import opened_by
from tenfold.data.split import Split
from tenfold.document import read_result
from tenfold.errors import TenfoldError, WorkloadError, first_line
from tenfold.recipe import Recipe
from tenfold.renew.arrivals import arrivals
from tenfold.renew.guard import MOST_PLANNED, PLANNED
from tenfold.store import unwritable, write_atomic
from tenfold.workload import Examples, Workload, find, judged_by, load

SCHEMA = 1
"""Of an upgrade's result."""


@dataclass(frozen=True)
class Chain:
    """A run, and its upgrades that ended. Make one with `Chain.read`."""

    folder: Path
    origin: dict[str, Any]
    """The run's result."""
    upgrades: tuple[dict[str, Any], ...]
    """Results of the upgrades, in their order."""

    @classmethod
    def read(cls, folder: Path) -> Chain:
        """
        Raises:
            TenfoldError: the folder holds no run that ended.
        """
        origin = read_result(folder)
        if lacks := {"test", "judged_by", "structure", "slice_margins"} - {*origin["workload"]} or {"source"} - {*origin}:
            raise TenfoldError(
                f"{folder} is of an older Tenfold, and its result says nothing of {', '.join(sorted(lacks))}: resume it with this one, or run anew"
            )
        ended = [p / "result.json" for p in _folders(folder) if (p / "result.json").exists()]
        return cls(folder, origin, tuple(map(_read_upgrade, ended)))

    @property
    def updates(self) -> Path:
        """The folder of all upgrades."""
        return self.folder / "updates"

    def path(self, number: int) -> Path:
        return self.updates / str(number)

    @property
    def let_in(self) -> list[dict[str, Any]]:
        """The upgrades that went into service."""
        return [u for u in self.upgrades if u["let_in"]]

    @property
    def service(self) -> Path:
        """The folder whose bundle and weights are in service."""
        return self.path(self.let_in[-1]["number"]) if self.let_in else self.folder

    @cached_property
    def first(self) -> Bundle:
        """What was certified first."""
        return Bundle.load(self.folder / "bundle")

    @cached_property
    def serving(self) -> Bundle:
        """What is in service."""
        return Bundle.load(self.service / "bundle") if self.let_in else self.first

    @property
    def recipe(self) -> Recipe:
        """Of what was certified first; an upgrade follows it again."""
        return Recipe.from_json(self.first.manifest["recipe"])

    def number(self, *, resume: bool) -> int:
        """Of the next upgrade, or of the one that is gone on with.

        Raises:
            TenfoldError: there is none to go on with; or there is, and that was not asked for.
        """
        ended = {u["number"] for u in self.upgrades}
        begun = [int(p.name) for p in _folders(self.folder) if int(p.name) not in ended and (p / "ledger.jsonl").exists()]
        if resume and not begun:
            raise TenfoldError(f"no upgrade of {self.folder} was stopped: leave out --resume to begin one")
        if begun and not resume:
            raise TenfoldError(f"upgrade {begun[-1]} of {self.folder} was begun and has not ended: go on with --resume, or give it up by removing {self.path(begun[-1])}")
        return begun[-1] if resume else max(ended, default=0) + 1

    def planned(self, asked: int | None) -> int:
        """Upgrades over which the error of the run's test split is spent.

        Raises:
            TenfoldError: it is no such number, or another was planned before.
        """
        file = self.updates / "planned.json"
        try:
            before: int | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except ValueError as error:
            raise TenfoldError(f"{file} is damaged ({first_line(error)}): restore it, since the error is spent over as many upgrades as it says") from error
        if asked is not None and not 1 <= asked <= MOST_PLANNED:
            raise TenfoldError(f"planned is {asked}: give the number of upgrades, from 1 to {MOST_PLANNED}")
        if before is not None and asked not in (None, before):
            raise TenfoldError(f"{before} upgrades were planned with the first, over which the error is spent: leave out --planned, or certify anew with tenfold run")
        return before or asked or PLANNED

    def plan(self, planned: int) -> None:
        """Remember how many upgrades are planned."""
        try:
            write_atomic(self.updates / "planned.json", json.dumps(planned))
        except OSError as error:
            raise unwritable(self.updates, error) from error

    def check_left(self, planned: int) -> None:
        """
        Raises:
            TenfoldError: as many upgrades as were planned have been judged.
        """
        if len(opened_by(self.updates, self.origin["workload"]["test"])) >= planned:
            raise TenfoldError(f"the {planned} upgrades that were planned have been judged: certify anew, with tenfold run, on test examples that were not seen yet")

    def workload(self, given: Workload | str | None, old_data: str | Path | None) -> Workload:
        """That of the run, with the run's margin.

        Args:
            given: where it is another object or file than the run was made with.
            old_data: folder of the run's data, where it is no longer where it was.

        Raises:
            TenfoldError: it is not known, or cannot be found.
        """
        if not isinstance(given, Workload):
            source = self.origin["source"]
            spec = given or source["spec"]
            if spec is None:
                raise TenfoldError(f"{self.folder} was made from Python: name its workload with --workload path/to/task.py[:name], or with workload=")
            where = source["data"] if old_data is None else old_data
            with _of_the_old():
                given = find(spec, None if where is None else Path(where))
        elif old_data is not None:
            raise TenfoldError("old_data= goes with a workload that is named: the one that was given has its data")
        same = ("name", "margin", "margin_kind", "slice_margins")
        return dataclasses.replace(given, **{k: self.origin["workload"][k] for k in same})

    def old_examples(self, task: Workload) -> Examples:
        """The run's own data.

        Raises:
            WorkloadError: its test split, or its metric, is not what the run was certified with.
        """
        with _of_the_old():
            examples = load(task)
        facts = self.origin["workload"]
        if examples.test.identity != facts["test"]:
            raise WorkloadError("the test split is not the one that the run was certified on: name the run's own data with --old-data, or put it back")
        if judged_by(task) != facts["judged_by"]:
            raise WorkloadError("the metric is not the one that the run was certified with: put it back, or certify anew with tenfold run")
        return examples

    def learned_before(self, task: Workload, old: Examples) -> tuple[list[Split], list[str]]:
        """What the upgrades in service have learned from, as far as it is still there; and a sentence for what is not."""
        splits: list[Split] = []
        missing = []
        for upgrade in self.let_in:
            path, identity = upgrade["data"]["path"], upgrade["data"]["identity"]
            try:
                found = arrivals(task, old, path) if path is not None else None
            except WorkloadError:
                found = None
            if found is not None and found.identity == identity:
                splits.append(found.train)
            else:
                why = "came as arrays, and is not kept" if path is None else "is not where it was"
                missing.append(f"the data of upgrade {upgrade['number']} {why}: it is not learned from again")
        return splits, missing


def _read_upgrade(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] > SCHEMA:
            raise TenfoldError(f"{path} is of schema {found['schema']}, this Tenfold reads {SCHEMA}: upgrade Tenfold")
        _ = found["let_in"], found["number"], found["data"]["identity"], found["data"]["path"], found["replaced"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TenfoldError(f"{path} is damaged ({first_line(error)}): restore it, since what is in service depends on it") from error
    return found


@contextmanager
def _of_the_old() -> Iterator[None]:
    """Here `--data` is the new data."""
    try:
        yield
    except WorkloadError as error:
        raise WorkloadError(f"the run's own data: {str(error).replace('--data', '--old-data')}") from error


def _folders(folder: Path) -> Sequence[Path]:
    """Of upgrades, in their order."""
    return sorted((p for p in (folder / "updates").glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
