"""Carries a plan out, step by step; every step's output is stored under the hash of what went into it."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from tenfold import __version__, device
from tenfold.data.split import Array, Split
from tenfold.engine import SessionConfig, open_session, run_in_batches, survives
from tenfold.errors import ExportError, TenfoldError, WorkloadError, first_line
from tenfold.export import ScaleBytes, Selected, Served, check_batches, export
from tenfold.memory import is_out_of_memory
from tenfold.plan import GraphPass, Materials, ModelPass, Plan
from tenfold.recipe import digest
from tenfold.store import Step, Store, file_hash
from tenfold.teaching import learning_key, teacher_of
from tenfold.train.config import TrainConfig
from tenfold.train.feed import batch_of
from tenfold.train.loop import Progress, fit, pick_device, predict
from tenfold.train.recompute import recomputing
from tenfold.train.resize import why_not_smaller
from tenfold.weights import load_weights, save_weights
from tenfold.workload import Examples, Workload, class_axis, identity, metric_identity

KEPT_BYTES = 1 << 28
"""Of all answers on a split, above which their scores alone are kept."""
MAPPED_BYTES = 1 << 24
"""Of answers on a split, above which they stay in their file until they are looked at: many models' may be looked at together."""
PART_BYTES = 1 << 25
"""Of answers that are scored at a time where they are not kept."""

