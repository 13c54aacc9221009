"""The artefact that is shipped: a folder that runs without torch, and says what it is.

    model.onnx       the graph, pre-processing included
    manifest.json    schema, engine, inputs and outputs, labels, quality, costs, recipe, versions, hashes
    golden.npz       synthetic inputs and the outputs that they gave where the bundle was certified
    sbom.json        what serving needs (CycloneDX)

No pickle, ever. Hashes show corruption; against tampering use a signature or a pinned digest.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tenfold import __version__, device
from tenfold.data.split import Array
from tenfold.engine import Outputs, SessionConfig, open_outputs, open_session
from tenfold.errors import TenfoldError
from tenfold.store import file_hash, unwritable, write_atomic

SCHEMA = 1
GOLDEN_EXAMPLES = 8
# of the largest output, on the CPU class it was certified on: what another build of the engine may differ by
GOLDEN_TOLERANCE = 1e-3
# on another CPU class int8 kernels round, and may saturate, otherwise
GOLDEN_TOLERANCE_ELSEWHERE = 0.1


SURENESS, THRESHOLD = "sureness", "tenfold.threshold"
"""Of a cascade: the graph's second output, (batch,), how sure its first part was; and the property with what it hands on below."""

_NEEDED = ("cpu_class", "files", "inputs", "labels", "operating_point", "outputs", "session", "task")


class BundleError(TenfoldError):
    """A bundle that must not be served."""


