"""Several servers behind one port: a supervisor that starts what is wanted, replaces what died, and ends what is not wanted any more.

The supervisor holds the listening socket, and its servers inherit it: whoever is free takes the next connection, and a server that ends
leaves none behind. What is wanted is a file, so that whoever may write there may change it; what there is, is another.

    POOL/wanted.json    [{"track", "bundles", "count"}], written by who wants it
    POOL/there.json     {"host", "port", "servers": [{"track", "bundles", "pid", "metrics_port", "ready"}]}, written by the supervisor
    POOL/metrics.json   where the servers' metrics are, as Prometheus reads it (file_sd_configs), written by the supervisor
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.errors import TenfoldError, first_line
from tenfold.serve.model import Source
from tenfold.serve.settings import Settings
from tenfold.serve.sockets import bind
from tenfold.store import unwritable, write_atomic

log = logging.getLogger("tenfold.serve")
TURN_SECONDS = 0.1
BIND_SECONDS = 5.0
START_SECONDS = 60.0
"""In which a server has to become ready."""
MORE_SECONDS = 10.0
"""Than a server takes to drain and to finish, after which it is killed."""
AGAIN_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""After which a server that died is started once more, by how often it did so in a row."""
OF_SUPERVISOR = ("bundles", "replicas", "pool", "port", "metrics_port", "handed")
"""Options that its servers do not get."""
REFUSED = 2
"""Exit code of a server that was asked for what cannot be."""
STABLE, CANARY = "stable", "canary"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """So many servers of these bundles."""

    track: str
    """`STABLE` or `CANARY`."""
    bundles: tuple[str, ...]
    """As on the command line, their folders absolute."""
    count: int

    @property
    def kind(self) -> tuple[str, tuple[str, ...]]:
        return self.track, self.bundles


@dataclass(kw_only=True)
class Server:
    """One that was started."""

    kind: tuple[str, tuple[str, ...]]
    process: subprocess.Popen[bytes]
    says: int
    """A pipe on which it says its port of metrics once it is ready."""
    began: float
    metrics_port: int | None = None
    ended: float | None = None
    """When it was told to end."""

    @property
    def ready(self) -> bool:
        return self.metrics_port is not None and self.ended is None

    def end(self) -> None:
        if self.ended is None:
            self.ended = time.monotonic()
            self.process.send_signal(signal.SIGTERM)

    def scraped(self, host: str) -> dict[str, Any]:
        """For Prometheus, of a server that listens there."""
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - of any, this machine's own
        return {"targets": [f"[{reached}]:{self.metrics_port}" if ":" in reached else f"{reached}:{self.metrics_port}"], "labels": {"track": self.kind[0]}}

    def to_json(self) -> dict[str, Any]:
        track, bundles = self.kind
        return {"track": track, "bundles": list(bundles), "pid": self.process.pid, "metrics_port": self.metrics_port, "ready": self.ready}


