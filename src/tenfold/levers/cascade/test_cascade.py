import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tenfold.build import Builder
from tenfold.engine import GraphError, SessionConfig, open_session, run_in_batches
from tenfold.execute import plain_session
from tenfold.export import Served, export
from tenfold.insights import confidence
from tenfold.lever import Part, Refusal, Situation, Stage, Tried, apply_all
from tenfold.levers.cascade import _json, foresee
from tenfold.levers.cascade.splice import load, splice
from tenfold.plan import Plan
from tenfold.recipe import Pull, Recipe
from tenfold.testing import LeverContract, blobs, part
from tenfold.verdict import Decision, Interval, Verdict

STUDENT = {
    "student": {"family": "image", "width": 8, "depth": 0, "stem": "conv", "operator": "dense", "smallest": 4, "growth": 2.0},
    "epochs": 1.0, "learning_rate": 0.05, "dtype": "float32", "teachers": 1, "mixup": False,
}  # fmt: skip


class TestCascade(LeverContract):
    name = "cascade"

    def situation(self, builder: Builder, plan: Plan, stage: Stage, **changes: object) -> Situation:
        """With a student among the parts, and another margin that lets it be of use."""
        recipes = [Recipe(workload="w"), Recipe(workload="w").then("distill", STUDENT)]
        valid = builder.examples.valid

        def parts() -> list[Part]:
            out = []
            for recipe, cost in zip(recipes, (1.0, 0.1), strict=True):
                outputs = builder.outputs(apply_all(plan, recipe.pulls), valid, 1)
                # that the student errs where it is least sure, and only there, stands in for what it learned in an epoch
                sureness = confidence(outputs)
                scores = np.ones(len(valid)) if cost == 1.0 else (sureness > np.quantile(sureness, 0.1)).astype(float)
                out.append(Part(recipe=recipe, outputs=outputs, scores=scores, cost=cost))
            return out

        return super().situation(builder, plan, stage, **({"parts": parts} | changes))

    def test_proposes_something(self, lever, small_builder: Builder, plan: Plan) -> None:
        assert len(lever.propose(self.situation(small_builder, plan, Stage.COMPOSE))) >= 1

    def test_asks_again_with_what_a_decision_costs_as_it_measured(self, lever, small_builder: Builder, plan: Plan) -> None:
        """Where a decision is dear, two of them no longer pay."""
        n, sureness = 1_000, np.random.default_rng(0).random(1_000)
        base = dataclasses.replace(part("base", np.ones(n), np.ones(n), 1.0), recipe=Recipe(workload="w"))
        parts = [base, part("small", sureness > 0.5, sureness, 0.1), part("middle", sureness > 0.1, sureness, 0.3)]
        examples = dataclasses.replace(small_builder.examples, valid=blobs(n))
        situation = self.situation(small_builder, plan, Stage.COMPOSE, parts=lambda: parts, margin=0.005, examples=examples)
        (first,), (foreseen,) = lever.propose(situation), foresee.best(parts, 0.005, tested=len(situation.examples.test))
        assert len(first["parts"]) == 3

        def measured(extra: float) -> Situation:
            gain = 1 / (foreseen.cost + extra * foreseen.decisions)
            verdict = Verdict(decision=Decision.REFUSE, reason="")
            return dataclasses.replace(
                situation, tried=(Tried(config=first, verdict=verdict, gain=Interval(value=gain, low=gain, high=gain)),)
            )

        assert list(lever.propose(measured(0.0))) == []  # it came out as foreseen
        (again,) = lever.propose(measured(0.1))
        assert len(again["parts"]) == 2
        both = (*measured(0.1).tried, dataclasses.replace(measured(0.1).tried[0], config=again))
        assert list(lever.propose(dataclasses.replace(situation, tried=both))) == []  # once

    @pytest.mark.parametrize("objective", ["size", "train"])
    def test_refuses_what_it_cannot_make_cheaper(self, lever, small_builder: Builder, plan: Plan, objective: str) -> None:
        answer = lever.propose(self.situation(small_builder, plan, Stage.COMPOSE, objective=objective))
        assert isinstance(answer, Refusal)

    def test_refuses_a_model_without_class_scores(self, lever, small_builder: Builder, plan: Plan) -> None:
        numbers = dataclasses.replace(small_builder.workload, loss="mse", metric="squared_error")
        answer = lever.propose(self.situation(small_builder, plan, Stage.COMPOSE, workload=numbers))
        assert isinstance(answer, Refusal)
        assert "cannot say how sure it is" in answer.reason

    def test_refuses_where_there_is_nothing_to_put_before_the_baseline(self, lever, small_builder: Builder, plan: Plan) -> None:
        alone = self.situation(small_builder, plan, Stage.COMPOSE)
        answer = lever.propose(dataclasses.replace(alone, parts=lambda: alone.parts()[:1]))
        assert isinstance(answer, Refusal)


