"""A bundle refuses to run when it is not what was certified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tenfold.bundle import GOLDEN_EXAMPLES, Bundle, BundleError, CpuClassWarning, golden_inputs
from tenfold.errors import TenfoldError
from tenfold.pipeline import Result
from tenfold.store import file_hash
from tenfold.testing import blobs


@pytest.fixture
def bundle(finished: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder / "bundle", tmp_path / "bundle"))


def change(bundle: Path, **values: object) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text()) | values
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_holds_what_the_plan_says(bundle: Path) -> None:
    assert {f.name for f in bundle.iterdir()} == {"model.onnx", "manifest.json", "golden.npz", "sbom.json"}
    manifest = json.loads((bundle / "manifest.json").read_text())
    for key in ("schema", "session", "inputs", "outputs", "labels", "quality", "costs", "recipe", "versions", "files", "cpu_class"):
        assert key in manifest
    assert set(manifest["files"]) == {"model.onnx", "golden.npz", "sbom.json"}
    assert json.loads((bundle / "sbom.json").read_text())["bomFormat"] == "CycloneDX"


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "sbom.json"])
def test_a_changed_byte_is_noticed(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(bundle)


def test_golden_inputs_are_such_as_the_model_was_made_for() -> None:
    """Categories stay whole and within what was seen of each, and what is above zero stays so."""
    rng = np.random.default_rng(0)
    table = np.stack([rng.integers(0, 3, 200), rng.integers(0, 5000, 200), rng.lognormal(0, 3, 200), rng.normal(0, 1, 200)], axis=1)
    tokens, flags = rng.integers(0, [3, 5000], (200, 2)), rng.random((200, 4)) < [0.0, 1.0, 0.5, 0.5]
    made, whole, made_flags = golden_inputs([table.astype(np.float32), tokens, flags])
    assert made.shape == (GOLDEN_EXAMPLES, 4)
    assert made.dtype == np.float32
    assert (made[:, :2] == np.rint(made[:, :2])).all()
    assert (made[:, 3] != np.rint(made[:, 3])).any()
    assert (made[:, 0] <= 2).all()
    assert made[:, 1].max() > 2
    assert np.isfinite(np.log(made[:, 2])).all()
    assert whole.dtype == tokens.dtype
    assert (whole[:, 0] <= 2).all()
    assert whole[:, 1].max() > 2
    assert made_flags.dtype == bool
    assert not made_flags[:, 0].any()
    assert made_flags[:, 1].all()


def test_golden_outputs_that_do_not_hold_are_refused(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["output"] = arrays["output"] + 1
    np.savez(bundle / "golden.npz", **arrays)
    files = {f.name: file_hash(f) for f in bundle.iterdir() if f.name != "manifest.json"}
    change(bundle, files=files)
    with pytest.raises(BundleError, match="answers otherwise"):
        Bundle.load(bundle)


def test_a_newer_schema_a_missing_file_and_no_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    change(bundle, schema=99)
    with pytest.raises(BundleError, match="upgrade"):
        Bundle.load(bundle)
    change(bundle, schema=1)
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match="lacks model.onnx"):
        Bundle.load(bundle)
    with pytest.raises(BundleError, match="no bundle"):
        Bundle.load(tmp_path)


def test_a_manifest_that_lacks_something_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["session"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lacks session"):
        Bundle.load(bundle)


def test_a_manifest_cannot_point_outside(bundle: Path) -> None:
    change(bundle, files={"../secret": "0"})
    with pytest.raises(BundleError, match="outside"):
        Bundle.load(bundle)


def test_another_cpu_class_is_warned_about(bundle: Path) -> None:
    change(bundle, cpu_class="riscv+vector")
    with pytest.warns(CpuClassWarning, match="riscv"):
        Bundle.load(bundle)


def test_predict_takes_any_batch_and_a_single_example(bundle: Path) -> None:
    loaded, images = Bundle.load(bundle), blobs(64).inputs[0]
    whole = loaded.predict(images)
    for n in (1, 2, 7, 64):
        np.testing.assert_array_equal(loaded.predict(images[:n]), whole[:n])
    np.testing.assert_array_equal(loaded.predict(images[0]), whole[0])


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((2, 1, 9, 9), np.float32), "shape"),
        (np.zeros((0, 1, 8, 8), np.float32), "nothing to predict"),
        (np.array(["a"]), "give numbers"),
        (np.full((1, 1, 8, 8), np.nan), "NaN"),
        (np.concatenate([np.zeros((3, 1, 8, 8)), np.full((1, 1, 8, 8), np.inf)]).astype(np.float32), "infinity in row 3"),
    ],
)
def test_what_does_not_fit_is_said(bundle: Path, x: np.ndarray, said: str) -> None:
    with pytest.raises(TenfoldError, match=said):
        Bundle.load(bundle).predict(x)


def test_labels_come_with_probabilities(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    named = loaded.labels_of(np.array([[0.0, np.log(3.0), 0.0]]))
    assert named == [("1", pytest.approx(0.6))]
    few = Bundle(loaded.path, loaded.manifest | {"labels": ["only one"]})
    assert few.labels_of(np.array([[9.0, 0.0], [0.0, 9.0]])) == [("only one", pytest.approx(1, abs=1e-3)), ("1", pytest.approx(1, abs=1e-3))]
