"""What fails while servers are exchanged, end and are killed, under load: each ten times.

    apt install wrk
    python -m benchmarks.serving.faults [--times 10] [--connections 8]

Two replicas of a small bundle behind one port, `wrk` at work over several connections all the while. Upgrades are promoted, rolled back, and taken away where they answer other classes;
bundles are reloaded, replicas end by SIGTERM as they do when a pod is deleted: no request may fail. After a SIGKILL those fail that the one replica had in work: clients here ask
again once. Writes records/serving/faults.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serving import command, images_bundle
from tests.test_serve import INFER, picture_request, there

from tenfold import device
from tenfold.serve.pool import read_there
from tenfold.store import write_atomic

QUIET_SECONDS = 1.0
"""Of load before and after each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("records/serving"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        one, two, other = images_bundle(folder / "one"), images_bundle(folder / "two"), images_bundle(folder / "other", seed=9)
        pool = folder / "pool"
        with command(f"small={one}", "--port", "0", "--replicas", "2", "--pool", pool, "--no-access-log", "--connection-age", "0.5") as server:
            there(pool, 2)
            ways: dict[str, Callable[[], None]] = {
                "upgrade, promoted": lambda: _upgrade(two, pool, 0), "rollback": lambda: _rollback(pool), "upgrade, taken away": lambda: _upgrade(other, pool, 3),
                "reload": lambda: _each(pool, signal.SIGHUP), "replica ends": lambda: _end_one(pool, signal.SIGTERM),
            }  # fmt: skip
            found = {name: [] for name in ways}
            for turn in range(given.times):
                for name, way in ways.items():
                    with _load(folder, read_there(pool)["port"], given.connections) as counted:
                        way()
                    found[name].append(counted)
                    print(f"{turn + 1}/{given.times} {name}: {counted['failed']} of {counted['requests']:,} failed", flush=True)
            killed = [_kill(pool, given.connections) for _ in range(given.times)]
            worst = max(k["failed_first"] for k in killed)
            print(f"killed: {worst} of {given.connections} in work failed at the most, {sum(k['failed_again'] for k in killed)} failed again")
            code = server.end()
    document = {"schema": 1, "connections": given.connections, "under_load": found, "killed": killed, "exit_code": code, "environment": device.environment()}
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomic(given.out / "faults.json", json.dumps(document, indent=1))
    if any(c["failed"] for counted in found.values() for c in counted) or any(k["failed_again"] or k["failed_first"] > given.connections for k in killed):
        sys.exit("requests failed")


@contextmanager
def _load(folder: Path, port: int, connections: int) -> Iterator[dict[str, Any]]:
    """wrk at work; what it counted is there at the end."""
    script = folder / "request.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.body = [==[{picture_request().decode()}]==]\nwrk.headers["content-type"] = "application/json"\n')
    words = ["wrk", "-t1", f"-c{connections}", "-d600s", "--timeout=20s", "-s", str(script), f"http://127.0.0.1:{port}{INFER}"]
    counted: dict[str, Any] = {}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(QUIET_SECONDS)
        try:
            yield counted
            time.sleep(QUIET_SECONDS)
        finally:
            process.send_signal(signal.SIGINT)  # it says what it has counted
            assert process.stdout is not None
            said = process.stdout.read()
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    others, requests = re.search(r"Non-2xx or 3xx responses: (\d+)", said), re.search(r"(\d+) requests in", said)
    assert requests, said
    failed = [int(n) for found in (errors, others) if found for n in found.groups()]
    counted |= {"requests": int(requests[1]), "failed": sum(failed)}


def _upgrade(bundle: Path, pool: Path, code: int) -> None:
    words = [sys.executable, "-m", "tenfold.cli", "upgrade", str(bundle), "--pool", str(pool), "--uncertified", "--dearer", "--watch", "2s", "--most", "30s"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise RuntimeError(f"{code} was expected: {done.stderr}")


def _rollback(pool: Path) -> None:
    before = {s["pid"] for s in read_there(pool)["servers"]}
    subprocess.run([sys.executable, "-m", "tenfold.cli", "rollback", "--pool", str(pool)], check=True, capture_output=True)
    _until(lambda: not before & {s["pid"] for s in there(pool, 2)})


def _each(pool: Path, number: signal.Signals) -> None:
    for server in read_there(pool)["servers"]:
        os.kill(server["pid"], number)
    time.sleep(2 * QUIET_SECONDS)


def _end_one(pool: Path, number: signal.Signals) -> None:
    pid = there(pool, 2)[0]["pid"]
    os.kill(pid, number)
    _until(lambda: pid not in [s["pid"] for s in there(pool, 2)])


def _until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            raise RuntimeError("the pool did not come to what was asked of it")
        time.sleep(0.1)


def _kill(pool: Path, connections: int) -> dict[str, int]:
    """Requests that fail when a replica is killed, and of those that are asked once again."""
    port, counted, ending = read_there(pool)["port"], {"requests": 0, "failed_first": 0, "failed_again": 0}, threading.Event()
    lock = threading.Lock()

    def ask(connection: http.client.HTTPConnection) -> bool:
        try:
            connection.request("POST", INFER, picture_request(), {"content-type": "application/json"})
            return connection.getresponse().read() is not None
        except (OSError, http.client.HTTPException):
            return False

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        while not ending.is_set():
            first = ask(connection)
            again = True
            if not first:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                again = ask(connection)
            with lock:
                counted["requests"] += 1
                counted["failed_first"] += not first
                counted["failed_again"] += not again

    threads = [threading.Thread(target=client) for _ in range(connections)]
    for thread in threads:
        thread.start()
    time.sleep(QUIET_SECONDS)
    _end_one(pool, signal.SIGKILL)
    time.sleep(QUIET_SECONDS)
    ending.set()
    for thread in threads:
        thread.join()
    return counted


if __name__ == "__main__":
    main()
