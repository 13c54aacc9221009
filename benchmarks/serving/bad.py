"""Ten thousand bad requests: is there a 5xx but 503 with Retry-After, a crash, memory that grows, or harm to what is asked beside them?

    python -m venv .peers/schemathesis && .peers/schemathesis/bin/pip install schemathesis==4.32.5
    python -m benchmarks.serving.bad --schemathesis .peers/schemathesis/bin/st [--requests 10000]

A server of a small bundle. A third of the requests are made by schemathesis of the server's own OpenAPI document, a third by hypothesis of the protocol's JSON with binary tensors
behind it, and a third on bare sockets: cut off, longer than they say, larger than may be, slow, without sense. A client asks for right answers beside them all the while.
Writes records/serving/bad.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.serving import Server, images_bundle, load, serving
from tests.test_serve import INFER, picture_request

from tenfold import device
from tenfold.store import write_atomic

SLOW_SECONDS = 2.0
MOST_GROWTH = 16 << 20
"""Bytes of resident memory, from when a fifth of the requests are done until the end."""
SLOW = 40
"""Connections that say nothing, or a byte at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemathesis", help="its command")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("records/serving"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        bundle = images_bundle(Path(aside) / "bundle")
        with serving(f"small={bundle}", access_log=False) as server, load(server.port, INFER, picture_request(), clients=1) as (beside,):
            part = asked.requests // 3
            codes: dict[str, Counter[str]] = {}
            codes["bare sockets, first"] = on_sockets(server, asked.requests // 5)
            before = resident(server)
            codes["binary tensors"] = by_hypothesis(server, part)
            codes["bare sockets"] = on_sockets(server, part - asked.requests // 5)
            found = by_schemathesis(asked.schemathesis, server, part) if asked.schemathesis else None
            slow(server)
            time.sleep(1)
            after, alive = resident(server), server.process.poll() is None
            beside.end()
            counted = {k: v for k, v in server.metrics().items() if k.startswith(("tenfold_requests_total", "tenfold_other_requests_total"))}
    served = sum(counted.values())
    wrong = {name: {c: n for c, n in each.items() if c.startswith("5") and c != "503 with Retry-After"} for name, each in codes.items()}
    document = {
        "schema": 1, "requests": {name: dict(each) for name, each in codes.items()}, "schemathesis": found, "served": served, "by_status": counted, "alive": alive,
        "beside": {"answered": beside.answered, "failed": beside.failed}, "resident_bytes": {"before": before, "after": after}, "environment": device.environment(),
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    write_atomic(asked.out / "bad.json", json.dumps(document, indent=1))
    for name, each in codes.items():
        print(f"{name}: {dict(each.most_common())}")
    if found:
        print(f"schemathesis: {found}")
    print(f"beside them {beside.answered:,} right answers, {len(beside.failed)} failed; memory {before / 1e6:.1f} to {after / 1e6:.1f} MB")
    errors = {k: v for k, v in counted.items() if re.search(r'code="5(?!03)', k)}
    if any(wrong.values()) or errors or not alive or beside.failed or after - before > MOST_GROWTH or (found and found["exit_code"]):
        sys.exit(f"bad requests did harm: {wrong} {errors}")


def resident(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


# ---------------------------------------------------------------- binary tensors

_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=6), x, max_size=4), max_leaves=8)
_TENSOR = st.fixed_dictionaries({}, optional={
    "name": st.sampled_from(["input", "output", "", "Input"]) | _JSON, "datatype": st.sampled_from(["UINT8", "FP32", "BYTES", "INT64", "BOOL", "FP16"]) | _JSON,
    "shape": st.lists(st.integers(-2, 1 << 40), max_size=5) | st.just([1, 1, 8, 8]) | _JSON, "data": st.lists(st.integers(-300, 300), max_size=70) | _JSON,
    "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 1 << 33) | st.just(64)}) | _JSON,
})  # fmt: skip
_BODY = st.fixed_dictionaries({}, optional={
    "inputs": st.lists(_TENSOR, max_size=3) | _JSON, "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["output", "x"]), "parameters": _JSON}), max_size=2) | _JSON,
    "id": _JSON, "parameters": _JSON,
})  # fmt: skip
_ENCODINGS = st.sampled_from([{}, {}, {}, {"content-encoding": "gzip"}, {"content-encoding": "br"}, {"accept-encoding": "gzip"}])


def by_hypothesis(server: Server, count: int) -> Counter[str]:
    """Requests by their status."""
    codes, connection = Counter[str](), http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(_BODY | _JSON, st.binary(max_size=200), st.integers(-1, 300) | st.none() | st.just("x"), _ENCODINGS)
    def ask(content: Any, tail: bytes, length: Any, encoding: dict[str, str]) -> None:
        said = json.dumps(content).encode()
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(said) if length is None else length), **encoding}
        codes[_status(connection, INFER, said + tail, headers)] += 1

    ask()
    return codes


