"""Carries a plan out, step by step; every step's output is stored under the hash of what went into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from tenfold import __version__, device
from tenfold.data.split import Array, Split
from tenfold.engine import open_session, run_in_batches
from tenfold.errors import TenfoldError, WorkloadError
from tenfold.export import ScaleBytes, Served, check_batches, export
from tenfold.plan import Materials, Plan
from tenfold.store import Step, Store, write_atomic
from tenfold.train.loop import Progress, batch_of, fit, pick_device
from tenfold.workload import Examples, Workload, identity

OnStep = Callable[[str, Step, float], None]
"""Called with (kind of work, finished step, seconds that it alone took; 0 where it was there already)."""
Note = Callable[[str, float], None]
"""Called with (activity, share done) while long steps run."""


class Builder:
    """Builds plans of one workload in one store."""

    def __init__(
        self,
        workload: Workload,
        examples: Examples,
        store: Store,
        *,
        seed: int,
        threads: int,
        note: Note | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.workload = workload
        self.examples = examples
        self.store = store
        self.seed = seed
        self.threads = threads
        self.note = note
        self.on_step = on_step
        self._spent = 0.0  # seconds of all steps in this sitting, nested ones counted once
        torch.set_num_threads(threads)
        self._versions = {k: v for k, v in device.versions().items() if k != "openvino"}
        self.workload_id = identity(workload, examples, self.fresh())

    # ------------------------------------------------------------ models

    def fresh(self) -> Served:
        """The untrained model with its pre-processing, the same for the same seed; pretrained weights where given."""
        torch.manual_seed(self.seed)
        try:
            model = self.workload.model()
        except Exception as error:  # the user's own code may raise anything
            raise WorkloadError(f"building the model raised {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise WorkloadError(f"model= gave a {type(model).__name__}: it must build a torch.nn.Module")
        if self.workload.pretrained is not None:
            load_weights(model, Path(self.workload.pretrained))
        preprocess = self.workload.preprocess
        if preprocess is None and self.examples.valid.inputs[0].dtype == np.uint8:
            preprocess = ScaleBytes()
        return Served(model, preprocess)

    def check(self) -> None:
        """One batch through the untrained model and its loss, before any budget is spent.

        Raises:
            WorkloadError: the model does not take the data, or its output does not fit targets, loss or metric.
        """
        model = self.fresh().to(pick_device()).eval()
        split = self.examples.valid.take(slice(0, 8))
        inputs, target = batch_of(split, slice(None), pick_device())
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        try:
            with torch.inference_mode():
                output = model(*inputs)
        except Exception as error:  # the user's own code may raise anything
            raise WorkloadError(
                f"the model does not take inputs of shape {shapes} ({type(error).__name__}: {_first(error)}): make them fit"
            ) from error
        if not isinstance(output, torch.Tensor):
            raise WorkloadError(
                f"the model returns a {type(output).__name__}: return one tensor from forward, the one that is served"
            )
        if output.shape[:1] != inputs[0].shape[:1]:
            raise WorkloadError(
                f"the model gives shape {tuple(output.shape)} for {len(split)} examples: the first dimension must be the batch"
            )
        if self.workload.classifies and self.examples.classes is not None:
            width = output.reshape(len(split), -1).shape[1] if output.ndim == 2 else output.shape[1]
            if width < self.examples.classes:
                raise WorkloadError(
                    f"the model has {width} outputs, the data {self.examples.classes} classes: give it one output a class"
                )
        assert target is not None
        try:
            loss = self.workload.loss_function()(output.float(), target)
        except Exception as error:  # the loss may be the user's own
            raise WorkloadError(
                f"the loss does not take outputs of shape {tuple(output.shape)} with targets of shape {tuple(target.shape)} "
                f"({_first(error)}): make the model's output fit"
            ) from error
        if loss.numel() != 1:
            raise WorkloadError(f"the loss has shape {tuple(loss.shape)}: it must be one number a batch")
        self.workload.scores(output.float().cpu().numpy(), split.targets)  # type: ignore[arg-type]

    # ------------------------------------------------------------ steps

    def training_key(self, plan: Plan) -> dict[str, Any]:
        if self.examples.train is None or self.workload.pretrained is not None:
            return {"step": "given", "workload": self.workload_id}
        return {
            "step": "train",
            "workload": self.workload_id,
            "training": dataclasses.asdict(plan.training),
            "seed": plan.seed,
            "environment": [
                device.cpu_class(), self.threads, self._versions["torch"], __version__, *(["cuda"] if pick_device().type == "cuda" else []),
            ],
        }

    def trained(self, plan: Plan) -> Step:
        """The trained weights: `model.safetensors`."""

        def work(folder: Path) -> dict[str, Any]:
            model, facts = self.fresh(), {}
            train = self.examples.train
            if self.workload.pretrained is None:
                if train is None:
                    raise WorkloadError("there is no train split and no pretrained= weights: give one of the two")
                try:
                    facts = fit(
                        model, train, self.workload.loss_function(), plan.training,
                        seed=plan.seed, augment=self.workload.augment,
                        checkpoint=folder / "train.checkpoint", progress=self._progress("training"),
                    )  # fmt: skip
                except (TenfoldError, OSError, MemoryError):
                    raise
                except Exception as error:  # the user's model, loss or augmentation may raise anything
                    raise WorkloadError(f"training raised {type(error).__name__}: {_first(error)}") from error
            _save(model, folder / "model.safetensors")
            return facts

        return self._step("train", self.training_key(plan), work)

    def shaped(self, plan: Plan) -> Step:
        """The weights after the plan's model passes."""
        step, key = self.trained(plan), self.training_key(plan)
        for done in plan.model_passes:
            key = {"step": "model pass", "pass": done.key, "from": key}
            before = step

            def work(folder: Path, before: Step = before, done: Any = done) -> dict[str, Any]:
                model = self.load(before)
                facts: dict[str, Any] = done.apply(model, plan.training, self._materials(folder, done.key.get("pass", "pass")))
                _save(model, folder / "model.safetensors")
                return facts

            step = self._step("train", key, work)
        return step

    def graph_key(self, plan: Plan) -> dict[str, Any]:
        """Identity of the plan's graph; it can be known without building."""
        key = self.training_key(plan)
        for done in plan.model_passes:
            key = {"step": "model pass", "pass": done.key, "from": key}
        versions = [__version__, *(self._versions.get(p) for p in ("torch", "onnx", "onnxscript"))]
        key = {"step": "export", "from": key, "versions": versions}
        for graph in plan.graph_passes:
            key = {
                "step": "graph pass",
                "pass": graph.key,
                "from": key,
                "versions": [__version__, *(self._versions.get(p) for p in ("onnx", "onnxruntime"))],
            }
        return key

    def graph(self, plan: Plan) -> Step:
        """The ONNX graph, `model.onnx`, after all passes."""
        if plan.graph_passes:
            before = dataclasses.replace(plan, graph_passes=plan.graph_passes[:-1])
            last = plan.graph_passes[-1]

            def work(folder: Path) -> dict[str, Any]:
                source, target = self.graph(before).path / "model.onnx", folder / "model.onnx"
                return last.apply(source, target, self._materials(folder, "calibrating"))

            return self._step("calibrate", self.graph_key(plan), work)

        def write(folder: Path) -> dict[str, Any]:
            example = self.examples.valid.take(slice(0, 64)).inputs
            export(self.load(self.shaped(plan)), example, folder / "model.onnx")
            return {}

        return self._step("export", self.graph_key(plan), write)

    def batches(self, plan: Plan) -> dict[str, float]:
        """See that the plan answers batches as it answers single examples, on its own engine; the largest deviation of each.

        Raises:
            ExportError: it does not.
        """
        config = dataclasses.replace(plan.session, threads=1)
        key = {
            "step": "batches", "from": self.graph_key(plan), "session": config.to_json(),
            "cpu_class": device.cpu_class(), "versions": device.versions(),
        }  # fmt: skip

        def work(_folder: Path) -> dict[str, Any]:
            return {"deviation": check_batches(self.graph(plan).path / "model.onnx", self.examples.valid.take(slice(0, 64)).inputs, config)}

        deviation: dict[str, float] = self._step("evaluate", key, work).meta["deviation"]
        return deviation

    def outputs(self, plan: Plan, examples: Split, batch: int) -> Array:
        """What the plan's session answers on examples: (n, …), `batch` of them a call as in service."""
        config = dataclasses.replace(plan.session, threads=1)
        key = {
            "step": "outputs", "from": self.graph_key(plan), "session": config.to_json(), "batch": batch,
            "on": examples.identity, "cpu_class": device.cpu_class(), "versions": device.versions(),
        }  # fmt: skip

        def work(folder: Path) -> dict[str, Any]:
            model = self.graph(plan).path / "model.onnx"
            # OpenVINO's Python call deadlocks when two threads of a process are in it
            workers = min(device.cores(), len(examples)) if config.engine == "onnxruntime" else 1
            bounds = np.linspace(0, len(examples), workers + 1).astype(int) // batch * batch
            bounds[-1] = len(examples)

            def part(i: int) -> Array:
                chunk = [x[bounds[i] : bounds[i + 1]] for x in examples.inputs]
                return run_in_batches(open_session(model, config), chunk, batch)

            with ThreadPoolExecutor(workers) as pool:
                parts = list(pool.map(part, [i for i in range(workers) if bounds[i] < bounds[i + 1]]))
            np.save(folder / "outputs.npy", np.concatenate(parts))
            return {}

        step = self._step("evaluate", key, work)
        outputs: Array = np.load(step.path / "outputs.npy", allow_pickle=False)
        return outputs

    def load(self, step: Step) -> Served:
        """The model with the weights that a step left."""
        model = self.fresh()
        model.load_state_dict(load_file(step.path / "model.safetensors"))
        return model.eval()

    # ------------------------------------------------------------ helpers

    def _step(self, kind: str, key: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> Step:
        before = self._spent
        step = self.store.step(key, work)
        alone = 0.0 if step.reused else max(0.0, step.meta["seconds"] - (self._spent - before))
        self._spent += alone
        if self.on_step is not None:
            self.on_step(kind, step, alone)
        return step

    def _progress(self, activity: str) -> Progress | None:
        note = self.note
        return (lambda share, _loss: note(activity, share)) if note is not None else None

    def _materials(self, folder: Path, activity: str) -> Materials:
        return Materials(
            workload=self.workload, examples=self.examples, seed=self.seed, folder=folder, progress=self._progress(activity)
        )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model.

    Raises:
        WorkloadError: it is missing, corrupt, or not of this model.
    """
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise WorkloadError(f"pretrained weights {path} do not exist: check the path") from error
    except (SafetensorError, OSError) as error:
        raise WorkloadError(
            f"{path} is no readable safetensors file ({_first(error)}): save the weights again with safetensors"
        ) from error
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise WorkloadError(f"{path} does not fit the model ({detail}): give the weights of this very model") from error


def _save(model: nn.Module, path: Path) -> None:
    # written by us: a full disk is an OSError then, and not an error of safetensors' own
    write_atomic(path, save({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}))


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
