"""Real clients, unmodified: Triton's and KServe's in an environment of their own (TENFOLD_CLIENTS names its Python), and one in R."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.serving import images_bundle, serving

from tenfold.bundle import Bundle

HERE = Path(__file__).parent
PIXELS = np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    bundle = images_bundle(tmp_path_factory.mktemp("clients") / "bundle")
    with serving(f"small={bundle}") as server:
        yield server, Bundle.load(bundle)


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("TENFOLD_CLIENTS")
    if not found:
        pytest.skip("no environment with clients: pip install -r tests/clients/requirements.txt into one, and set TENFOLD_CLIENTS to its Python")
    return found


def said(*words: str) -> dict:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found


def test_tritons_client(served, python: str) -> None:
    server, bundle = served
    found = said(python, str(HERE / "clients/triton.py"), str(server.port), "small")
    assert found["server"] == "tenfold"
    assert found["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 1, 8, 8]}]
    assert len(found["answers"]) == 8
    wanted = bundle.predict(PIXELS)
    for how, answer in found["answers"].items():
        np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-6, err_msg=how)
    best = np.argsort(-wanted, axis=1)[:, :2]
    assert [[c.split(":")[1:] for c in row] for row in found["classes"]] == [[[str(i), ["cat", "dog", "eel"][i]] for i in row] for row in best]
    assert found["error"]["status"] == "400"
    assert "shape" in found["error"]["message"]


def test_kserves_client(served, python: str) -> None:
    server, bundle = served
    found = said(python, str(HERE / "clients/kserve_client.py"), str(server.port), "small")
    assert [found[k] for k in ("live", "ready", "model_ready")] == [True] * 3
    assert len(found["answers"]) == 2
    for how, answer in found["answers"].items():
        np.testing.assert_allclose(answer, bundle.predict(PIXELS), rtol=1e-5, atol=1e-6, err_msg=how)


def test_a_client_in_r(served, tmp_path: Path) -> None:
    rscript = shutil.which("Rscript")
    if rscript is None:
        pytest.skip("Rscript is not installed: apt install r-base-core r-cran-httr")
    server, bundle = served
    np.savetxt(tmp_path / "rows.csv", PIXELS.reshape(3, -1), fmt="%d", delimiter=",")
    done = subprocess.run([rscript, str(HERE.parent / "docs/client.R"), f"http://127.0.0.1:{server.port}", "small", str(tmp_path / "rows.csv")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.loadtxt(done.stdout.splitlines(), delimiter=","), bundle.predict(PIXELS), rtol=1e-4, atol=1e-5)
