"""A workload: what is wrong with it is refused in a sentence, and its identity is what shapes the artefact."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from tenfold.data.split import Split
from tenfold.errors import WorkloadError
from tenfold.train.config import TrainConfig
from tenfold.workload import Workload, find, identity, load, weights_identity

RNG = np.random.default_rng(0)


def pair(n: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return RNG.normal(size=(n, 4)).astype(np.float32), np.arange(n) % classes


DATA = {name: pair(n) for name, n in (("train", 30), ("valid", 12), ("confirm", 9), ("test", 15))}


def model() -> nn.Module:
    return nn.Linear(4, 3)


def workload(**changes) -> Workload:
    return Workload(**({"model": model, "margin": 0.01, **DATA} | changes))


def refused(pattern: str):
    return pytest.raises(WorkloadError, match=pattern)


# ---------------------------------------------------------------- what may be asked


@pytest.mark.parametrize("margin", [0, -0.01, math.nan, math.inf, "0.01", None])
def test_a_margin_that_is_not_above_zero_is_refused(margin):
    with refused("it must be a number above 0, in units of the metric"):
        workload(margin=margin)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": nn.Linear(4, 3).weight}, "must be a function that builds the model"),
        ({"margin_kind": "percent"}, "margin_kind is 'percent': use 'absolute' or 'relative'"),
        ({"loss": "hinge"}, "loss 'hinge' is not known: use cross_entropy, .*, or a function"),
        ({"metric": "bleu"}, "metric 'bleu' is not known: use accuracy, .*, or a function"),
    ],
)
def test_what_is_not_known_is_refused(changes, sentence):
    with refused(sentence):
        workload(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0: it must be above 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"batch_size": 10, "accumulate": 11}, "a batch of 10 cannot be made of 11 micro-batches"),
        ({"optimizer": "adagrad"}, "optimizer 'adagrad' is not known"),
    ],
)
def test_training_that_makes_no_sense_is_refused(changes, sentence):
    with refused(sentence):
        TrainConfig(**changes)


def test_a_relative_margin_is_a_share_of_the_baselines_quality():
    relative = workload(margin=0.02, margin_kind="relative")
    assert relative.absolute_margin(0.5) == 0.01
    assert relative.absolute_margin(-2.0) == 0.04  # scores of an error are negative, margins are not
    assert workload(margin=0.02).absolute_margin(0.5) == 0.02


# ---------------------------------------------------------------- scores

OUTPUTS, TARGETS = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0]], np.float32), np.array([0, 0, 1])


def test_named_metrics_by_hand():
    assert workload().scores(OUTPUTS, TARGETS).tolist() == [1, 0, 1]
    values, wanted = np.array([[1.0, 3.0], [2.0, 2.0]], np.float32), np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    # errors are turned round, so that higher is better everywhere
    assert workload(metric="squared_error", loss="mse").scores(values, wanted).tolist() == [-2.5, -0.5]
    assert workload(metric="absolute_error", loss="l1").scores(values, wanted).tolist() == [-1.5, -0.5]


def test_a_metric_may_be_a_function_of_either_direction():
    assert workload(metric=lambda o, _: o[:, 0]).scores(OUTPUTS, TARGETS).tolist() == [2, 0, 3]
    assert workload(metric=lambda o, _: o[:, 0], higher_is_better=False).scores(OUTPUTS, TARGETS).tolist() == [-2, 0, -3]


def test_a_metric_of_the_wrong_length_is_refused():
    for metric in (lambda o, _: o, lambda o, _: o[:2, 0], lambda o, _: o.mean()):
        with refused(r"metric <lambda> gave shape .* for 3 examples: it must give one score an example, shape \(n,\)"):
            workload(metric=metric).scores(OUTPUTS, TARGETS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_refused_with_its_example(value):
    with refused("gave NaN or infinity for example 1"):
        workload(metric=lambda o, _: np.where(o[:, 0] == 0, value, o[:, 0])).scores(OUTPUTS, TARGETS)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse", "l1"])
def test_named_losses_by_hand(name):
    logits, target = torch.tensor([[0.3], [-1.2]]), torch.tensor([1, 0])
    probability = torch.sigmoid(logits[:, 0])
    wanted = {
        "binary_cross_entropy": -(probability[0].log() + (1 - probability[1]).log()) / 2,
        "mse": (0.7**2 + 1.2**2) / 2,
        "l1": (0.7 + 1.2) / 2,
        "cross_entropy": -(probability[0].log() + (1 - probability[1]).log()) / 2,
    }[name]
    output = torch.cat([torch.zeros_like(logits), logits], dim=1) if name == "cross_entropy" else logits
    # targets of shape (n,) and integers, as data has them; float32
    assert workload(loss=name).loss_function()(output, target).item() == pytest.approx(float(wanted), rel=1e-6)


# ---------------------------------------------------------------- data


def test_given_splits_are_taken_as_they_are():
    examples = load(workload())
    assert examples.sizes() == {"train": 30, "valid": 12, "confirm": 9, "test": 15}
    assert examples.classes == 3
    assert examples.notes == ()
    assert (examples.split("test").targets == DATA["test"][1]).all()


def test_missing_splits_are_carved_and_the_notes_say_so():
    examples = load(workload(train=pair(200), valid=None, confirm=None, test=None))
    assert sum(examples.sizes().values()) == 200
    assert len(examples.notes) == 3
    assert all("carved out of" in note for note in examples.notes)


def test_without_train_the_rest_still_works_and_asking_for_it_is_refused():
    examples = load(workload(train=None))
    assert examples.sizes()["train"] == 0
    with refused("there is no train split: give train= in the workload"):
        examples.split("train")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"test": (DATA["test"][0], np.r_[DATA["test"][1][:-1], 7]), "labels": list("abc")},
            "test: label 7 in row 14 is out of range for 3 labels",
        ),
        ({"valid": (DATA["valid"][0], DATA["valid"][1] - 1)}, "valid: label -1 in row 0 is below 0"),
        ({"train": (DATA["train"][0], DATA["train"][1] + 0.5)}, "train: class labels must be whole numbers from 0"),
        ({"valid": (DATA["valid"][0], np.full(12, 2))}, r"valid has one class only \(2\): give examples of at least two"),
        ({"valid": DATA["valid"][0]}, r"valid has no targets: give it as \(x, y\)"),
        (
            {"test": (RNG.normal(size=(15, 5)).astype(np.float32), DATA["test"][1])},
            "the splits differ in the shape of an example",
        ),
        ({"test": (DATA["test"][0][:0], DATA["test"][1][:0])}, "test is empty"),
        ({"train": (np.full((30, 4), np.nan, np.float32), DATA["train"][1])}, "train: input 0 has NaN in row 0, column 0"),
        (
            {"valid": None, "confirm": None, "train": None, "test": pair(2)},
            "there is no valid split and too little to carve it from",
        ),
        ({"test": (*DATA["test"], np.zeros(15))}, "test has one group only: no interval can be had from it"),
        ({"test": (*DATA["test"], np.arange(14))}, "test: groups has 14 rows, input 0 has 15"),
        ({"groups": "person"}, "groups='person' names a column of a table, and train is none"),
        ({"train": {"image": DATA["train"][0], "label": DATA["train"][1]}}, r"train is a dict: give \(x, y\), "),
    ],
)
def test_data_that_will_not_do_is_refused_with_its_place(changes, sentence):
    with refused(sentence) as caught:
        load(workload(**changes))
    assert "\n" not in str(caught.value)


def test_targets_of_a_regression_may_be_anything_finite():
    values = {name: (x, x[:, 0] * 7 - 3) for name, (x, _) in DATA.items()}
    examples = load(workload(**values, loss="mse", metric="squared_error"))
    assert examples.classes is None


def test_duplicates_between_splits_are_noted():
    x, y = DATA["test"]
    leaky = (np.r_[x[:12], DATA["train"][0][:3]], y)
    assert load(workload(test=leaky)).notes == ("3 examples of test are exact duplicates of some in train",)


def test_image_folders_share_the_classes_of_the_first(tmp_path):
    for split, classes in {"train": "abc", "valid": "ac", "confirm": "bc", "test": "ac"}.items():
        for c in classes:
            (tmp_path / split / c).mkdir(parents=True)
            Image.fromarray(np.full((4, 4), ord(c), np.uint8)).save(tmp_path / split / c / "0.png")
    examples = load(workload(**{name: tmp_path / name for name in DATA}))
    assert examples.labels == ("a", "b", "c")
    for split in (examples.split(name) for name in DATA):  # the pixel tells the class
        assert (split.inputs[0][:, 0, 0, 0] == split.targets + ord("a")).all()


# ---------------------------------------------------------------- identity


def half_mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target) ** 2).mean() / 2


def identity_of(**changes) -> str:
    task = workload(**changes)
    torch.manual_seed(0)
    net = task.model()
    return identity(task, load(task), net)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": (DATA["train"][0] + 1, DATA["train"][1])},
        {"test": (DATA["test"][0], DATA["test"][1][::-1])},
        {"train": None},
        {"loss": half_mse},
        {"metric": "squared_error"},
        {"metric": lambda o, _: o[:, 0]},
        {"higher_is_better": False},
        {"model": functools.partial(nn.Linear, 4, 3, bias=False)},
        {"model": lambda: nn.Sequential(nn.Linear(4, 3))},
        {"model": functools.partial(nn.Linear, 4, 4)},
        {"training": TrainConfig(epochs=11)},
        {"augment": lambda x, _: x},
        {"preprocess": nn.Identity()},
    ],
    ids="-".join,
)
def test_whatever_shapes_the_model_or_its_scores_changes_the_identity(changes):
    assert identity_of(**changes) != identity_of()


def test_the_identity_is_the_same_for_the_same_and_for_other_names_and_margins():
    assert identity_of() == identity_of(**{name: (x.copy(), y.copy()) for name, (x, y) in DATA.items()})
    assert identity_of() == identity_of(train=Split(inputs=(DATA["train"][0],), targets=DATA["train"][1]))
    assert identity_of() == identity_of(name="other", margin=0.3, labels=list("abc"), training=TrainConfig())


def weighted(weight: object):
    """A loss that has caught something."""
    return lambda output, target: ((output - target) ** 2).mean() * weight


def mean_of(_held: object, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((output - target) ** 2).mean()


CONSTANT = [nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]
for value, net in enumerate(CONSTANT):
    nn.init.constant_(net.weight, value)


class Threshold:
    """A metric with a setting."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self, outputs, targets):
        return outputs.argmax(axis=1) == targets


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"loss": weighted(1.0)}, {"loss": weighted(2.0)}),
        ({"loss": weighted(torch.tensor([1.0]))}, {"loss": weighted(torch.tensor([2.0], requires_grad=True))}),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.2)}),
        ({"loss": nn.CrossEntropyLoss(weight=torch.ones(3))}, {"loss": nn.CrossEntropyLoss(weight=torch.arange(3.0))}),
        ({"metric": Threshold(0.1)}, {"metric": Threshold(0.2)}),
        ({"metric": Threshold(0.1).__call__}, {"metric": Threshold(0.2).__call__}),
        ({"loss": functools.partial(mean_of, Threshold(0.1))}, {"loss": functools.partial(mean_of, Threshold(0.2))}),
        ({"loss": functools.partial(mean_of, np.zeros(5000))}, {"loss": functools.partial(mean_of, np.eye(1, 5000, 2500)[0])}),
        ({"loss": weighted([Threshold(0.1)])}, {"loss": weighted([Threshold(0.2)])}),
        ({"loss": weighted(CONSTANT[0])}, {"loss": weighted(CONSTANT[1])}),
        ({"loss": weighted(torch.ones(3, dtype=torch.bfloat16))}, {"loss": weighted(torch.zeros(3, dtype=torch.bfloat16))}),
        ({"loss": weighted(np.array([None, "a"]))}, {"loss": weighted(np.array([None, "b"]))}),
    ],
    ids=["closure", "tensor in a closure", "setting of a module", "weights of a module", "object", "method", "object in a partial",
         "long array in a partial", "object in a list", "teacher", "bfloat16", "objects"],
)
def test_what_a_function_or_object_holds_is_part_of_the_identity(one, other):
    assert identity_of(**one) == identity_of(**one)
    assert identity_of(**one) != identity_of(**other)