@dataclass(kw_only=True)
class Pool:
    """A supervisor at work."""

    folder: Path
    socket: socket.socket
    command: Callable[[Sequence[str], int, int], list[str]]
    """(bundles, file descriptor of the socket, of the pipe) to the command that starts a server."""
    end_seconds: float
    """After a SIGTERM, in which a server has to end."""
    servers: list[Server] = field(default_factory=list)
    failures: dict[tuple[str, tuple[str, ...]], tuple[int, float]] = field(default_factory=dict)
    """By what died: how often in a row, and when last."""
    wanted: list[Wanted] = field(default_factory=list)
    was_ready: bool = False
    """Whether any server ever was."""
    told: str = ""
    """What there.json says."""
    complaint: str = ""
    """What is wrong with wanted.json."""

    def turn(self) -> None:
        """Look once at what is wanted and what is there, and do what is missing."""
        try:
            self.wanted = read_wanted(self.folder)
            self.complaint = ""
        except TenfoldError as error:  # what was wanted before still is
            if str(error) != self.complaint:
                log.error("%s", error)  # noqa: TRY400
            self.complaint = str(error)
        self._see()
        for what in self.wanted:
            for _ in range(what.count - len(self._of(what.kind))):
                if self._may_start(what.kind):
                    try:
                        self._start(what.kind)
                    except (OSError, subprocess.SubprocessError) as error:  # no more processes or files: what there is serves on
                        self._failed(what.kind, f"cannot be started ({error})")
        counts = {w.kind: w.count for w in self.wanted}
        if all(sum(s.ready for s in self._of(kind)) >= count for kind, count in counts.items()):  # never fewer than are wanted
            for kind in {s.kind for s in self.servers}:
                for surplus in self._of(kind)[counts.get(kind, 0) :]:
                    surplus.end()
        self._tell()

    def _of(self, kind: tuple[str, tuple[str, ...]]) -> list[Server]:
        """Those that are not ending, the oldest first."""
        return [s for s in self.servers if s.kind == kind and s.ended is None]

    def _see(self) -> None:
        now = time.monotonic()
        for server in list(self.servers):
            if server.metrics_port is None and select.select([server.says], [], [], 0)[0] and (said := os.read(server.says, 64)):
                server.metrics_port = int(said)
                self.was_ready = True
                self.failures.pop(server.kind, None)
            if server.metrics_port is None and server.ended is None and now - server.began > START_SECONDS:
                server.process.kill()
            if server.ended is not None and now - server.ended > self.end_seconds:
                server.process.kill()
            if server.process.poll() is None:
                continue
            self.servers.remove(server)
            os.close(server.says)
            if not self.was_ready and server.process.returncode == REFUSED:
                raise TenfoldError(f"{', '.join(server.kind[1])} cannot be served, for the reason above")
            if server.ended is None:
                self._failed(server.kind, f"ended with {server.process.returncode}")

    def _failed(self, kind: tuple[str, tuple[str, ...]], how: str) -> None:
        times, _ = self.failures.get(kind, (0, 0.0))
        self.failures[kind] = (times + 1, time.monotonic())
        log.error("a server of %s %s", ", ".join(kind[1]), how)

    def _may_start(self, kind: tuple[str, tuple[str, ...]]) -> bool:
        times, last = self.failures.get(kind, (0, 0.0))
        return time.monotonic() - last >= AGAIN_SECONDS[min(times, len(AGAIN_SECONDS) - 1)]

    def _start(self, kind: tuple[str, tuple[str, ...]]) -> None:
        says, told = os.pipe()
        listening = self.socket.fileno()
        try:
            process = subprocess.Popen(self.command(kind[1], listening, told), pass_fds=[listening, told], preexec_fn=_die_with_parent, start_new_session=True)  # noqa: PLW1509 - it has no threads
        except BaseException:
            os.close(says)
            raise
        finally:
            os.close(told)
        self.servers.append(Server(kind=kind, process=process, says=says, began=time.monotonic()))

    def _tell(self) -> None:
        host, port = self.socket.getsockname()[:2]
        text = json.dumps({"host": host, "port": port, "servers": [s.to_json() for s in self.servers]}, indent=1)
        if text == self.told:
            return
        try:
            write_atomic(self.folder / "metrics.json", json.dumps([s.scraped(host) for s in self.servers if s.metrics_port], indent=1))
            write_atomic(self.folder / "there.json", text)
            self.told = text
        except OSError as error:  # a full disk: it is tried again
            log.error("%s cannot be written to (%s)", self.folder, error.strerror)  # noqa: TRY400

    def end(self) -> None:
        """Let all servers finish what they do."""
        for server in self.servers:
            server.end()
        while self.servers:
            self._see()
            time.sleep(TURN_SECONDS)
        self._tell()