def _status(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> str:
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return "closed"
    return "503 with Retry-After" if answer.status == 503 and answer.getheader("retry-after") else str(answer.status)


# ---------------------------------------------------------------- bare sockets


def on_sockets(server: Server, count: int) -> Counter[str]:
    rng, codes = random.Random(count), Counter[str]()
    ways = (_cut_off, _too_long, _too_large, _endless, _nonsense, _two_lengths, _long_header, _truncated_picture)
    for _ in range(count):
        codes[_answer(server.port, rng.choice(ways)(rng))] += 1
    return codes


def _request(body: bytes, path: str = INFER, *more: str, length: int | None = None) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body) if length is None else length}", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _cut_off(rng: random.Random) -> bytes:
    whole = _request(picture_request())
    return whole[: rng.randrange(1, len(whole))]


def _too_long(rng: random.Random) -> bytes:
    return _request(picture_request(), length=rng.randrange(1, 100)) + rng.randbytes(rng.randrange(0, 300))


def _too_large(rng: random.Random) -> bytes:
    return _request(rng.randbytes(100), length=rng.choice([1 << 30, 1 << 62, 1 << 80, 10_000_000]))


def _endless(rng: random.Random) -> bytes:
    chunk = rng.randbytes(60_000)
    return b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + (f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n") * rng.randrange(1, 12)


def _nonsense(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 400))


def _two_lengths(_: random.Random) -> bytes:
    return _request(picture_request(), INFER, "transfer-encoding: chunked", "content-length: 5")


def _long_header(rng: random.Random) -> bytes:
    return _request(picture_request(), INFER, f"x: {'y' * rng.choice([100, 10_000, 200_000])}")


def _truncated_picture(rng: random.Random) -> bytes:
    body = b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(0, 200))
    return _request(body, "/predict").replace(b"application/json", b"image/png", 1)


def _answer(port: int, sent: bytes) -> str:
    """The status of what comes back, where anything does."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            said = b""
            while part := connection.recv(65536):
                said += part
        except OSError:
            return "closed"
    status = re.match(rb"HTTP/1\.1 (\d{3})", said)
    if status is None:
        return "nothing"
    return "503 with Retry-After" if status[1] == b"503" and b"retry-after" in said.lower() else status[1].decode()


def slow(server: Server) -> None:
    """Connections that stay open and send a byte at a time, while others are served."""

    def drip(send: Callable[[], bytes]) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            ends = time.monotonic() + SLOW_SECONDS
            for byte in send():
                if time.monotonic() > ends:
                    break
                connection.sendall(bytes([byte]))
                time.sleep(0.05)

    threads = [threading.Thread(target=drip, args=(lambda: _request(picture_request()),)) for _ in range(SLOW)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------- schemathesis


def by_schemathesis(program: str, server: Server, count: int) -> dict[str, Any]:
    """What it finds among about so many requests of the server's own description."""
    address = f"http://127.0.0.1:{server.port}"
    operations = sum(len(methods) for methods in json.loads(server.ask("GET", "/openapi.json")[2])["paths"].values())
    words = [program, "run", f"{address}/openapi.json", "--url", address, "--checks", "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance",
             "--max-examples", str(max(1, count // (2 * operations))), "--seed", "1", "--no-color"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "said": done.stdout[-3000:]}


if __name__ == "__main__":
    main()