def test_the_identity_is_the_same_in_another_process(tmp_path):
    code = (
        "import numpy as np, torch\nfrom torch import nn\nfrom tenfold.workload import code_identity, find\n"
        "from tenfold.recipe import digest\n"
        f"task = find({task(tmp_path, TASK + 'workload = Workload(model=lambda: nn.Linear(4, 2), margin=0.01, train=(x, y), loss=nn.CrossEntropyLoss())')!r})\n"
        "print(digest([code_identity(task.model), code_identity(task.loss)]))"
    )
    answers = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def test_other_initial_weights_are_another_identity():
    task, examples = workload(), load(workload())
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(model())
    ids = [identity(task, examples, net) for net in nets]
    assert ids[0] == ids[1] != ids[2]


# ---------------------------------------------------------------- task files

HEAD = """
import numpy as np
from torch import nn
from tenfold import Workload

x, y = np.random.default_rng(0).normal(size=(40, 4)).astype("float32"), np.arange(40) % 2
"""
TASK = HEAD + "workload = Workload(model=lambda: nn.Linear(4, 2), margin=0.01, train=(x, y))\n"


def task(folder: Path, text: str, name: str = "task.py") -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return str(folder / name)


def test_a_task_file_is_its_workload_under_the_files_name(tmp_path):
    found = find(task(tmp_path, TASK, "prices.py"))
    assert found.name == "prices"
    assert load(found).sizes()["train"] > 0


