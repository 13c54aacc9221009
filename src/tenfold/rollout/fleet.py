"""Where a bundle is served by several servers, of which some may be of a new one: what an upgrade asks of it; and a pool of processes as one."""

from __future__ import annotations

import fcntl
import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tenfold.errors import TenfoldError
from tenfold.rollout.seen import Seen, read, together
from tenfold.serve.model import Source
from tenfold.serve.pool import CANARY, STABLE, Wanted, is_supervised, read_there, read_wanted, write_wanted
from tenfold.store import unwritable, write_atomic

ASK_SECONDS = 5.0


class Fleet(Protocol):
    """Servers of two tracks behind one address."""

    def count(self) -> int:
        """Servers of the stable track, without a canary."""
        ...

    def canary(self, count: int) -> None:
        """Have so many servers of the new bundle beside those of the old one; 0: none."""
        ...

    def promote(self) -> None:
        """Have the new bundle only, as the stable track, and remember the old one.

        Raises:
            TenfoldError: it did not come about, and the old one is served on.
        """
        ...

    def ready(self, track: str) -> int:
        """Servers of a track that take requests now."""
        ...

    def seen(self, track: str) -> Mapping[str, Seen]:
        """What each server of a track has counted, by a name that a server which began anew does not share."""
        ...

    def settled(self) -> bool:
        """Whether what is there is what was asked for, and nothing else."""
        ...


@dataclass(frozen=True)
class PoolFleet:
    """Servers of `tenfold serve --pool`."""

    folder: Path
    total: int
    """Servers, of both tracks."""
    old: tuple[str, ...]
    """What the stable track serves."""
    new: tuple[str, ...] = ()
    """What comes in its place; none of a fleet that only goes back."""
    has_canary: bool = False

    @classmethod
    def of(cls, folder: Path, bundle: Path | None = None) -> PoolFleet:
        """
        Raises:
            TenfoldError: it is no pool, none that is at work, or serves several bundles.
        """
        wanted = read_wanted(folder)
        stable = [w for w in wanted if w.track == STABLE]
        if len(stable) != 1 or len(stable[0].bundles) != 1:
            raise TenfoldError(f"{folder} serves {sum(len(w.bundles) for w in stable)} bundles: an upgrade exchanges one, give each a pool of its own")
        if not is_supervised(folder):
            raise TenfoldError(f"nothing is served by {folder} now: start tenfold serve --pool {folder}")
        old = stable[0].bundles
        new = () if bundle is None else (_in_place_of(old[0], bundle.resolve()),)
        return cls(folder.resolve(), sum(w.count for w in wanted), old, new, any(w.track == CANARY for w in wanted))

    @property
    def in_service(self) -> Path:
        """The bundle's folder."""
        return Source.parse(self.old[0]).path

    def count(self) -> int:
        return self.total

    def canary(self, count: int) -> None:
        stable = Wanted(track=STABLE, bundles=self.old, count=max(1, self.total - count))  # one to compare with
        write_wanted(self.folder, [stable, Wanted(track=CANARY, bundles=self.new, count=count)] if count else [stable])

    def promote(self) -> None:
        self._remember([*self.before(), list(self.old)])
        write_wanted(self.folder, [Wanted(track=STABLE, bundles=self.new, count=self.total)])

    def back(self) -> str:
        """Take a canary away; or else put in service what was there before the last promotion. In words, which.

        Raises:
            TenfoldError: nothing is known of what was there before.
        """
        if self.has_canary:
            self.canary(0)
            return "the canary is taken away"
        before = [b for b in self.before() if tuple(b) != self.old]
        if not before:
            raise TenfoldError(f"{self.folder} does not say what was in service before {', '.join(self.old)}: name it with tenfold upgrade")
        write_wanted(self.folder, [Wanted(track=STABLE, bundles=tuple(before[-1]), count=self.total)])
        self._remember(before[:-1])
        return f"{', '.join(before[-1])} is in service again"

    def before(self) -> list[list[str]]:
        """What was in service before, the last one last."""
        path = self.folder / "before.json"
        try:
            found: list[list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        except (OSError, ValueError) as error:
            raise TenfoldError(f"{path} cannot be read ({error}): remove it, if what was in service before need not come back") from error
        return found

    def _remember(self, before: list[list[str]]) -> None:
        try:
            write_atomic(self.folder / "before.json", json.dumps(before, indent=1))
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def ready(self, track: str) -> int:
        return sum(s["ready"] for s in self._servers(track))

    def settled(self) -> bool:
        wanted = {(w.track, w.bundles): w.count for w in read_wanted(self.folder) if w.count}
        there: dict[tuple[str, tuple[str, ...]], int] = {}
        for server in read_there(self.folder)["servers"]:
            kind = (server["track"], tuple(server["bundles"]))
            there[kind] = there.get(kind, 0) + (1 if server["ready"] else self.total + 1)
        return there == wanted

    def seen(self, track: str) -> Mapping[str, Seen]:
        host = read_there(self.folder)["host"]
        return {str(s["pid"]): _asked(host, s["metrics_port"]) for s in self._servers(track) if s["ready"]}

    def _servers(self, track: str) -> list[dict[str, Any]]:
        return [s for s in read_there(self.folder)["servers"] if s["track"] == track]


def _in_place_of(old: str, folder: Path) -> str:
    """As on the command line, a bundle with the name and the version of another."""
    source = Source.parse(old)
    if source.name is None:
        return str(folder)
    return f"{source.name}@{source.version}={folder}" if source.version else f"{source.name}={folder}"


def _asked(host: str, port: int) -> Seen:
    """What a server has counted; nothing where it has just ended.

    Raises:
        TenfoldError: it has no metrics.
    """
    if not port:
        raise TenfoldError("the servers have no metrics, by which a canary is judged: start them without --no-metrics")
    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=ASK_SECONDS)  # noqa: S104 - of any, this machine's own
    try:
        connection.request("GET", "/metrics")
        return read(connection.getresponse().read().decode())
    except (OSError, http.client.HTTPException):
        return Seen()
    finally:
        connection.close()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """One upgrade of a pool.

    Raises:
        TenfoldError: there is one already.
    """
    try:
        with open(folder / "upgrade.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise TenfoldError(f"an upgrade of {folder} is at work already: wait for it, or end it") from error


class Watch:
    """What two tracks have counted since it began. Servers that came or went meanwhile count with what was seen of them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._first = {track: dict(fleet.seen(track)) for track in (STABLE, CANARY)}
        self._last = {track: dict(each) for track, each in self._first.items()}
        self.lost = False
        """Whether a server of the canary has ended."""

    def look(self) -> tuple[Seen, Seen]:
        """Of the stable track and of the canary."""
        for track in (STABLE, CANARY):
            now = self._fleet.seen(track)
            self.lost = self.lost or (track == CANARY and not self._last[track].keys() <= now.keys())
            self._last[track] |= {name: seen for name, seen in now.items() if seen.requests or name not in self._last[track]}
        stable, canary = (together(s.since(self._first[t].get(n, Seen())) for n, s in self._last[t].items()) for t in (STABLE, CANARY))
        return stable, canary