class CpuClassWarning(UserWarning):
    """The bundle was certified on another class of CPU: cost, and for int8 the numbers, may differ."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been verified. Make one with `Bundle.load`."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle: check schema and hashes, and replay the golden inputs.

        Raises:
            BundleError: it is no bundle, of a newer schema, damaged, or answers otherwise than it did.
        """
        folder = Path(path)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(f"{folder} is no bundle (no manifest.json): name the folder that `tenfold run` wrote") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder}/manifest.json is not readable ({error}): copy the bundle again") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
            raise BundleError(f"{folder}/manifest.json is no manifest of a bundle: copy the bundle again")
        if manifest["schema"] > SCHEMA:
            raise BundleError(f"{folder} is of schema {manifest['schema']}, this Tenfold reads {SCHEMA}: upgrade Tenfold")
        if missing := [key for key in _NEEDED if key not in manifest]:
            raise BundleError(f"{folder}/manifest.json lacks {', '.join(missing)}: copy the bundle again")
        bundle = cls(folder, manifest)
        try:
            _ = bundle.session
        except TypeError as error:
            raise BundleError(f"{folder}/manifest.json names a session that is none ({error}): copy the bundle again") from error
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Check hashes and golden outputs; warn when the CPU class differs."""
        if outside := [name for name in self.manifest["files"] if Path(name).name != name]:
            raise BundleError(f"{self.path}/manifest.json names a file outside the bundle ({outside[0]}): do not use it")
        if missing := {"model.onnx", "golden.npz"} - self.manifest["files"].keys():
            raise BundleError(f"{self.path}/manifest.json has no hash of {', '.join(sorted(missing))}: copy the bundle again")
        if strange := sorted({f.name for f in self.path.iterdir()} - {"manifest.json", *self.manifest["files"]}):
            raise BundleError(f"{self.path} holds {', '.join(strange[:3])}, which its manifest does not name: take it away, or copy the bundle again")
        for name, wanted in self.manifest["files"].items():
            try:
                found = file_hash(self.path / name)
            except OSError as error:
                raise BundleError(f"{self.path} lacks {name}: copy the bundle again") from error
            if found != wanted:
                raise BundleError(
                    f"{self.path}/{name} is damaged (its SHA-256 differs from the manifest's): copy the bundle again"
                )
        here, certified = device.cpu_class(), self.manifest["cpu_class"]
        if here != certified:
            warnings.warn(
                f"certified on {certified}, this machine is {here}: costs, and the numbers of int8, may differ",
                CpuClassWarning, stacklevel=3,
            )  # fmt: skip
        inputs, wanted = self.golden()
        got = self._in_batches(inputs)
        error_share = float(np.abs(got - wanted).max() / max(float(np.abs(wanted).max()), 1e-6))
        allowed = GOLDEN_TOLERANCE if here == certified else GOLDEN_TOLERANCE_ELSEWHERE
        if not error_share <= allowed:
            raise BundleError(
                f"{self.path} answers otherwise here than where it was certified "
                f"({error_share:.1e} of the largest output, {allowed:.0e} allowed): certify it on this machine"
            )

    @property
    def session(self) -> SessionConfig:
        return SessionConfig(**self.manifest["session"])

    @cached_property
    def run(self) -> Outputs:
        """From inputs of the manifest's shapes and dtypes to the output (n, …); and of a cascade how sure its first part was, (n,)."""
        return open_outputs(self.path / "model.onnx", self.session, 2 if "cascade" in self.manifest else 1)

    @property
    def costs(self) -> dict[str, Any]:
        """As they were measured: of an upgrade, whose recipe is the first one's, those of the first."""
        found: dict[str, Any] = self.manifest.get("costs") or self.manifest.get("first", {}).get("costs", {})
        return found

    @property
    def threshold(self) -> float | None:
        """Of a cascade: what its first part was less sure of, it has handed on."""
        return float(self.manifest["cascade"]["threshold"]) if "cascade" in self.manifest else None

    def golden(self) -> tuple[list[Array], Array]:
        """Synthetic inputs, and the output that they gave where the bundle was certified.

        Raises:
            BundleError: they cannot be read.
        """
        try:
            with np.load(self.path / "golden.npz", allow_pickle=False) as golden:
                return [golden[i["name"]] for i in self.manifest["inputs"]], golden["output"]
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{self.path}/golden.npz is not readable ({error}): copy the bundle again") from error

    def _in_batches(self, inputs: Sequence[Array]) -> Array:
        # a graph that quantizes dynamically answers a batch as a whole: keep to the size it was certified at
        step = self.manifest["operating_point"]["batch"]
        return np.concatenate([self.run([x[i : i + step] for x in inputs])[0] for i in range(0, len(inputs[0]), step)])

    def predict(self, *inputs: Any) -> Array:
        """Raw outputs (n, …) for inputs (n, …), or (…) for a single example given without its batch dimension.

        Raises:
            TenfoldError: the number of inputs, a shape or a dtype does not fit.
        """
        specs = self.manifest["inputs"]
        if len(inputs) != len(specs):
            raise TenfoldError(f"the model takes {len(specs)} inputs, {len(inputs)} were given")
        arrays = [self._fit(np.asarray(x), spec) for x, spec in zip(inputs, specs, strict=True)]
        single = all(np.ndim(x) == len(spec["shape"]) - 1 for x, spec in zip(inputs, specs, strict=True))
        if len({len(a) for a in arrays}) > 1:
            raise TenfoldError(f"the inputs have {[len(a) for a in arrays]} rows: give each the same number")
        if len(arrays[0]) == 0:
            raise TenfoldError("there is nothing to predict: give at least one example")
        outputs = self._in_batches(arrays)
        return outputs[0] if single else outputs

    def _fit(self, array: Array, spec: Mapping[str, Any]) -> Array:
        shape = spec["shape"]
        if array.dtype.kind not in "biuf":
            raise TenfoldError(f"{spec['name']} holds {array.dtype} values: give numbers ({spec['dtype']})")
        if array.ndim == len(shape) - 1:
            array = array[None]
        if list(array.shape[1:]) != shape[1:]:
            want = "×".join(map(str, shape[1:])) or "scalar"
            raise TenfoldError(f"{spec['name']} has shape {array.shape}: the model takes (n, {want})")
        if not np.isfinite(array).all():
            raise TenfoldError(f"{spec['name']} has NaN or infinity in row {np.argwhere(~np.isfinite(array))[0][0]}: clean it first")
        wanted = np.dtype(spec["dtype"])
        if array.dtype == wanted:
            return np.ascontiguousarray(array)
        cast = array.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(cast, array):
            raise TenfoldError(f"{spec['name']} is {array.dtype} with values that {wanted} cannot hold: give {wanted}")
        return np.ascontiguousarray(cast)

    def labels_of(self, outputs: Array) -> list[tuple[str, float]] | None:
        """(label, probability) for each row of logits; None where the bundle is no classifier of whole examples."""
        if self.manifest["task"] != "classification":
            return None
        shifted = np.atleast_2d(outputs) - np.max(np.atleast_2d(outputs), axis=1, keepdims=True)
        share = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        names = self.manifest["labels"]
        best = share.argmax(axis=1)
        return [(names[i] if names and i < len(names) else str(i), float(share[row, i])) for row, i in enumerate(best)]


def golden_inputs(example: Sequence[Array], seed: int = 0) -> list[Array]:
    """Synthetic inputs whose every element has the range, mean and spread that it has in real ones, holding none of them.

    What is whole in all of them, such as a category, stays whole; and nothing leaves the range that was seen, which an embedding or a
    logarithm could not take.
    """
    rng = np.random.default_rng(seed)
    return [_like(real, rng) for real in example]


def _like(real: Array, rng: np.random.Generator) -> Array:
    shape, low, high = (GOLDEN_EXAMPLES, *real.shape[1:]), real.min(0), real.max(0)
    if real.dtype.kind == "b":
        flags: Array = rng.random(shape) < real.mean(0)
        return flags
    if real.dtype.kind in "iu":
        whole: Array = rng.integers(low, high, size=shape, dtype=real.dtype, endpoint=True)
        return whole
    counted = (real == np.rint(real)).all(0)
    drawn = np.clip(real.mean(0) + real.std(0) * rng.standard_normal(shape), low, high)
    floats: Array = np.where(counted, np.rint(drawn), drawn).astype(real.dtype)
    return floats