def test_any_single_workload_will_do_and_one_of_several_by_name(tmp_path):
    one = task(tmp_path, TASK.replace("workload =", "mine ="), "one.py")
    assert find(one).margin == 0.01
    two = task(
        tmp_path, TASK + "other = Workload(model=lambda: nn.Linear(4, 2), margin=0.5, train=(x, y), name='named')\n", "two.py"
    )
    assert find(two).margin == 0.01
    assert find(f"{two}:other").margin == 0.5
    assert find(f"{two}:other").name == "named"


def test_a_workload_may_be_a_function_of_where_the_data_lies(tmp_path):
    path = task(
        tmp_path, HEAD + "def workload(data):\n    return Workload(model=lambda: nn.Linear(4, 2), margin=0.1, train=data)\n"
    )
    assert find(path, tmp_path / "here").train == tmp_path / "here"
    assert find(path).train is None
    path = task(tmp_path, HEAD + "def workload():\n    return Workload(model=lambda: nn.Linear(4, 2), margin=0.2)\n")
    assert find(path).margin == 0.2


def test_a_task_file_may_import_its_neighbours(tmp_path):
    task(tmp_path, "margin = 0.25\n", "beside_the_task.py")
    path = task(
        tmp_path, TASK.replace("0.01", "beside_the_task.margin").replace("import numpy", "import beside_the_task\nimport numpy")
    )
    assert find(path).margin == 0.25


