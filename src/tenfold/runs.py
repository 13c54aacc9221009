"""Folders of runs, and whether one that is gone on with is still the same run on the same machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold import device
from tenfold.errors import TenfoldError
from tenfold.ledger import Ledger
from tenfold.train.loop import pick_device


def run_folder(name: str, out: str | Path | None, *, resume: bool) -> Path:
    """`out`, or the next number under runs/; the newest where a run is gone on with.

    Raises:
        TenfoldError: there is nothing to go on with.
    """
    if out is not None:
        if resume and not (Path(out) / "ledger.jsonl").exists():
            raise TenfoldError(f"there is no run in {out} to resume: leave out --resume to start one")
        return Path(out)
    name = re.sub(r"[^\w.-]+", "-", name)
    taken = {int(n) for p in Path("runs").glob(f"{name}-*") if (n := p.name.removeprefix(f"{name}-")).isdigit()}
    if resume:
        if not taken:
            raise TenfoldError(f"there is no run of {name} under runs/ to resume: leave out --resume to start one")
        return Path("runs") / f"{name}-{max(taken)}"
    return Path("runs") / f"{name}-{max(taken, default=0) + 1}"


def check_seed(seed: int) -> None:
    """
    Raises:
        TenfoldError: it is none.
    """
    if not 0 <= seed < 2**31:
        raise TenfoldError(f"seed is {seed}: give a whole number from 0 to {2**31 - 1}")


def check_same(ledger: Ledger, folder: Path, asked: Mapping[str, Any], *, otherwise: str = "choose another --out") -> None:
    """Remember what is asked for and where, or see that it is what was remembered.

    Args:
        otherwise: what else can be done than to resume it as it was.

    Raises:
        TenfoldError: the run is another, or of another machine.
    """
    asked = json.loads(json.dumps(asked))
    if changed := _changed(ledger.remember("settings", lambda: asked), asked):
        raise TenfoldError(f"{folder} is a run with another {changed}: resume it as it was started, or {otherwise}")
    here = {"CPU class": device.cpu_class(), "number of cores": device.cores(), "device that trains": pick_device().type, **device.versions()}
    if changed := _changed(ledger.remember("machine", lambda: here), here):
        raise TenfoldError(
            f"{folder} was begun with another {changed}, and costs of the two must not be compared: "
            f"resume it where it was begun, or {otherwise}"
        )


def _changed(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    return ", ".join(sorted(k for k in {*known, *asked} if known.get(k) != asked.get(k)))