def write_bundle(folder: Path, graph: Path, example: Sequence[Array], facts: Mapping[str, Any]) -> Bundle:
    """Write a bundle aside and move it into place.

    Args:
        graph: the ONNX file.
        example: some real inputs, for shapes, dtypes and the range of the golden inputs.
        facts: what else the manifest says: session, operating_point, task, labels, quality, costs, recipe …
    """
    beside = folder.with_name(f".{folder.name}.partial")
    if folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").exists():
        raise TenfoldError(f"{folder} holds something that is no bundle: choose another --out")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        shutil.copyfile(graph, beside / "model.onnx")
        inputs = golden_inputs(example)
        session = SessionConfig(**facts["session"])
        run, step = open_session(beside / "model.onnx", session), facts["operating_point"]["batch"]
        output = np.concatenate([run([x[i : i + step] for x in inputs]) for i in range(0, GOLDEN_EXAMPLES, step)])
        names = input_names(len(inputs))
        arrays: dict[str, Any] = dict(zip(names, inputs, strict=True)) | {"output": output}
        np.savez(beside / "golden.npz", **arrays)
        write_atomic(beside / "sbom.json", json.dumps(_sbom(session), indent=1))
        manifest = {
            "schema": SCHEMA,
            "tenfold": __version__,
            "cpu_class": device.cpu_class(),
            "versions": device.versions(),
            "inputs": [
                {"name": n, "shape": [None, *x.shape[1:]], "dtype": str(x.dtype)} for n, x in zip(names, inputs, strict=True)
            ],
            "outputs": [{"name": "output", "shape": [None, *output.shape[1:]], "dtype": str(output.dtype)}],
            **_cascade(graph),
            **facts,
            "files": {f.name: file_hash(f) for f in sorted(beside.iterdir())},
        }
        write_atomic(beside / "manifest.json", json.dumps(manifest, indent=1, allow_nan=False))
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    return Bundle.load(folder)


def input_names(count: int) -> list[str]:
    """Of a model's inputs, in order."""
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def _cascade(graph: Path) -> dict[str, Any]:
    """What the manifest says of a graph that tells how sure its first part was."""
    import onnx

    threshold = {p.key: p.value for p in onnx.load(graph, load_external_data=False).metadata_props}.get(THRESHOLD)
    return {} if threshold is None else {"cascade": {"sureness": SURENESS, "threshold": float(threshold)}}


def _sbom(session: SessionConfig) -> dict[str, Any]:
    """CycloneDX 1.6: the packages that serving needs, as they are installed here."""
    components = []
    for name in ("numpy", session.engine, "tenfold"):
        version = __version__ if name == "tenfold" else metadata.version(name)
        components.append({"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"})
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


def read_input(path: Path, spec: Mapping[str, Any]) -> Array:
    """An input (n, …) from an .npy, image or .csv file, in the shape and dtype of a manifest's input.

    Raises:
        TenfoldError: the file is missing, unreadable, of no known kind, or does not fit.
    """
    if not path.is_file():
        raise TenfoldError(f"{path} does not exist: name an .npy, image or .csv file")
    if path.suffix.lower() == ".npy":
        from tenfold.data.sources import load_npy

        return load_npy(path)
    if path.suffix.lower() == ".csv":
        try:
            return table_input(path.read_text(encoding="utf-8"), spec, str(path))
        except UnicodeDecodeError as error:
            raise TenfoldError(f"{path} is no csv file in UTF-8 ({error}): save it as one") from error
    return image_input(path.read_bytes(), spec, str(path))


def image_input(data: bytes, spec: Mapping[str, Any], where: str, **limits: Any) -> Array:
    """An input (1, channels, height, width) of an image file's bytes.

    Args:
        where: what errors call it.
        limits: as of `decode_images`.
    """
    shape = spec["shape"][1:]
    if len(shape) != 3:
        raise TenfoldError(f"{where} is taken for an image, and the model takes {shape}, not (channels, height, width): give an .npy file")
    from tenfold.data.sources import decode_images

    image = decode_images([lambda: io.BytesIO(data)], [where], tuple(shape[1:]), **limits)[0]
    if image.shape[0] != shape[0]:
        image = np.repeat(image, 3, axis=0) if shape[0] == 3 else image.mean(axis=0, keepdims=True).round().astype(np.uint8)
    scaled: Array = image[None] if spec["dtype"] == "uint8" else (image[None] / np.float32(255)).astype(spec["dtype"])
    return scaled


def table_input(text: str, spec: Mapping[str, Any], where: str) -> Array:
    """An input (n, …) of comma-separated values, an example a line; a header is passed over."""
    width = math.prod(spec["shape"][1:])
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise TenfoldError(f"{where} is no csv ({error}): save it as one") from error
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]  # a header
    try:
        array = np.array([[float(v) for v in row] for row in rows])
    except ValueError as error:
        raise TenfoldError(f"{where} is no table of numbers, all rows of one length ({error}): mend it") from error
    if array.ndim != 2 or array.shape[1] != width:
        raise TenfoldError(f"{where} has {array.shape[1] if array.ndim == 2 else 0} columns, the model takes {width} values an example")
    return array.reshape(-1, *spec["shape"][1:])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