def test_the_identity_of_a_task_changes_with_any_line_of_its_file(tmp_path):
    ids = []
    for i, text in enumerate((TASK, TASK, TASK.replace("nn.Linear(4, 2)", "net()") + "def net():\n    return nn.Linear(4, 2)\n")):
        (tmp_path / str(i)).mkdir()
        found = find(task(tmp_path / str(i), text))
        torch.manual_seed(0)
        net = found.model()
        ids.append(identity(found, load(found), net))
    assert ids[0] == ids[1] != ids[2]


def test_a_workload_that_is_not_there_is_refused_with_what_is():
    with refused(r"there is no workload 'mnits': use .*digits, .*, or path/to/task\.py\[:name\]"):
        find("mnits")


def test_a_built_in_is_found_by_its_name():
    assert find("digits").demo


def test_a_task_file_that_does_not_exist_is_refused(tmp_path):
    with refused(r"nowhere\.py does not exist: name a Python file"):
        find(str(tmp_path / "nowhere.py"))


@pytest.mark.parametrize(("spec", "wanted"), [("", "workload"), (":other", "other"), (":x", "x")])
def test_a_name_that_is_no_workload_is_refused(tmp_path, spec, wanted):
    path = task(tmp_path, HEAD)
    with refused(rf"task\.py has no tenfold\.Workload named '{wanted}': assign one, or name it with"):
        find(path + spec)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n\nraise ValueError('first\\nsecond')\n", r"task\.py, line 3 raised ValueError: first$"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"task\.py, line 2 raised ZeroDivisionError: division by zero$"),
        ("import no_such_module\n", r"task\.py, line 1 raised ModuleNotFoundError: No module named 'no_such_module'$"),
        ("import json\n\n\njson.loads('{')\n", r"task\.py, line 4 raised JSONDecodeError: "),
        ("x = = 1\n", r"task\.py raised SyntaxError: .*line 1"),
        ("def workload(data):\n    raise RuntimeError\n", r"task\.py, line 2 raised RuntimeError: no message$"),
        ("import sys\nsys.exit(0)\n", r"task\.py, line 2 raised SystemExit: 0$"),
    ],
    ids=["raise", "function", "import", "in a library", "syntax", "factory", "exit"],
)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_task_file_that_raises_is_one_sentence_with_the_line(tmp_path, monkeypatch, text, sentence, relative):
    path = task(tmp_path, text)
    monkeypatch.chdir(tmp_path.parent)
    with refused(sentence) as caught:
        find(f"{tmp_path.name}/task.py" if relative else path)
    assert "\n" not in str(caught.value)