OF_ONE = "Expected more than 1 value per channel"
"""What PyTorch says of a batch of one example that is to be normalised."""

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
        begins: Mapping[str, Path] | None = None,
        rate: float = 1.0,
    ) -> None:
        """
        Args:
            begins: files of weights that trainings begin with, instead of new ones, by `place_of` the plan that each comes to. (A pass that
                leaves the structure as it is goes on from the weights before it.)
            rate: times the usual learning rate, where a model pass has one of its own.
        """
        self.workload = workload
        self.examples = examples
        self.store = store
        self.seed = seed
        self.threads = threads
        self.note = note
        self.on_step = on_step
        self.begins = {place: (path, file_hash(path)) for place, path in (begins or {}).items()}
        self.rate = rate
        self.seconds_left: Callable[[], float] = lambda: float("inf")
        """Of the budget, once there is one."""
        self._spent = 0.0  # seconds of all steps in this sitting, nested ones counted once
        torch.set_num_threads(threads)
        self._versions = {k: v for k, v in device.versions().items() if k != "openvino"}
        self.workload_id = identity(workload, examples, self.fresh())
        torch.manual_seed(seed)
        self.learning = learning_key(workload, examples)
        """Identity of what students learn from, beside the baseline and its data."""

    # ------------------------------------------------------------ models

    def fresh(self, seed: int | None = None) -> Served:
        """The untrained model with its pre-processing, the same for the same seed; pretrained weights where given."""
        torch.manual_seed(self.seed if seed is None else seed)
        model = self.workload.built("model")
        if self.workload.pretrained is not None:
            load_weights(model, Path(self.workload.pretrained))
        return self.served(model)

    def served(self, model: nn.Module) -> Served:
        """A model of the workload behind its pre-processing; of several things that it returns, the one that is served."""
        if self.workload.output is not None:
            model = Selected(model, self.workload.output)
        preprocess = copy.deepcopy(self.workload.preprocess)  # each model's own: it goes where its model goes, and learns with it
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
        except WorkloadError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise WorkloadError(
                f"the model does not take inputs of shape {shapes} ({type(error).__name__}: {first_line(error)}): make them fit"
            ) from error
        if not isinstance(output, torch.Tensor):
            raise WorkloadError(
                f"the model returns a {type(output).__name__}: say which tensor of it is served with output=, a place or a key"
            )
        if output.shape[:1] != inputs[0].shape[:1]:
            raise WorkloadError(
                f"the model gives shape {tuple(output.shape)} for {len(split)} examples: the first dimension must be the batch"
            )
        if self.workload.built("model") is self.workload.built("model"):
            raise WorkloadError("model= gives the same object each time, which one training would change for all others: let it build a new one")
        if self.workload.classifies and self.examples.classes is not None:
            axis = class_axis(output.shape, target.shape) if target is not None else None
            width = output.shape[1 if axis is None else axis] if output.ndim > 1 else 1
            if width < self.examples.classes:
                raise WorkloadError(
                    f"the model has {width} outputs, the data {self.examples.classes} classes: give it one output a class"
                )
        assert target is not None
        self._check_augment(inputs)
        with recomputing(model, self.workload.training.recompute):  # their names are known
            pass
        if (first := self.workload.training.resize) < 1 and (reason := why_not_smaller(model, inputs, first)) is not None:
            raise WorkloadError(f"the model does not take smaller images ({reason}): leave resize out of its training")
        try:
            loss = self.workload.loss_function()(output.float(), target)
        except Exception as error:  # the loss may be the user's own
            raise WorkloadError(
                f"the loss does not take outputs of shape {tuple(output.shape)} with targets of shape {tuple(target.shape)} "
                f"({first_line(error)}): make the model's output fit"
            ) from error
        if loss.numel() != 1:
            raise WorkloadError(f"the loss has shape {tuple(loss.shape)}: it must be one number a batch")
        self.workload.scores(output.float().cpu().numpy(), split.targets)  # type: ignore[arg-type]

    def check_mean_loss(self) -> None:
        """A loss over a batch twice is the loss over it once, if it is a mean.

        Raises:
            WorkloadError: it is a sum.
        """
        model, loss = self.fresh().to(pick_device()).eval(), self.workload.loss_function()
        inputs, target = batch_of(self.examples.split("train"), slice(0, 16), pick_device())
        assert target is not None
        with torch.inference_mode():
            output = model(*inputs).float()
            once, twice = float(loss(output, target)), float(loss(torch.cat([output, output]), torch.cat([target, target])))
        if abs(twice - 2 * once) < 0.1 * abs(once):
            raise WorkloadError(
                f"the loss of a batch taken twice is {twice:.4g}, and {once:.4g} of it once: it is a sum over the batch, so that its gradient grows "
                "with the batch; give a loss that is a mean"
            )

    def _check_augment(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Teachers answer on what augmentation gives, by graphs that take the dtype and shape of the data."""
        if self.workload.augment is None:
            return
        try:
            given = self.workload.augment(inputs[0].clone(), torch.Generator().manual_seed(0))
        except Exception as error:  # the user's own code may raise anything
            raise WorkloadError(f"augment raised {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(given, torch.Tensor):
            raise WorkloadError(f"augment returns a {type(given).__name__}: let it return the batch")
        if (given.dtype, given.shape) != (inputs[0].dtype, inputs[0].shape):
            was, now = (f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (inputs[0], given))
            raise WorkloadError(f"augment makes {now} of a batch of {was}: let it keep shape and dtype")

    # ------------------------------------------------------------ steps

    def training_key(self, plan: Plan) -> dict[str, Any]:
        if self.examples.train is None or self.workload.pretrained is not None:
            return {"step": "given", "workload": self.workload_id}
        return {
            "step": "train",
            "workload": self.workload_id,
            "training": plan.training.to_json(),
            "seed": plan.seed,
            "environment": self.environment(),
            **self._begun(dataclasses.replace(plan, model_passes=())),
        }

    def _begun(self, plan: Plan) -> dict[str, Any]:
        """What the weights that a plan's last training begins with are."""
        begin = self._beginning(plan)
        return {} if begin is None else {"begins": begin[1], "rate": self.rate}

    def _begin(self, model: nn.Module, plan: Plan) -> nn.Module:
        """The model, with the weights that the plan's last training begins with, where they are not its own."""
        if (begin := self._beginning(plan)) is not None:
            load_weights(model, begin[0])
        return model

    def _beginning(self, plan: Plan) -> tuple[Path, str] | None:
        """The file of weights that a plan's last training begins with, and its hash."""
        stays = bool(plan.model_passes) and not plan.model_passes[-1].reshapes
        return None if stays else self.begins.get(place_of(plan))

    def environment(self) -> list[str | int | None]:
        """What trained weights depend on beside what they learn."""
        return [device.cpu_class(), self.threads, self._versions["torch"], __version__, *(["cuda"] if pick_device().type == "cuda" else [])]

    def trained(self, plan: Plan) -> Step:
        """The trained weights: `model.safetensors`."""

        def work(folder: Path) -> dict[str, Any]:
            model, facts = self._begin(self.fresh(plan.seed), plan), {}
            train = self.examples.train
            if self.workload.pretrained is None:
                if train is None:
                    raise WorkloadError("there is no train split and no pretrained= weights: give one of the two")
                with explained("training", plan.training):
                    facts = fit(
                        model, train, self.workload.loss_function(), plan.training,
                        seed=plan.seed, augment=self.workload.augment,
                        checkpoint=folder / "train.checkpoint", progress=self._progress("training"),
                        seconds_left=self.seconds_left,
                    )  # fmt: skip
            save_weights(model, folder / "model.safetensors")
            return facts

        return self.step("train", self.training_key(plan), work)

    def shaped(self, plan: Plan) -> Step:
        """The weights after the plan's model passes."""
        if not plan.model_passes:
            return self.trained(plan)
        before, last = _less_one(plan)
        self.shaped(before)

        def work(folder: Path) -> dict[str, Any]:
            name = last.key.get("pass", "pass")
            with explained(name, plan.training):
                model = self._begin(self.structure(plan), plan)
                facts = last.teach(model, plan.training, self._materials(folder, name))
            save_weights(model, folder / "model.safetensors")
            return facts

        return self.step("train", self.shaped_key(plan), work)

    def shaped_key(self, plan: Plan) -> dict[str, Any]:
        """Identity of the plan's weights; it can be known without training."""
        key = self.training_key(plan)
        for i, done in enumerate(plan.model_passes):
            made_by = {"seed": plan.seed, "environment": [*self.environment(), self._versions.get("torch-pruning")]}
            begun = self._begun(dataclasses.replace(plan, model_passes=plan.model_passes[: i + 1]))
            key = {"step": "model pass", "pass": done.key, "from": key, **made_by, **self.learning, **begun}
        return key

    def structure(self, plan: Plan) -> nn.Module:
        """The model that the plan's weights fit, with what weights it has before the last pass has taught it."""
        if not plan.model_passes:
            return self.fresh()
        before, last = _less_one(plan)
        model = self.load(before)
        torch.manual_seed(plan.seed)
        return last.shape(model, self._materials(Path(), "shaping"))

    def load(self, plan: Plan) -> nn.Module:
        """The plan's model, with its weights."""
        model = self.structure(plan)
        model.load_state_dict(load_file(self.shaped(plan).path / "model.safetensors"))
        return model.eval()

    def training_cpu_seconds(self, plan: Plan) -> float:
        """Of all trainings that went into a plan, the baseline's and those of teachers and what these answered included, each counted once."""
        spent: dict[str, float] = {}
        for step in map(self.shaped, trainings_of(plan)):
            spent |= {step.path.name: step.meta["cpu_seconds"], **step.meta.get("taught_by", {})}
        return sum(spent.values())

    def is_trained(self, plan: Plan) -> bool:
        """Whether all trainings that go into a plan are there already."""
        return all(self.store.has(self.shaped_key(p)) for p in trainings_of(plan))

    def skeleton(self, plan: Plan) -> Path:
        """The graph of the plan's structure before it is taught anything, after all passes: good for timing alone."""
        key: dict[str, Any] = {"step": "skeleton", "from": self.shaped_key(plan), "versions": self._exporters()}

        def write(folder: Path) -> dict[str, Any]:
            example = self.examples.valid.take(slice(0, 64)).inputs
            export(self.structure(plan), example, folder / "model.onnx")
            return {}

        path = self.step("export", key, write).path / "model.onnx"
        for done in plan.graph_passes:
            key = self._after(done, key)
            work = partial(self._passed, done, path)
            path = self.step("calibrate", key, work).path / "model.onnx"
        return path

    def graph_key(self, plan: Plan) -> dict[str, Any]:
        """Identity of the plan's graph; it can be known without building."""
        if plan.join is not None:
            key = {"step": "join", "join": plan.join.key, "from": [self.graph_key(p) for p in plan.join.parts], "versions": self.graph_tools()}
        else:
            key = {"step": "export", "from": self.shaped_key(plan), "versions": self._exporters()}
        for done in plan.graph_passes:
            key = self._after(done, key)
        return key

    def _after(self, done: GraphPass, key: dict[str, Any]) -> dict[str, Any]:
        """Identity of a graph after a pass."""
        return {"step": "graph pass", "pass": done.key, "from": key, "versions": self.graph_tools()}

    def _passed(self, done: GraphPass, source: Path, folder: Path) -> dict[str, Any]:
        return done.apply(source, folder / "model.onnx", self._materials(folder, "calibrating"))

    def _exporters(self) -> list[str | None]:
        return [__version__, *(self._versions.get(p) for p in ("torch", "onnx", "onnxscript"))]

    def graph_tools(self) -> list[str | None]:
        return [__version__, *(self._versions.get(p) for p in ("onnx", "onnxruntime"))]

    def graph(self, plan: Plan) -> Step:
        """The ONNX graph, `model.onnx`, after all passes."""
        if plan.graph_passes:
            before = dataclasses.replace(plan, graph_passes=plan.graph_passes[:-1])

            def work(folder: Path) -> dict[str, Any]:
                return self._passed(plan.graph_passes[-1], self.graph(before).path / "model.onnx", folder)

            return self.step("calibrate", self.graph_key(plan), work)

        if (join := plan.join) is not None:

            def splice(folder: Path) -> dict[str, Any]:
                sources = [self.graph(p).path / "model.onnx" for p in join.parts]
                return join.apply(sources, folder / "model.onnx", self._materials(folder, "joining"))

            return self.step("calibrate", self.graph_key(plan), splice)

        def write(folder: Path) -> dict[str, Any]:
            example = self.examples.valid.take(slice(0, 64)).inputs
            export(self.load(plan), example, folder / "model.onnx")
            return {}

        return self.step("export", self.graph_key(plan), write)

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
            if plan.graph_passes and not survives(self.graph(plan).path / "model.onnx", config):
                raise ExportError(f"{config.engine} crashes when it opens this graph")
            return {"deviation": check_batches(self.graph(plan).path / "model.onnx", self.examples.valid.take(slice(0, 64)).inputs, config)}

        deviation: dict[str, float] = self.step("evaluate", key, work).meta["deviation"]
        return deviation

    def outputs(self, plan: Plan, examples: Split, batch: int) -> Array:
        """What the plan's session answers on examples: (n, …), `batch` of them a call as in service."""

        def work(folder: Path) -> dict[str, Any]:
            answer = _answerer(self.graph(plan).path / "model.onnx", plan.session, len(examples))
            np.save(folder / "outputs.npy", answer(examples.inputs, batch))
            return {}

        step = self.step("evaluate", self._answer_key("outputs", plan, examples, batch), work)
        path = step.path / "outputs.npy"
        outputs: Array = np.load(path, allow_pickle=False, mmap_mode="c" if path.stat().st_size > MAPPED_BYTES else None)
        return outputs

    def scores(self, plan: Plan, examples: Split, batch: int) -> Array:
        """Scores (n,) of what the plan's session answers; where all answers together are large, they are scored in parts and not kept."""
        assert examples.targets is not None
        if len(examples) * 4 * math.prod(self.answer_shape) <= KEPT_BYTES:
            return self.workload.scores(self.outputs(plan, examples, batch), examples.targets)

        def work(folder: Path) -> dict[str, Any]:
            np.save(folder / "scores.npy", self.scores_of(self.graph(plan).path / "model.onnx", plan.session, examples, batch))
            return {}

        key = {**self._answer_key("scores", plan, examples, batch), "metric": metric_identity(self.workload)}
        step = self.step("evaluate", key, work)
        scores: Array = np.load(step.path / "scores.npy", allow_pickle=False)
        return scores

    def scores_of(self, graph: Path, session: SessionConfig, examples: Split, batch: int) -> Array:
        """Scores (n,) of what a graph answers, a part of the examples at a time, so that answers need not be held all at once."""
        targets = examples.targets
        assert targets is not None
        some = max(batch, PART_BYTES // (4 * math.prod(self.answer_shape)) // batch * batch)
        answer, scores = _answerer(graph, session, some), []
        for first in range(0, len(examples), some):
            part = slice(first, first + some)
            scores.append(self.workload.scores(answer([x[part] for x in examples.inputs], batch), targets[part]))
            if self.note is not None:
                self.note("scoring", min(1.0, (first + some) / len(examples)))
        return np.concatenate(scores)

    @cached_property
    def answer_shape(self) -> tuple[int, ...]:
        """Of what is answered on one example."""
        return predict(self.fresh(), self.examples.valid.take(slice(0, 1))).shape[1:]

    def _answer_key(self, step: str, plan: Plan, examples: Split, batch: int) -> dict[str, Any]:
        config = dataclasses.replace(plan.session, threads=1)
        return {
            "step": step, "from": self.graph_key(plan), "session": config.to_json(), "batch": batch,
            "on": examples.identity, "cpu_class": device.cpu_class(), "versions": device.versions(),
        }  # fmt: skip

    # ------------------------------------------------------------ helpers

    def step(self, kind: str, key: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> Step:
        before, began = self._spent, time.perf_counter()
        step = self.store.step(key, work)
        alone = 0.0 if step.reused else max(0.0, time.perf_counter() - began - (self._spent - before))
        self._spent += alone
        if self.on_step is not None:
            self.on_step(kind, step, alone)
        return step

    def _progress(self, activity: str) -> Progress | None:
        note = self.note
        return (lambda share, _loss: note(activity, share)) if note is not None else None

    def _materials(self, folder: Path, activity: str) -> Materials:
        return Materials(
            workload=self.workload, examples=self.examples, seed=self.seed, folder=folder, progress=self._progress(activity),
            seconds_left=self.seconds_left, teacher=partial(teacher_of, self), rate=self.rate,
        )  # fmt: skip


def _answerer(graph: Path, session: SessionConfig, examples: int) -> Callable[[Sequence[Array], int], Array]:
    """(inputs, batch) to what a graph's session answers, on as many cores as so many examples keep busy."""
    config = dataclasses.replace(session, threads=1)
    # OpenVINO's Python call deadlocks when two threads of a process are in it
    workers = min(device.cores(), examples) if config.engine == "onnxruntime" else 1
    sessions = [open_session(graph, config) for _ in range(workers)]

    def answer(inputs: Sequence[Array], batch: int) -> Array:
        bounds = np.linspace(0, len(inputs[0]), workers + 1).astype(int) // batch * batch
        bounds[-1] = len(inputs[0])

        def part(i: int) -> Array:
            return run_in_batches(sessions[i], [x[bounds[i] : bounds[i + 1]] for x in inputs], batch)

        with ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(part, [i for i in range(workers) if bounds[i] < bounds[i + 1]])))

    return answer


@contextmanager
def explained(what: str, training: TrainConfig) -> Iterator[None]:
    """Whatever the user's model, student, loss or augmentation raises while something is trained, as one sentence with what helps."""
    try:
        yield
    except (TenfoldError, OSError):
        raise
    except Exception as error:  # the user's own code may raise anything
        raise WorkloadError(f"{what} raised {type(error).__name__}: {first_line(error)}{_remedy(error, training)}") from error


def _remedy(error: Exception, training: TrainConfig) -> str:
    """What helps against an error in the middle of a training, where that is known."""
    if OF_ONE in str(error):
        return ": batch normalisation needs two examples, give a larger batch_size or a smaller accumulate"
    if is_out_of_memory(error):
        parts = f"{training.accumulate} micro-batch{'es' if training.accumulate > 1 else ''}"
        return (
            f": a batch of {training.batch_size * training.grow:,} in {parts} does not fit into memory, give a larger accumulate, "
            "or name modules in recompute= that are to be computed again"
        )
    return ""


def _less_one(plan: Plan) -> tuple[Plan, ModelPass]:
    """The plan before its last model pass, and that pass."""
    return dataclasses.replace(plan, model_passes=plan.model_passes[:-1]), plan.model_passes[-1]


def trainings_of(plan: Plan) -> list[Plan]:
    """What is trained on the way to a plan, one after the other: the plan before each of its model passes, and those of its parts."""
    if plan.join is not None:
        return [p for part in plan.join.parts for p in trainings_of(part)]
    return [dataclasses.replace(plan, model_passes=plan.model_passes[:i]) for i in range(len(plan.model_passes) + 1)]


def place_of(plan: Plan) -> str:
    """Which of a recipe's models a plan comes to: by its model passes alone."""
    return digest([done.key for done in plan.model_passes])
