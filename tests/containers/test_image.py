"""An image as it will run: hardened, without a shell, by digest, and the same each time."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.containers.conftest import TOKEN, ship
from tests.containers.node import address_of, podman
from tests.test_serve import INFER, picture_request

from tenfold.bundle import Bundle

HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--pids-limit=128", "--cpus=1")


@pytest.fixture(scope="module")
def token(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    return path


@contextmanager
def running(image: str, token: Path, *more: str) -> Iterator[str]:
    container = podman("run", "--detach", "--network=podman", *HARDENED, *more, f"--volume={token}:/run/tenfold/token:ro", image)
    try:
        yield container
    finally:
        podman("rm", "--force", "--time=0", container, check=False)


def ask(host: str, method: str, path: str, body: bytes | None = None, *, token: str | None = TOKEN) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, 8080, timeout=10)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_ready(container: str, seconds: float = 30.0) -> str:
    host, ends = address_of(container), time.monotonic() + seconds
    while True:
        try:
            if ask(host, "GET", "/v2/health/ready")[0] == 200:
                return host
        except OSError:
            pass
        assert time.monotonic() < ends, podman("logs", container, check=False)
        time.sleep(0.05)


def test_the_same_bundle_has_the_same_digest(shipped, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))  # its root is made anew too
    assert ship(shipped["one"].bundle, tmp_path / "again").digest == shipped["one"].digest


def test_it_serves_hardened_and_ends_with_0(shipped, images, token: Path) -> None:
    with running(images[shipped["one"].digest], token, "--memory=192m") as container:
        host = wait_ready(container)
        assert ask(host, "GET", "/v2", token=None)[0] == 401
        status, body = ask(host, "POST", INFER, picture_request())
        assert status == 200, body
        assert podman("top", container, "user", "group", "seccomp", "capeff").split()[-4:] == ["65532", "65532", "filter", "none"]
        connection = http.client.HTTPConnection(host, 8081, timeout=10)
        connection.request("GET", "/metrics")
        assert b"tenfold_requests_total" in connection.getresponse().read()
        podman("stop", "--time=20", container)
        assert podman("inspect", "--format={{.State.ExitCode}}", container) == "0"


def test_tritons_client_is_served(shipped, images, token: Path) -> None:
    python = os.environ.get("TENFOLD_CLIENTS")
    if not python:
        pytest.skip("no environment with clients: pip install -r tests/clients/requirements.txt into one, and set TENFOLD_CLIENTS to its Python")
    asks = f"""
import json, numpy as np
from tritonclient import http
client = http.InferenceServerClient("HOST:8080")
pixels = np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)
given = http.InferInput("input", list(pixels.shape), "UINT8")
given.set_data_from_numpy(pixels)
print(json.dumps(client.infer("small", [given], headers={{"Authorization": "Bearer {TOKEN}"}}).as_numpy("output").tolist()))
"""
    with running(images[shipped["one"].digest], token) as container:
        done = subprocess.run([python, "-c", asks.replace("HOST", wait_ready(container))], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        pixels = np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)
        np.testing.assert_allclose(json.loads(done.stdout), Bundle.load(shipped["one"].bundle).predict(pixels), rtol=1e-5, atol=1e-6)


def test_it_has_no_shell_and_nothing_that_gives_rights(shipped, images) -> None:
    for program in ("/bin/sh", "/usr/bin/env", "/usr/bin/perl", "/usr/bin/dpkg"):
        done = subprocess.run(["podman", "run", "--rm", "--network=none", f"--entrypoint={program}", images[shipped["one"].digest]], capture_output=True, text=True, check=False)
        assert done.returncode in (126, 127), program
    blobs = shipped["one"].folder / "image" / "blobs" / "sha256"
    names: list[str] = []
    for blob in blobs.iterdir():
        if tarfile.is_tarfile(blob):
            with tarfile.open(blob) as layer:
                assert not [m.name for m in layer if m.mode & 0o6000 or (m.mode & 0o1002 == 0o002 and not m.issym())]
                names += layer.getnames()
    assert not [n for n in names if "torch" in n.split("/")]
    assert "usr/share/sbom/image.cdx.json" in names


def test_too_little_memory_ends_it_and_says_so_by_its_code(shipped, images, token: Path) -> None:
    with running(images[shipped["one"].digest], token, "--memory=24m", "--memory-swap=24m") as container:
        assert podman("wait", container) == "137"


def test_without_a_token_it_does_not_begin(shipped, images) -> None:
    done = subprocess.run(["podman", "run", "--rm", "--network=podman", *HARDENED, images[shipped["one"].digest]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "token" in done.stderr


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_other_tools_read_it(shipped) -> None:
    found = json.loads(subprocess.run(["skopeo", "inspect", f"oci:{shipped['one'].folder / 'image'}"], capture_output=True, text=True, check=True).stdout)
    assert found["Digest"] == shipped["one"].digest
    assert found["Labels"]["org.opencontainers.image.title"] == "small"
    assert found["Architecture"] == "amd64"


@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed")
def test_a_registry_keeps_its_digest(shipped, tmp_path: Path) -> None:
    configuration = tmp_path / "registry.yml"
    configuration.write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\nhttp: {{addr: '127.0.0.1:5005'}}\n")
    with subprocess.Popen(["docker-registry", "serve", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as registry:
        try:
            time.sleep(1)
            target = "docker://127.0.0.1:5005/team/small:1"
            subprocess.run(["skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{shipped['one'].folder / 'image'}", target], check=True, capture_output=True)
            found = json.loads(subprocess.run(["skopeo", "inspect", "--tls-verify=false", target], capture_output=True, text=True, check=True).stdout)
            assert found["Digest"] == shipped["one"].digest
        finally:
            registry.terminate()

