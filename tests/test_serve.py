"""Real servers: what they answer, what they refuse, and that they drop nothing while they end, reload or are replaced."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.serving import Server, command, images_bundle, load, serving, slow_bundle, table_bundle, text_bundle

from tenfold.bundle import Bundle
from tenfold.serve.app import application
from tenfold.serve.pool import CANARY, STABLE, Wanted, read_there, write_wanted
from tenfold.serve.service import Service
from tenfold.serve.settings import Settings
from tenfold.serve.tokens import LOOK_SECONDS

PICTURE = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {"images": images_bundle(folder / "images"), "table": table_bundle(folder / "table"), "text": text_bundle(folder / "text"), "slow": slow_bundle(folder / "slow")}


@pytest.fixture(scope="module")
def server(bundles):
    with serving(f"images={bundles['images']}", f"table@7={bundles['table']}", f"text={bundles['text']}") as found:
        yield found
        assert found.end() == 0
    assert len(found.written) > 10
    lines = [json.loads(line) for line in found.written]
    assert all(set(line) == {"time", "method", "path", "status", "ms"} for line in lines), "and nothing of what was sent"


def request_of(x: np.ndarray, name: str = "input", datatype: str = "UINT8") -> dict:
    return {"inputs": [{"name": name, "shape": list(x.shape), "datatype": datatype, "data": x.tolist()}]}


# ---------------------------------------------------------------- the protocol


def test_the_server_and_its_models_say_what_they_are(server: Server) -> None:
    assert server.json("GET", "/v2/health/live") == (200, {"live": True})
    assert server.json("GET", "/v2/health/ready") == (200, {"ready": True})
    assert server.json("GET", "/v2")[1]["name"] == "tenfold"
    status, model = server.json("GET", "/v2/models/table/versions/7")
    assert (status, model["versions"], model["platform"]) == (200, ["7"], "onnx_onnxv1")
    assert model["inputs"] == [{"name": "input_0", "datatype": "FP32", "shape": [-1, 4]}, {"name": "input_1", "datatype": "INT64", "shape": [-1]}]
    assert model["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 1]}]
    assert server.json("GET", "/v2/models/images/ready") == (200, {"name": "images", "ready": True})
    assert server.json("GET", "/v2/models/images/manifest")[1]["schema"] == 1
    for path in ("/v2/models/none", "/v2/models/table/versions/8", "/v2/nothing", "/v2/"):
        status, answer = server.json("GET", path)
        assert status == 404
        assert isinstance(answer["error"], str)
    assert server.json("GET", "/v2/models/images/infer")[0] == 405


def test_answers_are_the_bundles_own(server: Server, bundles) -> None:
    pictures = np.random.default_rng(5).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    wanted = Bundle.load(bundles["images"]).predict(pictures)
    status, answer = server.json("POST", "/v2/models/images/infer", request_of(pictures) | {"id": "mine"})
    assert (status, answer["id"], answer["model_name"], answer["model_version"]) == (200, "mine", "images", "1")
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], answer["outputs"][0]["shape"]), wanted, rtol=1e-5, atol=1e-6)
    head = json.dumps({"inputs": [{"name": "input", "shape": [3, 1, 8, 8], "datatype": "UINT8", "parameters": {"binary_data_size": 192}}], "parameters": {"binary_data_output": True}}).encode()
    status, headers, content = server.ask("POST", "/v2/models/images/infer", head + pictures.tobytes(), {"Inference-Header-Content-Length": str(len(head))})
    size = int(headers["inference-header-content-length"])
    assert status == 200
    np.testing.assert_allclose(np.frombuffer(content[size:], "<f4").reshape(3, 3), wanted, rtol=1e-5, atol=1e-6)
    packed = gzip.compress(json.dumps(request_of(pictures)).encode())
    assert server.json("POST", "/v2/models/images/infer", packed, {"content-encoding": "gzip"})[1]["outputs"] == answer["outputs"]


def test_requests_of_many_examples_are_computed_in_parts(server: Server, bundles) -> None:
    pictures = np.random.default_rng(6).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    before = server.metrics()
    answer = server.json("POST", "/v2/models/images/infer", request_of(pictures))[1]
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (200, 3)), Bundle.load(bundles["images"]).predict(pictures), rtol=1e-5, atol=1e-6)
    name = 'tenfold_predictions_total{class="%s",model="images",version="1"}'
    after = server.metrics()
    assert sum(after.get(name % c, 0) - before.get(name % c, 0) for c in ("cat", "dog", "eel")) == 200
    status, refused = server.json("POST", "/v2/models/images/infer", request_of(np.zeros((257, 1, 8, 8), np.uint8)))
    assert status == 400
    assert "from 1 to 256" in refused["error"]


def test_what_a_model_cannot_compute_is_the_requests_fault(server: Server) -> None:
    content = {"inputs": [
        {"name": "input_0", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}, {"name": "input_1", "shape": [1], "datatype": "INT64", "data": [99]},
    ]}  # fmt: skip
    status, answer = server.json("POST", "/v2/models/table/infer", content)
    assert status == 400
    assert "cannot compute" in answer["error"]
    content["inputs"][1]["data"] = [3]
    assert server.json("POST", "/v2/models/table/infer", content)[0] == 200


# ---------------------------------------------------------------- for people


def test_people_send_what_they_have(server: Server, bundles) -> None:
    wanted = Bundle.load(bundles["images"]).predict(PICTURE)
    picture = io.BytesIO()
    Image.fromarray(PICTURE[0, 0]).save(picture, "PNG")
    table = ",".join(map(str, PICTURE.ravel())).encode()
    sent = [
        (json.dumps(PICTURE.tolist()).encode(), "application/json"), (json.dumps(PICTURE[0].tolist()).encode(), "application/json"),
        (json.dumps({"inputs": {"input": PICTURE.tolist()}}).encode(), "application/json; charset=utf-8"), (picture.getvalue(), "image/png"), (table, "text/csv"),
    ]  # fmt: skip
    for body, kind in sent:
        status, answer = server.json("POST", "/predict?model=images", body, {"content-type": kind})
        assert status == 200, answer
        np.testing.assert_allclose(answer["outputs"], wanted, rtol=1e-5)
        assert answer["predictions"][0]["label"] == ["cat", "dog", "eel"][int(wanted.argmax())]
        assert sum(b["probability"] for b in answer["predictions"][0]["best"]) == pytest.approx(1)
    status, answer = server.json("POST", "/predict?model=text", b"abc", {"content-type": "text/plain"})
    assert status == 200
    assert {b["label"] for b in answer["next"][0]} == set("abc ")
    both = {"inputs": {"input_0": [[0, 0, 0, 0]], "input_1": [1]}}
    assert server.json("POST", "/predict?model=table&version=7", both)[0] == 200


@pytest.mark.parametrize(("path", "body", "kind", "status", "message"), [
    ("/predict", b"[]", "application/json", 400, "say which model"), ("/predict?model=no", b"[]", "application/json", 404, "no model"),
    ("/predict?model=images", b"[", "application/json", 400, "not JSON"), ("/predict?model=images", b"[]", "application/json", 400, "shape"),
    ("/predict?model=images", b"{}", "application/json", 400, "inputs"), ("/predict?model=images", b"GIF89a", "image/gif", 415, "image/png"),
    ("/predict?model=images", b"nothing", "image/png", 400, "cannot be decoded"), ("/predict?model=images", b"a,b\n1,2\n", "text/csv", 400, "2 columns"),
    ("/predict?model=images", b"\xff", "text/csv", 400, "UTF-8"), ("/predict?model=text", b"xyz", "text/plain", 400, "knows no"),
    ("/predict?model=text", b"", "text/plain", 400, "empty"), ("/predict?model=table", b"1", "text/csv", 415, "2 inputs"),
    ("/predict?model=table", b'{"inputs": {"input_0": [[1,2,3,4]]}}', "application/json", 400, "takes the inputs"),
])  # fmt: skip
def test_what_people_send_wrongly_is_said_to_them(server: Server, path, body, kind, status, message) -> None:
    found, answer = server.json("POST", path, body, {"content-type": kind})
    assert (found, message in answer["error"]) == (status, True), answer


def test_a_picture_that_is_too_large_is_not_unpacked(server: Server) -> None:
    bomb = io.BytesIO()
    Image.new("1", (3_000, 3_000)).save(bomb, "PNG")
    status, answer = server.json("POST", "/predict?model=images", bomb.getvalue(), {"content-type": "image/png"})
    assert status in (400, 413)
    assert "pixels" in answer["error"] or "bytes" in answer["error"]


def test_the_page_holds_nothing_from_elsewhere(server: Server) -> None:
    status, headers, content = server.ask("GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in content
    assert b"https://" not in content
    assert server.json("GET", "/openapi.json")[1]["openapi"].startswith("3.1")


# ---------------------------------------------------------------- what is not let in


def raw(port: int, *parts: bytes, seconds: float = 20.0, wait: float = 0.0) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(wait)
        out = b""
        try:
            while part := connection.recv(65536):
                out += part
        except ConnectionResetError:  # what was sent after the answer was not read any more
            if not out:
                raise
        return out


def test_limits_on_what_is_sent(bundles) -> None:
    with serving(bundles["images"], max_body=10_000, max_connections=8, head_seconds=0.5, body_seconds=0.5) as server:
        post = b"POST /v2/models/small/infer HTTP/1.1\r\nhost: x\r\n"
        assert b" 413 " in raw(server.port, post + b"content-length: 99999999\r\n\r\n" + b"x" * 1000).splitlines()[0]
        assert b" 413 " in raw(server.port, post + b"transfer-encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n" + b"2000\r\n" + b"x" * 8192 + b"\r\n0\r\n\r\n").splitlines()[0]
        packed = gzip.compress(b" " * 50_000_000)
        assert len(packed) > 10_000
        assert b" 413 " in raw(server.port, post + b"connection: close\r\ncontent-encoding: gzip\r\ncontent-length: 9000\r\n\r\n" + gzip.compress(b" " * 8_000_000)[:9000].ljust(9000)).splitlines()[0]
        assert b" 415 " in raw(server.port, post + b"connection: close\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}").splitlines()[0]
        assert b" 408 " in raw(server.port, post + b"content-length: 100\r\nconnection: close\r\n\r\n{").splitlines()[0], "a body that does not come"
        assert b" 408 " in raw(server.port, b"POST /v2 HTT").splitlines()[0], "headers that do not come"
        assert b" 408 " in raw(server.port, b"").splitlines()[0]
        assert b" 431 " in raw(server.port, b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(60))).splitlines()[0]
        for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"A" * 50_000):
            answer = raw(server.port, nonsense)
            assert answer.splitlines()[0].split()[1] in (b"400", b"404", b"431"), answer
            assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        assert b" 503 " in raw(server.port, b"GET / HTTP/1.1\r\n\r\n").splitlines()[0]
        for connection in connections:
            connection.close()
        time.sleep(0.3)
        assert server.json("GET", "/v2/health/ready")[0] == 200
        assert server.end() == 0
        assert not [line for line in server.lines if "Traceback" in line], "".join(server.lines)


def test_requests_of_a_connection_are_answered_in_their_order_whatever_comes_with_them(bundles) -> None:
    """Those that come whole are answered at once, others by the application: cut in two, too large, wrong, or of a model that takes its time."""
    bodies = [json.dumps(request_of(PICTURE) | {"id": str(i)}).encode() for i in range(40)]
    slow = json.dumps(request_of(np.zeros((1, 4)), datatype="FP32") | {"id": "slow"}).encode()

    def post(body: bytes, model: str = "images", more: bytes = b"") -> bytes:
        return b"POST /v2/models/%b/infer HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (model.encode(), more, len(body), body)

    def ids(answers: bytes) -> list[str]:
        return re.findall(r'"id":"(\w+)"|"(error)"', answers.decode())

    with serving(f"images={bundles['images']}", f"slow={bundles['slow']}", head_seconds=0.5) as server:
        named = [post(b) for b in bodies]
        last = post(bodies[9], more=b"connection: close\r\n")
        together = raw(server.port, b"".join(named[:8]) + last)
        assert [a or b for a, b in ids(together)] == [*map(str, range(8)), "9"]
        assert together.count(b"connection: close") == 1
        mixed = raw(server.port, named[0] + post(slow, "slow") + named[1] + post(b"{}") + named[2] + post(bodies[3], "none") + last)
        assert [a or b for a, b in ids(mixed)] == ["0", "slow", "1", "error", "2", "error", "9"]
        half = len(named[1]) - 40
        cut = raw(server.port, named[0] + named[1][:half], named[1][half:] + last, wait=0.1)
        assert [a or b for a, b in ids(cut)] == ["0", "1", "9"]
        chunked = b"POST /v2/models/images/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(bodies[1]), bodies[1])
        assert [a or b for a, b in ids(raw(server.port, chunked + named[2] + last))] == ["1", "2", "9"]
        old = post(bodies[1]).replace(b"HTTP/1.1", b"HTTP/1.0")
        assert [a or b for a, b in ids(raw(server.port, old))] == ["1"], "closed after it"
        many = ids(raw(server.port, b"".join(named)))
        assert [a or b for a, b in many] == [str(i) for i in range(len(many))], "too many on one connection: it is closed"
        nonsense = raw(server.port, named[0] + b"\x16\x03\x01 nonsense\r\n\r\n")
        assert [a or b for a, b in ids(nonsense)] == ["0", "error"]
        assert nonsense.index(b" 200 ") < nonsense.index(b" 400 ")
        long = raw(server.port, named[0] + b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n")
        assert [a or b for a, b in ids(long)] == ["0", "error"]
        assert b" 431 " in long
        trailers = chunked[:-2] + b"content-encoding: gzip\r\n\r\n"
        assert [a or b for a, b in ids(raw(server.port, trailers + last))] == ["1", "9"], "trailers say nothing"
        flood = chunked[:-2] + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(60))
        assert b" 200 " not in raw(server.port, flood), "and there is an end to them"
        wide = json.dumps(request_of(np.tile(PICTURE, (100, 1, 1, 1))) | {"id": "wide"}).encode()
        assert [a or b for a, b in ids(raw(server.port, named[0] + post(wide) + last))] == ["0", "wide", "9"]
        silent = raw(server.port, named[0], b"\r\n", wait=0.2)
        assert [a or b for a, b in ids(silent)] == ["0"], "closed, as nothing comes of what has begun"
        assert server.json("POST", "/v2/models/images/infer", bodies[5])[1]["id"] == "5"
        before = server.metrics()['tenfold_requests_total{code="200",model="images",version="1"}']
        server.json("POST", "/v2/models/images/infer", bodies[5])
        assert server.metrics()['tenfold_requests_total{code="200",model="images",version="1"}'] == before + 1
        assert server.end() == 0
        assert not [line for line in server.lines if "Traceback" in line], "".join(server.lines)


def test_too_many_at_once_are_told_to_come_again(bundles) -> None:
    body = json.dumps(request_of(np.zeros((256, 4)), datatype="FP32")).encode()
    with serving(bundles["slow"], max_requests=2) as server:
        found = list[tuple[int, dict]]()

        def ask() -> None:
            status, headers, _ = server.ask("POST", "/v2/models/small/infer", body)
            found.append((status, headers))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {status for status, _ in found} == {200, 503}
        assert all(headers["retry-after"] == "1" for status, headers in found if status == 503)
        metrics = server.metrics()
        assert metrics['tenfold_other_requests_total{code="503"}'] == sum(status == 503 for status, _ in found)
        assert metrics['tenfold_requests_total{code="200",model="small",version="1"}'] == sum(status == 200 for status, _ in found)


def test_only_who_has_a_token_is_let_in_and_tokens_change(bundles, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first\nsecond\n")
    with serving(bundles["images"], token_file=str(tokens), host="0.0.0.0") as server:  # noqa: S104
        def status(token: str | None, path: str = "/v2/models/small") -> int:
            return server.json("GET", path, headers={} if token is None else {"authorization": token})[0]

        assert [status(t) for t in (None, "Bearer", "Bearer third", "Basic first", "first", "Bearer first", "bearer second")] == [401] * 5 + [200] * 2
        assert status(None, "/v2/health/ready") == 200
        assert server.ask("GET", "/")[0] == 200
        tokens.write_text("third\n")
        time.sleep(LOOK_SECONDS + 0.5)
        assert [status(t) for t in ("Bearer first", "Bearer third")] == [401, 200]
        tokens.write_text("\n")
        time.sleep(LOOK_SECONDS + 0.5)
        assert status("Bearer third") == 401, "a file that was emptied lets nobody in"


@pytest.mark.parametrize(("options", "message"), [
    (["--host", "0.0.0.0"], "give --token-file, or --no-auth"),  # noqa: S104
    (["--token-file", "nothing"], "cannot be read"), (["--token-file", "empty"], "holds no token"),
    (["--tls-cert", "empty"], "TLS needs both"), (["--tls-cert", "empty", "--tls-key", "empty"], "no certificate with its key"),
    (["--port", "70000"], "no port"), (["--port", "²"], "no whole number"), (["--timeout", "nan"], "no time"), (["--max-examples", "0"], "give 1 or more"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(bundles, tmp_path: Path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    with command(bundles["images"], "--metrics-port", "0", *(["--port", "0"] if "--port" not in options else []), *options) as server:
        assert server.process.wait(60) == 2
        time.sleep(0.1)
        assert message in "".join(server.lines)
        assert "Traceback" not in "".join(server.lines)


def damaged(bundle: Path, target: Path, what: str) -> Path:
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    if what == "graph":
        (target / "model.onnx").write_bytes((target / "model.onnx").read_bytes() + b"x")
    elif what == "golden":
        (target / "golden.npz").unlink()
    changes = {
        "schema": {"schema": 99}, "cpu": {"cpu_class": "x86_64+avx2+neither_here"}, "session": {"session": {"engine": "onnxruntime", "speed": 3}},
        "outside": {"files": manifest["files"] | {"../model.onnx": "0"}}, "memory": {"costs": {"peak_memory_bytes": 1 << 50}}, "inputs": {"inputs": [{"name": "input"}]},
    }  # fmt: skip
    (target / "manifest.json").write_text(json.dumps(manifest | changes.get(what, {})))
    return target


@pytest.mark.parametrize(("what", "message"), [
    ("graph", "damaged"), ("golden", "lacks golden.npz"), ("schema", "upgrade Tenfold"), ("cpu", "has no neither_here"), ("session", "session that is none"),
    ("outside", "outside the bundle"), ("memory", "raise the limit"), ("inputs", "copy the bundle again"), ("nothing", "is no bundle"),
])  # fmt: skip
def test_a_bundle_that_does_not_hold_never_becomes_ready(bundles, tmp_path: Path, what: str, message: str) -> None:
    bundle = tmp_path / "missing" if what == "nothing" else damaged(bundles["images"], tmp_path / "bundle", what)
    with command(bundle, "--port", "0", "--metrics-port", "0") as server:
        assert server.process.wait(60) == 2
        time.sleep(0.1)
        assert message in "".join(server.lines)
        assert "Traceback" not in "".join(server.lines)


def test_force_serves_on_another_machine_and_says_so(bundles, tmp_path: Path) -> None:
    bundle = damaged(bundles["images"], tmp_path / "bundle", "cpu")
    with serving(bundle, force=True) as server:
        server.says("has no neither_here")
        assert server.json("GET", "/v2/health/ready")[0] == 200


def test_a_port_that_is_taken_is_named(bundles) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with command(bundles["images"], "--port", str(port), "--metrics-port", "0") as server:
            assert server.process.wait(60) == 2
            time.sleep(0.1)
            assert f"port {port} of 127.0.0.1 cannot be had" in "".join(server.lines)


def certify(folder: Path) -> None:
    """A certificate of its own, and its key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def test_tls(bundles, tmp_path: Path) -> None:
    certify(tmp_path)
    with serving(bundles["images"], certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem")) as server:
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        with socket.create_connection(("127.0.0.1", server.port)) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
            wrapped.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert b" 200 " in wrapped.recv(65536)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", server.port)) as plain, pytest.raises(OSError):
            old.wrap_socket(plain)
        certify(tmp_path)
        server.says("was read again", 3 * LOOK_SECONDS)
        renewed = ssl.get_server_certificate(("127.0.0.1", server.port))
        assert renewed.split() == (tmp_path / "cert.pem").read_text().split()


# ---------------------------------------------------------------- metrics


def test_what_a_cascade_hands_on_and_what_drifts_is_told(bundles) -> None:
    with serving(bundles["images"], access_log=False) as server:
        usual = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
        run = Bundle.load(bundles["images"]).run
        handed = sum(int((run([x[None]])[1] < 0.6).sum()) for x in usual)
        for start in range(0, 2000, 5):
            five = json.dumps(request_of(np.take(usual, range(start, start + 5), axis=0, mode="wrap"))).encode()
            assert server.ask("POST", "/v2/models/small/infer", five)[0] == 200
        metrics = server.metrics()
        labels = 'model="small",version="1"'
        assert metrics[f"tenfold_handed_on_total{{{labels}}}"] == 10 * handed
        assert 0 < handed < 200
        of_mean = f'tenfold_input_drift{{feature="mean",input="input",{labels}}}'
        assert metrics[of_mean] < 0.25
        body = json.dumps(request_of(usual // 4)).encode()  # darker
        for _ in range(400):
            server.ask("POST", "/v2/models/small/infer", body)
        assert server.metrics()[of_mean] > 1.0
        assert f"tenfold_prediction_drift{{{labels}}}" in metrics
        assert metrics["tenfold_ready"] == 1


# ---------------------------------------------------------------- ending, reloading


INFER = "/v2/models/small/infer"


def picture_request() -> bytes:
    return json.dumps(request_of(PICTURE)).encode()


@pytest.mark.parametrize("drain", [0.0, 0.5])
def test_nothing_is_dropped_when_it_ends(bundles, drain: float) -> None:
    with serving(bundles["images"], drain_seconds=drain, access_log=False) as server, load(server.port, INFER, picture_request()) as clients:
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        if drain:
            time.sleep(0.1)
            status, headers, _ = server.ask("GET", "/v2/health/ready")
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert server.process.wait(30) == 0
        for client in clients:
            client.end()
        assert [f for c in clients for f in c.failed] == []
        assert all(c.answered > 10 for c in clients)


def test_what_has_begun_is_finished_after_a_sigterm(bundles) -> None:
    body = json.dumps(request_of(np.zeros((256, 4)), datatype="FP32")).encode()
    with serving(bundles["slow"]) as server:
        found = list[int]()
        threads = [threading.Thread(target=lambda: found.append(server.ask("POST", INFER, body)[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert server.end() == 0
        for thread in threads:
            thread.join()
        assert found == [200] * 8, "those in the backlog as well"


def test_a_second_signal_ends_at_once(bundles) -> None:
    with serving(bundles["images"], drain_seconds=60.0) as server:
        server.process.send_signal(signal.SIGINT)
        server.says("draining")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 0


def test_a_bundle_is_exchanged_without_a_failed_request_and_a_bad_one_is_not_taken(tmp_path: Path) -> None:
    bundle = images_bundle(tmp_path / "bundle")
    with serving(bundle, access_log=False) as server, load(server.port, INFER, picture_request()) as clients:
        time.sleep(0.3)
        images_bundle(bundle, seed=9)
        server.process.send_signal(signal.SIGHUP)
        server.says("reloaded small 1")
        time.sleep(0.3)
        (bundle / "model.onnx").write_bytes(b"broken")
        server.process.send_signal(signal.SIGHUP)
        server.says("reload: .*damaged.*served on")
        shutil.rmtree(bundle)
        server.process.send_signal(signal.SIGHUP)
        server.says("reload: .*is no bundle.*served on")
        time.sleep(0.2)
        for client in clients:
            client.end()
        assert [f for c in clients for f in c.failed] == []
        assert {len(c.answers) for c in clients} == {2}, "one of the bundle before, and one of that after"


@pytest.mark.parametrize("path", [INFER, "/v2/models/small"])
def test_a_failure_of_our_own_is_500_and_its_reason_stays_in_the_log(path: str, monkeypatch, caplog) -> None:
    service = Service([], Settings())
    monkeypatch.setattr(service, "find", lambda *_: 1 / 0)
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": picture_request(), "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST" if path == INFER else "GET", "path": path, "headers": [], "query_string": b"", "root_path": ""}
    with caplog.at_level(logging.ERROR, "tenfold.serve"):
        asyncio.run(application(service, None, None)(scope, receive, send))
    assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [500]
    assert sent[-1]["body"] == b'{"error":"the server failed: its log says why"}'
    assert "ZeroDivisionError" in caplog.text
    assert f"failed: {scope['method']} {path}" in caplog.text


# ---------------------------------------------------------------- pools


def there(folder: Path, wanted: int, track: str = STABLE, seconds: float = 30.0) -> list[dict]:
    """The servers of a pool, once so many are ready and no others are there."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if (folder / "there.json").exists():
            servers = read_there(folder)["servers"]
            if len([s for s in servers if s["ready"] and s["track"] == track]) == wanted == len([s for s in servers if s["track"] == track]):
                return servers
        time.sleep(0.05)
    raise AssertionError((folder / "there.json").read_text())


def test_a_pool_replaces_who_dies_and_exchanges_what_is_served(tmp_path: Path) -> None:
    one, two, pool = images_bundle(tmp_path / "one"), images_bundle(tmp_path / "two", seed=9), tmp_path / "pool"
    with command(one, "--port", "0", "--replicas", "2", "--pool", pool, "--no-access-log") as server:
        servers = there(pool, 2)
        assert json.loads((pool / "metrics.json").read_text()) == [{"targets": [f"127.0.0.1:{s['metrics_port']}"], "labels": {"track": STABLE}} for s in servers]
        server.port = read_there(pool)["port"]
        with load(server.port, INFER, picture_request()) as clients:
            time.sleep(0.3)
            write_wanted(pool, [Wanted(track=STABLE, bundles=(str(one),), count=2), Wanted(track=CANARY, bundles=(str(two),), count=1)])
            there(pool, 1, CANARY)
            time.sleep(0.3)
            write_wanted(pool, [Wanted(track=STABLE, bundles=(str(two),), count=2)])
            ends = time.monotonic() + 30
            while {tuple(s["bundles"]) for s in read_there(pool)["servers"]} != {(str(two),)} or len(read_there(pool)["servers"]) != 2:
                assert time.monotonic() < ends
                time.sleep(0.05)
            (pool / "wanted.json").write_text("nonsense")
            server.says("does not say what is to be served")
            write_wanted(pool, [Wanted(track=STABLE, bundles=(str(two),), count=2)])
            for client in clients:
                client.end()
            assert [f for c in clients for f in c.failed] == []
            assert sum(c.answered for c in clients) > 50
        servers = there(pool, 2)
        os.kill(servers[0]["pid"], signal.SIGKILL)
        server.says("ended with -9")
        ends = time.monotonic() + 30
        while servers[0]["pid"] in [s["pid"] for s in there(pool, 2)]:
            assert time.monotonic() < ends
        with command(one, "--port", "0", "--replicas", "2", "--pool", pool) as second:
            assert second.process.wait(60) == 2
            time.sleep(0.1)
            assert "has a supervisor already" in "".join(second.lines)
        assert server.end() == 0
    assert read_there(pool)["servers"] == []


def test_a_pool_of_what_cannot_be_served_ends(tmp_path: Path) -> None:
    with command(tmp_path / "missing", "--port", "0", "--replicas", "2") as server:
        assert server.process.wait(60) == 2
        time.sleep(0.1)
        assert "is no bundle" in "".join(server.lines)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return False


def test_servers_do_not_outlive_their_supervisor(bundles, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with command(bundles["images"], "--port", "0", "--replicas", "2", "--pool", pool) as server:
        pids = [s["pid"] for s in there(pool, 2)]
        server.process.kill()
        server.process.wait()
    ends = time.monotonic() + 20
    while any(map(is_running, pids)):
        assert time.monotonic() < ends
        time.sleep(0.1)