def _die_with_parent() -> None:
    """In a child: be told to end when the supervisor dies, however it does."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def read_wanted(folder: Path) -> list[Wanted]:
    """
    Raises:
        TenfoldError: the file is missing or damaged.
    """
    path = folder / "wanted.json"
    try:
        return [Wanted(track=str(w["track"]), bundles=tuple(map(str, w["bundles"])), count=int(w["count"])) for w in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TenfoldError(f"{path} does not say what is to be served ({first_line(error)}): is this the folder of a pool?") from error


def write_wanted(folder: Path, wanted: Sequence[Wanted]) -> None:
    try:
        write_atomic(folder / "wanted.json", json.dumps([dataclasses.asdict(w) for w in wanted], indent=1))
    except OSError as error:
        raise unwritable(folder, error) from error


def read_there(folder: Path) -> dict[str, Any]:
    """
    Raises:
        TenfoldError: no supervisor has written there.
    """
    path = folder / "there.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise TenfoldError(f"{path} does not say what is served ({first_line(error)}): start it with tenfold serve --pool {folder}") from error


@contextlib.contextmanager
def supervising(folder: Path) -> Iterator[None]:
    """One supervisor a folder.

    Raises:
        TenfoldError: there is one already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w", encoding="utf-8")  # noqa: SIM115 - held below
    except OSError as error:
        raise unwritable(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TenfoldError(f"{folder} has a supervisor already: end it, or give another --pool") from error
        yield


def is_supervised(folder: Path) -> bool:
    """Whether a supervisor is at work there."""
    try:
        with open(folder / "lock", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def supervise_command(given: Mapping[str, Any]) -> None:
    """What `tenfold serve --replicas N --pool FOLDER` does. What an upgrade has put into the pool is served on, whatever bundle is named.

    Args:
        given: the options, by the names of their words; each server gets them too, with its own socket and port of metrics.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options = [_word(k, v) for k, v in given.items() if k not in OF_SUPERVISOR and v is not None and v is not False]

    def command(bundles: Sequence[str], listening: int, told: int) -> list[str]:
        return [sys.executable, "-m", "tenfold.serve", *options, "--metrics-port=0", "--handed", str(listening), str(told), "--", *bundles]

    with tempfile.TemporaryDirectory() as aside:
        folder = given["pool"] or Path(aside)
        with supervising(folder):
            before = [w for w in (read_wanted(folder) if (folder / "wanted.json").exists() else []) if w.track == STABLE]
            bundles = before[0].bundles if before else tuple(_absolute(b) for b in given["bundles"])
            if before and set(bundles) != {_absolute(b) for b in given["bundles"]}:
                log.info("serving what was put into the pool last: %s", ", ".join(bundles))
            write_wanted(folder, [Wanted(track=STABLE, bundles=bundles, count=given["replicas"])])
            end_seconds = given["drain"] + Settings().grace_seconds + MORE_SECONDS
            supervise(folder, _bound(given["host"], given["port"]), command, end_seconds)


def _bound(host: str, port: int) -> socket.socket:
    """The address, once servers of a supervisor that died have left it."""
    ends = time.monotonic() + BIND_SECONDS
    while True:
        try:
            return bind(host, port)
        except TenfoldError:
            if time.monotonic() > ends:
                raise
        time.sleep(TURN_SECONDS)


def _word(name: str, value: Any) -> str:
    word = f"--{name.replace('_', '-')}"
    return word if value is True else f"{word}={value}"


def _absolute(bundle: str) -> str:
    source = Source.parse(bundle)
    named = "" if source.name is None else f"{source.name}@{source.version}=" if source.version else f"{source.name}="
    return f"{named}{source.path.resolve()}"


def supervise(folder: Path, bound: socket.socket, command: Callable[[Sequence[str], int, int], list[str]], end_seconds: float) -> None:
    """Keep the servers that are wanted, until a SIGTERM or SIGINT; a SIGHUP is handed on to all.

    Args:
        bound: of the port, not listening yet.
        end_seconds: in which a server has to end.
    """
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    bound.listen(2048)
    pool = Pool(folder=folder, socket=bound, command=command, end_seconds=end_seconds)

    def reload(*_: object) -> None:
        for server in pool.servers:
            if server.ready:
                server.process.send_signal(signal.SIGHUP)

    signal.signal(signal.SIGHUP, reload)
    log.info("serving at port %d, by the servers that %s says", bound.getsockname()[1], folder / "wanted.json")
    try:
        while not ending:
            pool.turn()
            time.sleep(TURN_SECONDS)
    finally:
        pool.end()
