"""What a bundle's server really takes: started here, and asked what it may be asked at the most."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.bundle import Bundle
from tenfold.errors import TenfoldError
from tenfold.serve.protocol import TensorSpec, largest_request
from tenfold.serve.settings import Settings

START_SECONDS = 60.0
CLIENTS, ROUNDS = 8, 4


@dataclass(frozen=True, kw_only=True)
class Taken:
    idle_bytes: int
    """Resident, when it is ready."""
    peak_bytes: int
    """Resident at the most, while several clients send the largest requests that are let in."""


def measure(bundle: Bundle) -> Taken:
    """
    Raises:
        TenfoldError: its server does not start here.
    """
    inputs, _ = bundle.golden()
    specs, usual = [TensorSpec.of(s) for s in bundle.manifest["inputs"]], Settings()
    most = max(1, min(usual.max_examples, usual.max_held // CLIENTS // largest_request(specs, 1)))
    body = json.dumps({"inputs": [
        {"name": spec.name, "shape": [most, *spec.shape], "datatype": spec.datatype, "data": np.resize(x, (most, *x.shape[1:])).ravel().tolist()}
        for spec, x in zip(specs, inputs, strict=True)
    ]})  # fmt: skip
    with _served(bundle.path) as (pid, port):
        idle = _resident(pid, "VmRSS")
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(_ask, port, body) for _ in range(CLIENTS)]:
                done.result()
        return Taken(idle_bytes=idle, peak_bytes=_resident(pid, "VmHWM"))


@contextmanager
def _served(path: Path) -> Iterator[tuple[int, int]]:
    """(process, port) of a server, at a socket of ours."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        says, told = os.pipe()
        words = [sys.executable, "-m", "tenfold.serve", f"model={path.resolve()}", "--force", "--no-access-log", "--metrics-port=0", "--handed", str(listening.fileno()), str(told)]
        with subprocess.Popen(words, pass_fds=[listening.fileno(), told], stderr=subprocess.PIPE, text=True) as process:
            os.close(told)
            try:
                if not select.select([says], [], [], START_SECONDS)[0] or not os.read(says, 64):
                    process.kill()
                    assert process.stderr is not None
                    raise TenfoldError(f"the bundle's server does not start here: {(process.stderr.read().strip().splitlines() or ['it says nothing'])[-1]}")
                yield process.pid, listening.getsockname()[1]
            finally:
                os.close(says)
                process.kill()


def _ask(port: int, body: str) -> None:
    for _ in range(ROUNDS):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        try:
            connection.request("POST", "/v2/models/model/infer", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise TenfoldError(f"the bundle's server gives no answer to its golden inputs ({error}): try tenfold serve") from error
        finally:
            connection.close()
        if answer.status not in (200, 503):
            raise TenfoldError(f"the bundle's server answers its golden inputs with {answer.status} ({said[:200].decode(errors='replace')}): certify the bundle on this machine")


def _resident(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{what}:")).split()[1])