def test_what_a_task_says_of_its_own_data_passes_through(tmp_path):
    with refused("^margin is -1: it must be a number above 0"):
        find(task(tmp_path, TASK.replace("0.01", "-1")))


def test_a_workload_stays_as_it_was_written():
    with pytest.raises(dataclasses.FrozenInstanceError):
        workload().margin = 1


def test_the_built_in_baseline_is_the_one_that_the_record_chose():
    from tenfold.workloads import fashion_mnist

    record = json.loads((Path(__file__).parents[1] / "records/baselines/fashion-mnist.json").read_text())
    assert record["chosen"] == fashion_mnist.WIDTH
    assert {row["width"] for row in record["sizes"]} == set(fashion_mnist.WIDTHS)
    reached = [row for row in record["sizes"] if row.get("held_out", 0.0) >= fashion_mnist.BAR]
    assert [row["width"] for row in reached] == [fashion_mnist.WIDTH]
    assert reached[0]["test"] >= 0.935


def test_class_scores_may_be_said_where_loss_and_metric_do_not_say_it() -> None:
    own = {"loss": lambda o, t: (o - t).mean(), "metric": lambda o, t: o[:, 0]}
    assert not workload(**own).classifies
    assert workload(class_scores=True, **own).classifies
    assert not workload(class_scores=False).classifies


def test_weights_of_any_dtype_have_an_identity() -> None:
    half = nn.Linear(3, 2).to(torch.bfloat16)
    before = weights_identity(half)
    with torch.no_grad():
        half.bias[0] += 1
    assert weights_identity(half) != before


# ---------------------------------------------------------------- tables


def table(rows: int = 40, **changes) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.random(rows), "b": rng.random(rows) + 5, "label": np.arange(rows) % 2} | changes)


def test_tables_are_joined_by_the_names_of_their_columns() -> None:
    frame, fresh = table(), table(b=np.arange(40.0))
    examples = load(Workload(
        model=functools.partial(nn.Linear, 2, 2), margin=0.1, train=frame, valid=frame[["b", "label", "a"]], confirm=frame, test=frame[["label", "b", "a"]],
        unlabelled=fresh[["b", "a"]],
    ))  # fmt: skip
    for split in (examples.valid, examples.test):
        np.testing.assert_array_equal(split.inputs[0], examples.train.inputs[0])
    np.testing.assert_array_equal(examples.unlabelled.inputs[0], fresh[["a", "b"]].to_numpy(np.float32))


@pytest.mark.parametrize("split", ["test", "unlabelled"])
def test_tables_with_other_columns_are_refused(split) -> None:
    frame = table()
    given = {"train": frame, "valid": frame, "confirm": frame, "test": frame} | {split: frame.rename(columns={"b": "c"})}
    with pytest.raises(WorkloadError, match=f"{split} lacks 'b' and has 'c' as well: give it the columns of "):
        load(Workload(model=functools.partial(nn.Linear, 2, 2), margin=0.1, **given))