# ---------------------------------------------------------------- the graph


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    """Three nets on (n, 1, 6, 6), and inputs."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)),
        nn.Sequential(nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ]
    inputs = np.random.default_rng(0).normal(size=(64, 1, 6, 6)).astype(np.float32)
    paths = [folder / f"{i}.onnx" for i in range(3)]
    for net, path in zip(nets, paths, strict=True):
        export(Served(net, None), [inputs], path)
    return paths, inputs


def sure(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).max(1).values.numpy()


@pytest.mark.parametrize("blend", [0.0, 0.25])
@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("which", ["none", "some", "all", "all to the second", "some to the third"])
def test_a_spliced_graph_answers_by_the_part_whose_turn_it_is(graphs, tmp_path, batch, which, blend) -> None:
    paths, inputs = graphs
    first, second, third = (run_in_batches(open_session(p, SessionConfig()), [inputs], 64) for p in paths)
    second = (1 - blend) * second + blend * first
    third = (1 - blend) * third + blend * second
    middle = [float(np.quantile(sure(a), 0.5)) for a in (first, second)]
    thresholds = {
        "none": (0.0, 0.0), "some": (middle[0], middle[1]), "all": (1.1, 1.1), "all to the second": (1.1, 0.0), "some to the third": (1.1, middle[1])
    }[which]  # fmt: skip
    handed = sure(first) < thresholds[0]
    further = handed & (sure(second) < thresholds[1])
    wanted = np.where(further[:, None], third, np.where(handed[:, None], second, first))
    onnx.save(splice([load(p) for p in paths], thresholds, blend), tmp_path / "cascade.onnx")
    got = run_in_batches(open_session(tmp_path / "cascade.onnx", SessionConfig()), [inputs], batch)
    assert np.abs(got - wanted).max() < 1e-5
    assert (handed.any(), further.any()) == {"none": (False, False), "all to the second": (True, False)}.get(which, (True, True))


def test_a_later_part_computes_only_the_rows_that_need_it(graphs, tmp_path) -> None:
    """Nothing in the branch but the gathering itself reads the inputs of the whole batch."""
    paths, inputs = graphs
    first = run_in_batches(open_session(paths[0], SessionConfig()), [inputs], 64)
    threshold = float(np.quantile(sure(first), 0.25))
    onnx.save(splice([load(p) for p in paths[:2]], [threshold]), tmp_path / "cascade.onnx")
    branch = next(a.g for n in onnx.load(tmp_path / "cascade.onnx").graph.node if n.op_type == "If" for a in n.attribute if a.name == "then_branch")
    assert [n.op_type for n in branch.node if n.op_type in ("GatherND", "ScatterND")] == ["GatherND", "ScatterND"]
    gathered = next(n.output[0] for n in branch.node if n.op_type == "GatherND")
    assert any(gathered in n.input for n in branch.node if n.op_type != "GatherND")
    assert not any("input" in n.input for n in branch.node if n.op_type != "GatherND")


class OfTwo(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, width), nn.Linear(3, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.left(x) + self.right(y)))


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, width, batch_first=True), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize(("kind", "shapes"), [(OfTwo, [(6,), (3,)]), (Recurrent, [(5, 6)])])
def test_parts_of_two_inputs_or_with_recurrent_layers_are_spliced(tmp_path, kind, shapes, batch) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(64, *shape)).astype(np.float32) for shape in shapes]
    paths = [tmp_path / "small.onnx", tmp_path / "large.onnx"]
    for path, width in zip(paths, (4, 16), strict=True):
        export(Served(kind(width), None), inputs, path)
    first, second = (run_in_batches(open_session(p, SessionConfig()), inputs, 64) for p in paths)
    handed = sure(first) < (threshold := float(np.quantile(sure(first), 0.4)))
    onnx.save(splice([load(p) for p in paths], [threshold]), tmp_path / "cascade.onnx")
    got = run_in_batches(open_session(tmp_path / "cascade.onnx", SessionConfig()), inputs, batch)
    assert 0 < handed.sum() < 64
    assert np.abs(got - np.where(handed[:, None], second, first)).max() < 1e-5


@pytest.mark.parametrize("batch", [1, 7])
def test_parts_in_integers_are_spliced(small_builder: Builder, tmp_path, batch) -> None:
    root = Plan(training=small_builder.workload.training, session=plain_session())
    to_integers = Pull("quantize", {"method": "static"})
    plans = [apply_all(root, [Pull("distill", STUDENT), to_integers]), apply_all(root, [to_integers])]
    paths = [small_builder.graph(p).path / "model.onnx" for p in plans]
    images = small_builder.examples.valid.inputs
    first, second = (run_in_batches(open_session(p, SessionConfig()), images, batch) for p in paths)
    handed = sure(first) < (threshold := float(np.quantile(sure(first), 0.4)))
    onnx.save(splice([load(p) for p in paths], [threshold]), tmp_path / "cascade.onnx")
    got, wanted = run_in_batches(open_session(tmp_path / "cascade.onnx", SessionConfig()), images, batch), np.where(handed[:, None], second, first)
    assert 0 < handed.sum() < len(handed)
    assert np.abs(got - wanted).mean() < 0.02 * np.abs(wanted).mean(), "an engine may round a step more or less in a branch"


def test_graphs_of_different_inputs_cannot_be_spliced(graphs, tmp_path) -> None:
    export(Served(nn.Sequential(nn.Flatten(), nn.Linear(25, 4)), None), [np.zeros((4, 1, 5, 5), np.float32)], tmp_path / "other.onnx")
    with pytest.raises(GraphError, match="take different inputs"):
        splice([load(graphs[0][0]), load(tmp_path / "other.onnx")], [0.5])


def test_graphs_of_two_operator_sets_name_the_operators(graphs) -> None:
    first, second = load(graphs[0][0]), load(graphs[0][1])
    second.opset_import[0].version += 1
    with pytest.raises(GraphError, match=r"cannot be spliced: part 2 uses .*Conv.* of ai\.onnx"):
        splice([first, second], [0.5])


def test_a_graph_without_class_scores_cannot_be_a_part(tmp_path) -> None:
    export(Served(nn.Conv2d(1, 2, 3), None), [np.zeros((4, 1, 5, 5), np.float32)], tmp_path / "maps.onnx")
    with pytest.raises(GraphError, match="needs class scores"):
        load(tmp_path / "maps.onnx")


# ---------------------------------------------------------------- thresholds


def cascade_of(builder: Builder, share: float, student: dict = STUDENT) -> Plan:
    root = Plan(training=builder.workload.training, session=plain_session())
    parts = [{"pulls": [{"lever": "distill", "config": student}], "hand_on": share}, {"pulls": []}]
    return apply_all(root, [Pull("cascade", {"parts": parts})])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_thresholds_hand_on_the_share_that_was_asked_for(small_builder: Builder, share: float) -> None:
    meta = small_builder.graph(cascade_of(small_builder, share)).meta
    assert meta["handed_on"] == pytest.approx(share, abs=0.01)
    assert 0 < meta["thresholds"][0] <= 1


def test_a_part_whose_nodes_stand_in_no_order_is_spliced(small_builder: Builder, tmp_path: Path) -> None:
    """onnxruntime's conversion to float16 appends the cast of an input after what reads it."""
    baseline = Plan(training=small_builder.workload.training, session=plain_session())
    half = apply_all(baseline, [Pull("precision", {"weights": "float16", "compute": "float32"})])
    path = small_builder.graph(half).path / "model.onnx"
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(onnx.load(path))
    spliced = splice([load(path), load(path)], [0.5])
    images = small_builder.examples.valid.inputs
    onnx.save(spliced, tmp_path / "spliced.onnx")
    whole, alone = (run_in_batches(open_session(p, SessionConfig()), images, 7) for p in (tmp_path / "spliced.onnx", path))
    np.testing.assert_allclose(whole, alone, atol=0.02)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001])
