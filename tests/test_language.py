"""Language: text as tokens, small nets that must not see what they predict, and a run of each through every lever."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tenfold import build
from tenfold.build import Builder
from tenfold.bundle import Bundle
from tenfold.data.text import GROUP_TOKENS, UNKNOWN, blocks, byte_pairs, characters, read_text
from tenfold.errors import WorkloadError
from tenfold.execute import plain_session
from tenfold.pipeline import run
from tenfold.plan import Plan
from tenfold.train.config import TrainConfig
from tenfold.workload import Workload, find
from tenfold.workloads.language import lstm, of_text, transformer

WORDS = ["the", "a", "king", "queen", "fool", "sees", "loves", "hears", "no", "every", "and", "then", "but", "or", "night", "day", "crown", "speaks", "alone", "sword"]


def some_text(words: int, seed: int = 0) -> str:
    """Words of which each makes some others likely, in lines."""
    rng = np.random.default_rng(seed)
    likely = np.random.default_rng(1).dirichlet(np.full(len(WORDS), 0.2), len(WORDS))
    out, word = [], 0
    for i in range(words):
        word = int(rng.choice(len(WORDS), p=likely[word]))
        out.append(WORDS[word] + ("\n" if i % 9 == 8 else " "))
    return "".join(out)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_text(some_text(12_000), encoding="utf-8")
    return path


def of_file(file: Path, **changes) -> Workload:
    return of_text(file, **{"name": "play", "context": 32, "width": 64, "depth": 2, "training": TrainConfig(epochs=1, batch_size=32, learning_rate=3e-3)} | changes)


# ---------------------------------------------------------------- reading


def test_a_text_in_one_piece_is_cut_and_test_is_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff".encode() + ("0123456789" * 100).encode())
    train, valid, test = read_text(path)
    assert train + valid + test == "0123456789" * 100, "the mark of byte order is none of it"
    assert [len(train), len(valid), len(test)] == [800, 100, 100]


def test_a_folder_is_read_by_name_or_as_it_is_divided(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("notes.md", "not this")):
        (tmp_path / name).write_text(text)
    assert "".join(read_text(tmp_path)) == "first\nsecond"
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text(part)
    assert read_text(tmp_path) == ("train", "valid", "test")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("un café".encode("latin-1"))
    with pytest.raises(WorkloadError, match=r"latin.txt is not UTF-8 \(byte 6\): convert it"):
        read_text(latin)
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkloadError, match="has no .txt file"):
        read_text(tmp_path / "empty")
    short = tmp_path / "short.txt"
    short.write_text("word " * 2_000)
    with pytest.raises(WorkloadError, match=r"short.txt is too short: \w+ comes to 500 tokens, and needs 2,049"):
        of_file(short)


# ---------------------------------------------------------------- tokens


def test_characters_are_numbered_by_code_point_and_others_are_unknown() -> None:
    known = characters("banana 🙂")
    assert known.labels == (UNKNOWN, " ", "a", "b", "n", "🙂")
    assert known.encode("ban 🙂").tolist() == [3, 2, 4, 1, 5]
    assert known.encode("bean").tolist() == [3, 0, 2, 4]
    assert characters("").encode("a").tolist() == [0]


def test_rare_characters_are_unknown_in_a_large_vocabulary() -> None:
    known = characters("".join(chr(0x4E00 + i) for i in range(600)) + "common" * 2)
    assert len(known.labels) == 512
    assert (known.encode("common") > 0).all()


def test_byte_pairs_say_the_whole_text_whatever_is_in_it() -> None:
    text = some_text(2_000)
    known = byte_pairs(text, 300)
    tokens = known.encode(text)
    assert len(known.labels) == 300
    assert "".join(known.labels[i] for i in tokens) == text
    assert len(tokens) < len(text) / 2
    assert "".join(known.labels[i] for i in known.encode("Zebra 7!")) == "Zebra 7!", "which train has not"
    assert known.encode("").shape == (0,)
    assert byte_pairs(text, 300).labels == known.labels


def test_targets_are_what_follows_and_groups_are_contiguous() -> None:
    tokens = np.arange(5_000)
    apart = blocks(tokens, 100)
    assert (apart.inputs[0] == np.arange(4_900).reshape(49, 100)).all()
    assert (apart.targets == apart.inputs[0] + 1).all()
    assert apart.groups.tolist() == [100 * i // GROUP_TOKENS for i in range(49)]
    overlapping = blocks(tokens, 100, stride=25)
    assert (overlapping.inputs[0][:, 0] == np.arange(0, 4_900, 25)).all()
    assert overlapping.groups is None


def test_splits_follow_one_another_in_the_text(file: Path) -> None:
    workload, text = of_file(file), file.read_text()
    said = {name: "".join(workload.labels[i] for i in getattr(workload, name).inputs[0].ravel()) for name in ("valid", "confirm", "test")}
    places = {name: text.index(part) for name, part in said.items()}
    assert round(len(text) * 0.8) <= places["valid"] < places["confirm"] < places["test"]
    assert places["valid"] + len(said["valid"]) <= places["confirm"]
    assert places["confirm"] + len(said["confirm"]) <= places["test"]
    train = workload.train.inputs[0]
    assert "".join(workload.labels[i] for i in train[::4].ravel()) in text[: round(0.8 * len(text))], "of four blocks one after the other the rest overlap"


# ---------------------------------------------------------------- nets


@pytest.mark.parametrize("net", [transformer(tokens=20, context=16, width=64, depth=2), lstm(tokens=20, width=64)])
def test_a_net_does_not_see_what_it_predicts(net: nn.Module) -> None:
    tokens = torch.randint(0, 20, (3, 16))
    other = tokens.clone()
    other[:, 9] = (other[:, 9] + 1) % 20
    with torch.no_grad():
        a, b = net.eval()(tokens), net(other)
    assert a.shape == (3, 16, 20)
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert ((a[:, 9:] - b[:, 9:]).abs().amax((0, 2)) > 1e-6).all(), "all later ones see it"


def test_a_smaller_net_has_whole_heads() -> None:
    nets = [transformer(share, tokens=20, context=16, width=192) for share in (1.0, 0.7, 0.6, 0.5, 0.35, 0.25, 0.18, 0.12)]
    assert [n.embed.weight.shape[1] for n in nets] == [192, 128, 112, 96, 64, 48, 32, 16]
    assert [n.layers[0].self_attn.num_heads for n in nets] == [6, 4, 2, 3, 2, 1, 1, 1]


def test_a_vocabulary_as_large_as_the_context_is_told_from_it(tmp_path: Path) -> None:
    path = tmp_path / "32.txt"
    path.write_text("".join(chr(97 + i) for i in np.random.default_rng(0).integers(0, 31, 60_000)))
    assert len(of_file(path).labels) == 33


# ---------------------------------------------------------------- scores by position


def test_losses_and_scores_take_classes_along_the_last_axis() -> None:
    logits, target = np.random.default_rng(0).normal(size=(5, 4, 7)).astype(np.float32), np.arange(20).reshape(5, 4) % 7
    each = np.array([[math.log(np.exp(row).sum()) - row[t] for row, t in zip(rows, ts, strict=True)] for rows, ts in zip(logits, target, strict=True)])
    workload = Workload(model=nn.Identity, margin=0.1, metric="log_loss")
    assert workload.scores(logits, target) == pytest.approx(-each.mean(1), rel=1e-6), "a loss is turned round"
    assert workload.scores(logits.swapaxes(1, 2), target) == pytest.approx(-each.mean(1), rel=1e-6)
    loss = workload.loss_function()
    assert loss(torch.from_numpy(logits), torch.from_numpy(target)).item() == pytest.approx(each.mean(), rel=1e-6)
    assert loss(torch.from_numpy(logits).mT, torch.from_numpy(target)).item() == pytest.approx(each.mean(), rel=1e-6)
    right = Workload(model=nn.Identity, margin=0.1).scores(logits, target)
    assert right == pytest.approx((logits.argmax(2) == target).mean(1))
    assert workload.perplexity(-each.mean()) == pytest.approx(math.exp(each.mean()))
    assert Workload(model=nn.Identity, margin=0.1).perplexity(0.9) is None


def test_log_loss_without_classes_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no axis of the outputs holds one logit a class"):
        Workload(model=nn.Identity, margin=0.1, metric="log_loss").scores(np.zeros((5, 4, 7)), np.zeros((5, 3), int))


def test_large_answers_are_scored_in_parts_and_not_kept(small_builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, valid = Plan(training=small_builder.workload.training, session=plain_session()), small_builder.examples.valid
    whole = small_builder.scores(plan, valid, 4)
    monkeypatch.setattr(build, "KEPT_BYTES", 0)
    monkeypatch.setattr(build, "PART_BYTES", 130)  # ten examples: parts of eight
    kept: list[str] = []
    monkeypatch.setattr(small_builder, "on_step", lambda _kind, step, _seconds: kept.extend(p.name for p in step.path.iterdir()))
    assert (small_builder.scores(plan, valid, 4) == whole).all()
    assert "scores.npy" in kept
    assert "outputs.npy" not in kept


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize(("net", "refused"), [("transformer", {"cascade"}), ("lstm", {"cascade", "prune"})])
def test_a_language_model_goes_through_every_lever(net: str, refused: set[str], file: Path, tmp_path: Path) -> None:
    document = run(of_file(file, net=net), out=tmp_path / "run", budget=600, trials=12, view="quiet").document
    rows = {r["lever"]: r for r in document["ladder"]}
    assert "have no single row of class scores" in rows["cascade"]["reason"]
    for lever in ("distill", "prune", "quantize", "cascade"):
        assert (rows[lever]["tried"] == 0) == (lever in refused) or "measured" in rows[lever]["reason"], rows[lever]["reason"]
    failed = [c["reason"] for c in document["candidates"] if c["reason"].startswith("failed:")]
    assert all("onnxruntime" in reason for reason in failed), "it crashes on recurrent layers in half floats, and finds no histogram of some tensors"
    if (certified := document["certified"]) is not None:
        assert certified["perplexity"] == pytest.approx([math.exp(-certified["baseline_quality"]), math.exp(-certified["candidate_quality"])])
        assert certified["n"] == len(of_file(file).test)
    tokens = of_file(file).test.inputs[0][:7]
    bundle = Bundle.load(tmp_path / "run" / "bundle")
    assert bundle.predict(tokens).shape == (7, 32, len(of_file(file).labels))
    assert bundle.manifest["task"] == "classification by position"


def test_text_is_found_by_name_or_given(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find("language", file).name == "language"
    assert isinstance(find("language-lstm", file).model().lstm, nn.LSTM)
    (tmp_path / "long.txt").write_text(some_text(50_000))
    assert len(find("language-bytepair", tmp_path / "long.txt").labels) > 256
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WorkloadError, match=r"brown is not on this machine: put train.txt, valid.txt, test.txt in a folder and name it with --data"):
        find("language-bytepair")


@pytest.mark.data
def test_real_texts_come_whole() -> None:
    folder = Path(os.environ.get("TENFOLD_DATA", "nowhere"))
    if not all((folder / name).is_dir() for name in ("tinyshakespeare", "brown")):
        pytest.skip("no copy of tinyshakespeare and the Brown corpus: set TENFOLD_DATA to the folder that holds both")
    shakespeare, brown = find("language"), find("language-bytepair")
    assert len(shakespeare.labels) == 66
    assert shakespeare.test.inputs[0].size == 111_488  # a tenth of 1,115,394 characters, in whole blocks
    assert len(brown.labels) == 1024
    assert brown.train.inputs[0].shape[1] == 128
