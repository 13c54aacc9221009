"""What the commands `tenfold upgrade` and `tenfold rollback` do."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold import device
from tenfold.bundle import Bundle
from tenfold.data.split import Array
from tenfold.errors import TenfoldError
from tenfold.rollout import guard
from tenfold.rollout.fleet import PoolFleet, one_at_a_time
from tenfold.rollout.kubernetes import KubernetesFleet, fleet_of
from tenfold.rollout.run import plan, roll
from tenfold.serve.pool import STABLE


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a bundle is to come into service."""

    pool: Path | None = None
    kubernetes: str | None = None
    """NAMESPACE/NAME of a deployment."""
    image: str | None = None
    """Of the new bundle there, NAME@DIGEST."""
    old: Path | None = None
    """The bundle in service; None: as the pool says."""
    workload: str | None = None
    """On whose test split the two are compared; None: the certificates are held against each other."""
    data: Path | None = None
    examples: Sequence[Array] | None = None
    """By which cost is compared."""
    watch_seconds: float = 60.0
    most_seconds: float = 600.0
    uncertified: bool = False
    dearer: bool = False
    dry_run: bool = False


def upgrade(new: Path, asked: Asked, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Guard, canary, and in or out; `exit_code` 0 where the new bundle is in service, 3 where it is not.

    Raises:
        TenfoldError: the bundle may not come into service, or the servers cannot be reached.
    """
    with _terminable(), one_at_a_time(asked.pool) if asked.pool is not None else nullcontext():
        fleet, old = _fleet(new, asked)
        if fleet.has_canary:
            raise TenfoldError("there is a canary already, of an upgrade that did not end: take it away with tenfold rollback")
        fleet.seen(STABLE)  # that metrics can be read
        bundle, before = Bundle.load(new), Bundle.load(old)
        guard.check_same(bundle, before)
        compared = guard.check_on_data(new, old, asked.workload, asked.data) if asked.workload is not None else None
        grounds = compared["reason"] if compared is not None else "not certified, as was asked for" if asked.uncertified else guard.check_quality(bundle, before)
        say(f"guard: {grounds}")
        ratio = guard.check_cost(bundle, before, dearer=asked.dearer, examples=asked.examples)
        say(f"guard: a prediction costs {1 / ratio.value:.2f} times what it did ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})")
        total = fleet.count()
        document = {
            "schema": 1, "new": str(new.resolve()), "old": str(old.resolve()), "grounds": grounds, "compared": compared, "cost_ratio": ratio.to_json(),
            "plan": [{"canaries": c, "of": total} for c in plan(total)], "watch_seconds": asked.watch_seconds, "dry_run": asked.dry_run,
            "environment": device.environment(),
        }  # fmt: skip
        if asked.dry_run:
            return document | {"steps": [], "in_service": None, "exit_code": 0}
        taken, steps = roll(fleet, watch_seconds=asked.watch_seconds, most_seconds=asked.most_seconds, say=say)
        return document | {"steps": [dataclasses.asdict(s) for s in steps], "in_service": str((new if taken else old).resolve()), "exit_code": 0 if taken else 3}


def rollback(pool: Path | None, kubernetes: str | None, *, say: Callable[[str], None]) -> None:
    """What was in service before the last upgrade, in service again; where there is a canary, that is taken away instead.

    Raises:
        TenfoldError: nothing is known of it, or the servers cannot be reached.
    """
    if (pool is None) == (kubernetes is None):
        raise TenfoldError("say where: --pool FOLDER, or --kubernetes NAMESPACE/NAME")
    if kubernetes is not None:
        say(fleet_of(kubernetes, None).back())
        return
    assert pool is not None
    with one_at_a_time(pool):
        say(PoolFleet.of(pool).back())


def _fleet(new: Path, asked: Asked) -> tuple[PoolFleet | KubernetesFleet, Path]:
    """Where, and the bundle that is in service there."""
    if (asked.pool is None) == (asked.kubernetes is None):
        raise TenfoldError("say where: --pool FOLDER, or --kubernetes NAMESPACE/NAME")
    if asked.pool is not None:
        fleet = PoolFleet.of(asked.pool, new)
        return fleet, asked.old or fleet.in_service
    assert asked.kubernetes is not None
    if asked.image is None or asked.old is None:
        raise TenfoldError("a deployment is upgraded with --image NAME@DIGEST of the new bundle, and --from the bundle that is in service")
    return fleet_of(asked.kubernetes, asked.image), asked.old


@contextmanager
def _terminable() -> Iterator[None]:
    """A SIGTERM as a Ctrl-C: what was in service stays."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