def test_a_cascade_that_hands_on_all_or_nothing_is_refused(small_builder: Builder, share: float) -> None:
    with pytest.raises(GraphError, match="is none: choose a share between"):
        small_builder.graph(cascade_of(small_builder, share))


def test_a_constant_score_is_refused(graphs, small_builder: Builder, tmp_path) -> None:
    from tenfold.levers.cascade import _cascade

    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3] * 0.0

    images = small_builder.examples.valid.inputs
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        export(Served(Constant(), None), list(images), path)
    with pytest.raises(GraphError, match="the same for the examples"):
        _cascade(paths, tmp_path / "out.onnx", small_builder._materials(tmp_path, ""), hand_on=[0.5], blend=0.0)


# ---------------------------------------------------------------- what is proposed


def test_a_foreseen_cascade_becomes_a_config() -> None:
    rng = np.random.default_rng(2)
    parts = [
        Part(recipe=Recipe(workload="w").then("distill", {"name": str(i)}), outputs=rng.random((100, 3)), scores=np.ones(100), cost=1.0 / (1 + i))
        for i in range(2)
    ]
    config = _json(foresee.Foreseen(parts=(parts[1], parts[0]), hand_on=(0.2,), quality=0.0, deviation=0.0, cost=0.7))
    assert config == {
        "blend": 0.0,
        "parts": [
            {"pulls": [{"lever": "distill", "config": {"name": "1"}}], "hand_on": 0.2},
            {"pulls": [{"lever": "distill", "config": {"name": "0"}}]},
        ],
    }
