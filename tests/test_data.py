"""Data: what users have becomes the right arrays, or one sentence that names what is wrong with it; carving loses nothing."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold.data import named
from tenfold.data.carve import carve
from tenfold.data.named import cifar10, fashion_mnist, find, read_idx
from tenfold.data.sources import encode_labels, load_npy, to_split
from tenfold.data.split import Split, check_numbers, duplicates
from tenfold.errors import WorkloadError
from tenfold.workloads import cifar10 as cifar10_family

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 0, 1, 2, 2])


def refused(pattern: str):
    return pytest.raises(WorkloadError, match=pattern)


# ---------------------------------------------------------------- carving


def numbered(n: int, groups: np.ndarray | None = None, first: int = 0) -> Split:
    """Examples that carry their own number."""
    rows = np.arange(first, first + n)
    return Split(inputs=(rows[:, None],), targets=rows, groups=groups)


def rows_of(splits: dict[str, Split | None]) -> np.ndarray:
    return np.concatenate([s.targets for s in splits.values() if s is not None])


@given(st.integers(30, 400), st.sampled_from(["train", "valid", "test"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_carving_loses_nothing_and_doubles_nothing(n, given_split, grouped):
    groups = np.arange(n) // 3 if grouped else None
    out, _ = carve({given_split: numbered(n, groups)})
    assert sorted(rows_of(out)) == list(range(n))


@given(st.integers(5, 60), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_carving_by_group_never_splits_a_group(groups, largest, seed):
    rng = np.random.default_rng(seed)
    labels = np.array([f"user {g}" for g in rng.permutation(np.repeat(np.arange(groups), rng.integers(1, largest + 1, groups)))])
    out, _ = carve({"train": numbered(len(labels), labels)})
    held = [set(s.groups) for s in out.values() if s is not None]
    assert sum(map(len, held)) == len(set.union(*held)) == groups
    assert sorted(rows_of(out)) == list(range(len(labels)))
    for split in out.values():  # groups and inputs still belong to their rows
        assert split is None or (split.groups == labels[split.targets]).all()


def test_carving_is_the_same_every_time():
    one, two = (carve({"train": numbered(500)})[0] for _ in range(2))
    assert {name: s.identity for name, s in one.items()} == {name: s.identity for name, s in two.items()}


def test_a_longer_data_set_is_not_carved_in_the_order_it_came_in():
    test = carve({"train": numbered(500)})[0]["test"]
    assert 200 < test.targets.mean() < 300  # a mean of 100 of 500 numbers has a standard error of 13


def test_train_alone_gives_all_four_in_their_shares():
    out, said = carve({"train": numbered(1_000), "valid": None, "confirm": None, "test": None})
    # test is a fifth of all, valid a fifth of the rest, confirm half of valid
    assert {name: len(s) for name, s in out.items()} == {"train": 640, "valid": 80, "confirm": 80, "test": 200}
    assert said == [
        "no test split was given: 200 examples carved out of train",
        "no valid split was given: 160 examples carved out of train",
        "no confirm split was given: 80 examples carved out of valid",
    ]


def test_carving_by_group_says_so():
    _, said = carve({"train": numbered(100, np.arange(100) // 2)})
    assert all(sentence.endswith("by group") for sentence in said)


@pytest.mark.parametrize(
    ("there", "sizes"),
    [
        ({"train": 100, "test": 50}, {"train": 80, "test": 50, "valid": 10, "confirm": 10}),
        ({"train": 100, "valid": 50}, {"train": 80, "valid": 25, "confirm": 25, "test": 20}),
        ({"valid": 100}, {"valid": 40, "confirm": 40, "test": 20}),
        ({"test": 100}, {"test": 80, "valid": 10, "confirm": 10}),
        ({"train": 10, "valid": 20, "confirm": 30, "test": 40}, {"train": 10, "valid": 20, "confirm": 30, "test": 40}),
    ],
)
def test_only_what_is_missing_is_carved_and_from_where_it_may_be(there, sizes):
    given_splits = {name: numbered(n, first=1_000 * i) for i, (name, n) in enumerate(there.items())}
    out, said = carve(dict(given_splits))
    assert {name: len(s) for name, s in out.items()} == sizes
    assert sorted(rows_of(out)) == sorted(rows_of(given_splits))
    assert len(said) == len(sizes) - len(there)


def test_what_is_too_small_to_carve_is_left_whole():
    out, said = carve({"train": numbered(2)})
    assert len(out["train"]) == 2
    assert said == []


# ---------------------------------------------------------------- a split


def test_a_split_takes_rows_of_everything():
    split = Split(inputs=(X, Y[:, None]), targets=Y, groups=Y * 10).take([4, 1])
    assert (split.inputs[0] == X[[4, 1]]).all()
    assert (split.inputs[1][:, 0] == Y[[4, 1]]).all()
    assert list(split.targets) == [2, 1]
    assert list(split.groups) == [20, 10]


@pytest.mark.parametrize(
    "other",
    [
        Split(inputs=(X + 1,), targets=Y, groups=Y),
        Split(inputs=(X,), targets=Y[::-1], groups=Y),
        Split(inputs=(X,), targets=Y, groups=Y[::-1]),
        Split(inputs=(X,), targets=Y),
        Split(inputs=(X, Y), targets=Y),
        Split(inputs=(X.astype(np.float64),), targets=Y, groups=Y),
        Split(inputs=(X.reshape(6, 3, 1),), targets=Y, groups=Y),
        Split(inputs=(X[:5],), targets=Y[:5], groups=Y[:5]),
    ],
    ids=["values", "targets", "groups", "no groups", "two inputs", "dtype", "shape", "length"],
)
def test_whatever_differs_changes_the_identity(other):
    assert other.identity != Split(inputs=(X,), targets=Y, groups=Y).identity


def test_equal_content_has_one_identity_however_it_lies_in_memory():
    split = Split(inputs=(X,), targets=Y, groups=np.array(list("abcabc")))
    same = Split(inputs=(np.asfortranarray(X),), targets=np.repeat(Y, 2)[::2], groups=np.array(list("abcabc")))
    assert same.identity == split.identity
    assert Split(inputs=(X,), groups=np.array(["a", "b"] * 3, dtype=object)).identity != split.identity


def test_duplicates_are_counted_between_each_pair_of_splits():
    train = Split(inputs=(np.array([[1], [2], [3], [3]]), np.array([5, 6, 7, 7])))
    valid = Split(inputs=(np.array([[3], [9], [3], [2]]), np.array([7, 6, 7, 9])))  # the last in its first input only
    test = Split(inputs=(np.array([[9], [8]]), np.array([6, 8])))
    assert duplicates({"train": train, "valid": valid, "test": test}) == {"train/valid": 2, "valid/test": 1}


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (Split(inputs=(X[:0],)), "^train is empty: give it"),
        (Split(inputs=(X, Y[:4])), "input 1 has 4 rows, input 0 has 6: give every array the same length"),
        (Split(inputs=(X,), targets=Y[:5]), "target has 5 rows, input 0 has 6"),
        (Split(inputs=(X,), targets=Y, groups=Y[:3]), "groups has 3 rows, input 0 has 6"),
        (Split(inputs=(X,), targets=np.array(3)), "target is a single value"),
        (Split(inputs=(np.array(3.0),)), "input 0 is a single value"),
        (Split(inputs=(np.array(["a", "b"]),)), "input 0 holds <U1 values, not numbers"),
        (Split(inputs=(X,), targets=Y.astype(object)), "target holds object values, not numbers"),
        (Split(inputs=(X.astype(complex),)), "input 0 holds complex128 values"),
        (Split(inputs=(np.where(X[4, 1] == X, np.nan, X),)), "input 0 has NaN in row 4, column 1: clean or impute"),
        (Split(inputs=(X, np.where(X[2, 0] == X, np.inf, X))), "input 1 has an infinite value in row 2, column 0"),
        (Split(inputs=(X,), targets=np.array([0, 1, np.nan, 0, 0, 0])), "target has NaN in row 2: clean"),
    ],
)
def test_what_no_model_can_learn_from_is_refused_by_name(split, sentence):
    with refused(sentence):
        check_numbers(split, "train")


def test_groups_may_be_labels_of_any_kind():
    check_numbers(Split(inputs=(X,), targets=Y, groups=np.array(list("abcabc"))), "train")
    check_numbers(Split(inputs=(X,), targets=Y, groups=np.array(list("abcabc"), dtype=object)), "train")


# ---------------------------------------------------------------- arrays, frames, datasets


def test_nothing_stays_nothing_and_a_split_stays_itself():
    split = Split(inputs=(X,))
    assert to_split(None, "train") is None
    assert to_split(split, "train") is split


def test_arrays_pairs_and_groups():
    assert to_split(X, "train").targets is None
    pair = to_split((X, Y), "train")
    assert (pair.inputs[0] == X).all()
    assert (pair.targets == Y).all()
    assert pair.groups is None
    triple = to_split((X, Y, list("aabbcc")), "train")
    assert list(triple.groups) == list("aabbcc")


def test_several_inputs_and_tensors():
    split = to_split(((torch.tensor(X, requires_grad=True), Y.tolist()), torch.tensor(Y)), "train")
    assert [x.shape for x in split.inputs] == [(6, 3), (6,)]
    assert (split.inputs[0] == X).all()
    assert (split.targets == Y).all()


def test_labels_in_words_become_indices():
    split = to_split((X, ["b", "a", "b", "c", "c", "a"]), "train", labels=["a", "b", "c"])
    assert list(split.targets) == [1, 0, 1, 2, 2, 0]
    assert split.targets.dtype == np.int64


def test_an_unknown_label_is_refused_by_name():
    with refused("train has the label 'd', which labels= does not list: add it there"):
        to_split((X, list("abcabd")), "train", labels=["a", "b", "c"])
    with refused("the label 'None'"):
        encode_labels([None], ["a"], "train")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ((np.array([[1], "x"], dtype=object), [0, 1]), "train is an object array"),
        (([[1, 2], [3]], [0, 1]), "train has rows of different shapes"),
        ([(1, 2, 3)] * 4, r"each item of the Dataset must be \(x, y\)"),
        ([], "train is empty"),
    ],
)
def test_arrays_that_are_no_table_of_numbers_are_refused(source, sentence):
    with refused(sentence):
        to_split(source, "train")


FRAME = pd.DataFrame({"a": [1, 2, 3, 4], "label": [0, 1, 0, 1], "user": list("xxyy"), "b": [0.5, 1.5, 2.5, 3.5]})


def test_a_frame_is_its_numeric_columns_its_label_and_its_groups():
    split = to_split(FRAME, "train", group="user")
    assert (split.inputs[0] == np.array([[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]], dtype=np.float32)).all()
    assert split.inputs[0].dtype == np.float32
    assert list(split.targets) == [0, 1, 0, 1]
    assert list(split.groups) == list("xxyy")


@pytest.mark.parametrize(("columns", "target"), [("a target", "target"), ("a z", "z"), ("label target a", "label")])
def test_the_target_is_label_or_target_or_the_last_column(columns, target):
    names = columns.split()
    frame = pd.DataFrame({name: [i, i + 10] for i, name in enumerate(names)})
    assert list(to_split(frame, "train").targets) == list(frame[target])


def test_columns_that_allow_missing_values_are_read_where_none_is_missing():
    frame = pd.DataFrame({"a": pd.array([1, 2], dtype="Int64"), "ok": pd.array([True, False], dtype="boolean"), "label": [0, 1]})
    assert to_split(frame, "train").inputs[0].tolist() == [[1.0, 1.0], [2.0, 0.0]]


@pytest.mark.parametrize(
    ("frame", "options", "sentence"),
    [
        (FRAME, {}, "column 'user' holds .* values, not numbers: encode or drop it first"),
        (FRAME.assign(b=[1, np.nan, 2, 3]), {"group": "user"}, "column 'b' has NaN or infinity in row 1"),
        (FRAME.assign(b=[1, 2, 3, np.inf]), {"group": "user"}, "column 'b' has NaN or infinity in row 3"),
        (FRAME.assign(b=pd.array([1, 2, None, 3], dtype="Int64")), {"group": "user"}, "column 'b' has NaN or infinity in row 2"),
        (FRAME, {"target": "price"}, "train has no column 'price' .it has a, label, user, b.: name another one"),
        (FRAME, {"group": "session"}, "train has no column 'session'"),
        (FRAME[["label"]], {}, "no column beside 'label'"),
        (FRAME, {"target": "user"}, "target 'user' holds text: list its classes in labels="),
        (FRAME[:0], {}, "train is empty"),
    ],
)
def test_frames_that_will_not_do_are_refused_with_the_column_named(frame, options, sentence):
    with refused(sentence):
        to_split(frame, "train", **options)


class Doubles(torch.utils.data.Dataset):
    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def test_a_torch_dataset_is_read_in_order():
    items = list(zip(torch.tensor(X), Y.tolist(), strict=True))
    split = to_split(Doubles(items), "train")
    assert (split.inputs[0] == X).all()
    assert (split.targets == Y).all()


def test_a_torch_dataset_may_have_several_inputs():
    split = to_split(Doubles([((x, x[:2]), y) for x, y in zip(X, Y, strict=True)]), "train")
    assert [x.shape for x in split.inputs] == [(6, 3), (6, 2)]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([(X[0], 0), (X[0, :2], 1)], "items differ in shape"),
        ([(X[0], 0), ((X[0], X[1]), 1)], "items differ in shape"),
        ([((X[0], X[1]), 0), ((X[0],), 1)], "items differ in shape"),
        ([X[0]], r"must be \(x, y\)"),
        ([(Image.new("L", (2, 2)), 0)], "yields PIL images"),
        ([], "train is empty"),
    ],
)
def test_torch_datasets_that_will_not_do_are_refused(items, sentence):
    with refused(sentence):
        to_split(Doubles(items), "train")


# ---------------------------------------------------------------- images


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "png")
    return out.getvalue()


GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 10
COLOUR = RNG.integers(0, 256, size=(4, 5, 3), dtype=np.uint8)


def folder_of(path: Path, **classes: list[np.ndarray]) -> Path:
    for name, images in classes.items():
        (path / name).mkdir(parents=True)
        for i, array in enumerate(images):
            (path / name / f"{i}.png").write_bytes(png(array))
    return path


def test_an_image_folder_is_a_class_a_folder_in_their_order(tmp_path):
    path = folder_of(tmp_path / "train", dog=[GREY, GREY + 1], cat=[GREY + 2])
    (path / "cat" / "notes.txt").write_text("no image")
    (path / ".hidden").mkdir()
    split = to_split(path, "train")
    assert split.inputs[0].dtype == np.uint8
    assert (split.inputs[0][:, 0] == np.stack([GREY + 2, GREY, GREY + 1])).all()
    assert list(split.targets) == [0, 1, 1]


def test_a_folder_that_lacks_a_class_keeps_the_numbers_of_the_others(tmp_path):
    split = to_split(folder_of(tmp_path, cat=[GREY], dog=[GREY]), "test", labels=["bird", "cat", "dog"])
    assert list(split.targets) == [1, 2]


def test_a_class_folder_that_labels_do_not_list_is_refused(tmp_path):
    with refused("test has the label 'fish', which labels= does not list"):
        to_split(folder_of(tmp_path, cat=[GREY], fish=[GREY]), "test", labels=["bird", "cat"])


def test_images_of_mixed_modes_become_three_channels(tmp_path):
    alpha = np.dstack([COLOUR, np.full((4, 5), 255, np.uint8)])
    folder = folder_of(tmp_path, a=[GREY, COLOUR, alpha])
    Image.fromarray(GREY > 90).save(folder / "a" / "3.png")
    Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "a" / "4.png")
    images = to_split(folder, "train").inputs[0]
    assert images.shape == (5, 3, 4, 5)
    assert (images[0] == GREY).all()  # grey: the same in every channel
    assert (images[1] == COLOUR.transpose(2, 0, 1)).all()
    assert (images[2] == images[1]).all()
    assert (images[3] == np.where(GREY > 90, 255, 0)).all()
    assert (images[4] == images[1]).all()  # twenty colours fit in a palette of 256


def test_sixteen_bit_images_keep_their_upper_byte(tmp_path):
    folder = folder_of(tmp_path, a=[GREY.astype(np.uint16) * 257])
    assert (to_split(folder, "train").inputs[0][0, 0] == GREY).all()


def test_images_are_resized_on_request_to_height_and_width(tmp_path):
    folder = folder_of(tmp_path, a=[GREY, np.zeros((9, 7), np.uint8)])
    assert to_split(folder, "train", image_size=(6, 8)).inputs[0].shape == (2, 1, 6, 8)
    with refused(r"1\.png is 7×9, the first image 5×4: give image_size=\(height, width\)"):
        to_split(folder, "train")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not an image", r"0\.png cannot be decoded as an image .*: replace or remove it"),
        (png(COLOUR)[:-40], r"0\.png cannot be decoded as an image"),
        (b"", r"0\.png cannot be decoded as an image"),
        (bomb(50_000, 50_000), r"0\.png cannot be decoded as an image .*bomb"),
        (bomb(9_000, 9_000), r"0\.png claims 9,000×9,000 pixels, more than 64,000,000: it looks like a decompression bomb"),
    ],
    ids=["text", "truncated", "empty", "huge bomb", "bomb"],
)
def test_a_bad_image_is_refused_by_name(tmp_path, content, sentence):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(content)
    with refused(sentence) as caught:
        to_split(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a" / "0.tif")
    with refused("pixels of 32 bits"):
        to_split(tmp_path, "train")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with refused("holds no images: it needs a folder for each class"):
        to_split(tmp_path, "train")


# ---------------------------------------------------------------- files


def images_parquet(path: Path, images: list[bytes | None], **columns: list) -> Path:
    rows = [None if b is None else {"bytes": b, "path": None} for b in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(rows, kind), **columns}), path)
    return path


def test_hugging_face_parquet_holds_images_and_labels(tmp_path):
    path = images_parquet(tmp_path / "train.parquet", [png(COLOUR), png(COLOUR[::-1])], label=[3, 1], user=["x", "y"])
    split = to_split(str(path), "train", group="user")
    assert (split.inputs[0] == np.stack([COLOUR, COLOUR[::-1]]).transpose(0, 3, 1, 2)).all()
    assert list(split.targets) == [3, 1]
    assert list(split.groups) == ["x", "y"]


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path):
    images_parquet(tmp_path / "part-1.parquet", [png(GREY + 1)], label=[1])
    images_parquet(tmp_path / "part-0.parquet", [png(GREY)], label=[0])
    split = to_split(tmp_path, "train")
    assert (split.inputs[0][:, 0] == np.stack([GREY, GREY + 1])).all()
    assert list(split.targets) == [0, 1]


@pytest.mark.parametrize(("columns", "target"), [("coarse target", "target"), ("coarse fine", "fine"), ("label target", "label")])
def test_the_target_beside_images_is_label_or_target_or_the_last(tmp_path, columns, target):
    values = {name: [10 * i, 10 * i + 1] for i, name in enumerate(columns.split())}
    path = images_parquet(tmp_path / "x.parquet", [png(GREY)] * 2, **values)
    assert list(to_split(path, "train").targets) == values[target]


def test_classes_in_words_beside_images_need_their_order(tmp_path):
    path = images_parquet(tmp_path / "x.parquet", [png(GREY)] * 2, label=["dog", "cat"])
    assert list(to_split(path, "test", labels=["bird", "cat", "dog"]).targets) == [2, 1]
    with refused("holds text: list its classes in labels="):  # a test set without birds would number them otherwise
        to_split(path, "test")


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        ([png(GREY), b"rubbish"], {}, "train: row 1 cannot be decoded as an image"),
        ([png(GREY), None], {}, "train: row 1 cannot be decoded as an image"),
        ([png(GREY)] * 2, {"target": "fine"}, "train has no column 'fine' .beside the images it has label."),
        ([png(GREY)] * 2, {"group": "user"}, "train has no column 'user'"),
        ([], {}, "train is empty"),
    ],
)
def test_image_parquet_that_will_not_do_is_refused(tmp_path, images, options, sentence):
    path = images_parquet(tmp_path / "x.parquet", images, label=pa.array(range(len(images)), pa.int64()))
    with refused(sentence):
        to_split(path, "train", **options)


def test_parquet_and_csv_tables_are_frames(tmp_path):
    FRAME.to_parquet(tmp_path / "x.parquet")
    FRAME.to_csv(tmp_path / "x.csv", index=False)
    wanted = to_split(FRAME, "train", group="user")
    for file in ("x.parquet", "x.csv"):
        split = to_split(tmp_path / file, "train", group="user")
        assert (split.inputs[0] == wanted.inputs[0]).all()
        assert list(split.targets) == list(wanted.targets)
        assert list(split.groups) == list(wanted.groups)


@pytest.mark.parametrize("frame", [FRAME, FRAME.drop(columns=["label", "user"])], ids=["labels are there", "none are"])
@pytest.mark.parametrize("form", ["frame", "csv", "parquet"])
def test_what_is_unlabelled_is_inputs_alone(tmp_path, frame, form):
    """Also where the last column would else be taken for the target."""
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_csv(tmp_path / "x.csv", index=False)
    source = {"frame": frame, "csv": tmp_path / "x.csv", "parquet": tmp_path / "x.parquet"}[form]
    split = to_split(source, "unlabelled", group="user", labelled=False)
    assert (split.inputs[0] == FRAME[["a", "b"]].to_numpy(np.float32)).all()
    assert split.targets is None
    assert split.groups is None


def test_unlabelled_images_need_no_classes(tmp_path):
    (tmp_path / "images" / "more").mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(png(GREY))
    (tmp_path / "images" / "more" / "b.png").write_bytes(png(GREY + 1))
    for source in (tmp_path / "images", images_parquet(tmp_path / "x.parquet", [png(GREY), png(GREY + 1)])):
        split = to_split(source, "unlabelled", labelled=False)
        assert (split.inputs[0][:, 0] == np.stack([GREY, GREY + 1])).all()
        assert split.targets is None
    with refused("holds no images: give a folder of images"):
        to_split(folder_of(tmp_path / "empty", a=[]), "unlabelled", labelled=False)


@pytest.mark.parametrize("items", [list(X), list(zip(X, Y, strict=True))], ids=["inputs", "pairs"])
def test_an_unlabelled_dataset_gives_inputs(items):
    split = to_split(Doubles(items), "unlabelled", labelled=False)
    assert (split.inputs[0] == X).all()
    assert split.targets is None


def test_an_npy_file_is_an_array_and_never_a_pickle(tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert (to_split(tmp_path / "x.npy", "train").inputs[0] == X).all()
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    with refused(r"bad\.npy holds an object array, which is never unpickled"):
        load_npy(tmp_path / "bad.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-5])
    with refused(r"cut\.npy is no \.npy array"):
        load_npy(tmp_path / "cut.npy")


def test_files_that_are_not_what_they_are_called_are_refused_in_one_sentence(tmp_path):
    whole = images_parquet(tmp_path / "whole.parquet", [png(GREY)] * 2, label=[0, 1]).read_bytes()
    for name, content, sentence in [
        ("text.parquet", b"text", r"text\.parquet is not readable as parquet .*: download or write it again"),
        ("cut.parquet", whole[: len(whole) // 2], "is not readable as parquet"),
        ("binary.csv", b"\xff\xfe\x00", r"binary\.csv is not a csv table"),
        ("ragged.csv", b'a,label\n"1,2\n3,4,5,6\n', "is not a csv table"),
        ("empty.csv", b"", "is not a csv table"),
        ("header.csv", b"a,label\n", "train is empty"),
        ("data.xls", b"", "is of no known kind: use .parquet, .csv, .npy or a folder"),
    ]:
        (tmp_path / name).write_bytes(content)
        with refused(sentence) as caught:
            to_split(tmp_path / name, "train")
        assert "\n" not in str(caught.value)


def test_files_of_unlike_tables_in_one_folder_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [1], "label": [0]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"b": ["x"], "label": [0]}), tmp_path / "1.parquet")
    with refused("is not readable as parquet"):
        to_split(tmp_path, "train")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with refused("nowhere does not exist: check the path, or give the folder with --data"):
        to_split(tmp_path / "nowhere", "train")


def test_a_table_without_pandas_says_what_to_install(tmp_path):
    (tmp_path / "x.csv").write_text("a,label\n1,0\n")
    code = (
        "import sys; sys.modules['pandas'] = None\n"  # what an environment without it looks like
        f"from tenfold.data.sources import to_split; to_split({str(tmp_path / 'x.csv')!r}, 'train')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "WorkloadError: train: tables are read with pandas, which is not installed: pip install 'tenfold[pandas]'" in done.stderr
    )


# ---------------------------------------------------------------- named sets


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape) + array.tobytes())


def test_an_idx_file_is_its_array(tmp_path):
    array = RNG.integers(0, 256, size=(3, 4, 5), dtype=np.uint8)
    (tmp_path / "x.gz").write_bytes(idx(array))
    read = read_idx(tmp_path / "x.gz")
    assert (read == array).all()
    read[0] = 0  # it may be written to


def test_an_idx_file_that_was_cut_or_damaged_is_refused_in_one_sentence(tmp_path):
    raw = gzip.decompress(idx(np.arange(24, dtype=np.uint8).reshape(4, 6)))
    whole = gzip.compress(raw)
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [gzip.compress(raw[:n]) for n in range(len(raw))]
    damaged += [b"text", gzip.compress(raw + b"more"), gzip.compress(b"\0\0\x0d" + raw[3:]), gzip.compress(b"\1" + raw[1:])]
    damaged += [gzip.compress(raw[:i] + bytes([raw[i] ^ 0xFF]) + raw[i + 1 :]) for i in range(12)]  # every byte of the head
    for content in damaged:
        (tmp_path / "x.gz").write_bytes(content)
        with refused(r"x\.gz is corrupt .*: download it again") as caught:
            read_idx(tmp_path / "x.gz")
        assert "\n" not in str(caught.value)


CONTENT = b"what the file holds"
FILES = {"a.gz": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where a named set may lie, in the order in which it is looked for; empty folders."""
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    places = {
        "--data": tmp_path / "own",
        "$TENFOLD_DATA": tmp_path / "shared" / "set",
        "system": tmp_path / "system",
        "cache": tmp_path / "cache" / "data" / "set",
    }
    for place in places.values():
        place.mkdir(parents=True)
    return places


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def look(places: dict[str, Path], url: str, *, data: Path | None = None) -> Path:
    fetch = {name: partial(named._download, url + name, named._unpacks_to(checksum)) for name, checksum in FILES.items()}
    return find("set", data, places["system"], [tuple(FILES), ("b.gz", "c.gz")], fetch, hint="ask the one who has it")


def test_a_named_set_is_looked_for_in_order(places, closed_port):
    url = f"http://127.0.0.1:{closed_port}/"
    for place in places.values():
        (place / "a.gz").touch()
    assert look(places, url, data=places["--data"]) == places["--data"]
    for name in ("$TENFOLD_DATA", "system", "cache"):
        assert look(places, url) == places[name]
        (places[name] / "a.gz").unlink()


def test_a_named_set_may_come_in_another_form_which_must_be_whole(places, closed_port):
    (places["system"] / "b.gz").touch()
    with refused("cannot be downloaded"):
        look(places, f"http://127.0.0.1:{closed_port}/")
    (places["system"] / "c.gz").touch()
    assert look(places, f"http://127.0.0.1:{closed_port}/") == places["system"]


def test_a_folder_that_was_named_is_the_only_one_looked_into(places, closed_port):
    (places["cache"] / "a.gz").touch()
    with refused(r"own lacks a\.gz: give the folder that holds set with --data"):
        look(places, f"http://127.0.0.1:{closed_port}/", data=places["--data"])


def test_without_network_and_copy_there_is_one_clear_line(places, closed_port):
    with refused(
        r"^set is not on this machine and cannot be downloaded \(.*refused.*\): "
        r"put a\.gz in a folder and name it with --data, or ask the one who has it$"
    ):
        look(places, f"http://127.0.0.1:{closed_port}/")
    assert not list(places["cache"].iterdir())


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real server on loopback, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", folder
        server.shutdown()
        thread.join()


def test_what_is_nowhere_is_downloaded_once_into_the_cache(places, serving):
    url, folder = serving
    (folder / "a.gz").write_bytes(gzip.compress(CONTENT))
    assert look(places, url) == places["cache"]
    assert gzip.decompress((places["cache"] / "a.gz").read_bytes()) == CONTENT
    (folder / "a.gz").unlink()
    assert look(places, url) == places["cache"]


@pytest.mark.parametrize(
    "content", [gzip.compress(b"something else"), b"no gzip", gzip.compress(CONTENT)[:-9]], ids=["other", "no gzip", "cut"]
)
def test_a_download_that_is_not_what_was_expected_is_not_kept(places, serving, content):
    url, folder = serving
    (folder / "a.gz").write_bytes(content)
    with refused(r"a\.gz is not what was expected .its checksum differs.: fetch it by hand and use --data"):
        look(places, url)
    assert not list(places["cache"].iterdir())


def test_a_file_that_the_server_lacks_is_one_clear_line(places, serving):
    with refused(r"cannot be downloaded \(.*not found.*\)"):
        look(places, serving[0])


def test_fashion_mnist_is_read_from_a_folder_as_images_and_labels(tmp_path):
    images = RNG.integers(0, 256, size=(3, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.array([9, 0, 3], np.uint8)))
    train, test = fashion_mnist(tmp_path)
    assert (train.inputs[0][:, 0] == images).all()
    assert list(test.targets) == [9, 0, 3]
    assert test.targets.dtype == np.int64


@pytest.mark.data
def test_the_system_copy_of_fashion_mnist_has_the_checksums_we_expect():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("no system copy of Fashion-MNIST: apt-get install dataset-fashion-mnist")
    for file, checksum in named._FASHION_FILES.items():
        assert hashlib.sha256(gzip.decompress((folder / file).read_bytes())).hexdigest() == checksum


def cifar10_binary(folder: Path, n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The original binary version with n records a batch; images (6n, 3, 32, 32) and labels, test last."""
    folder.mkdir(exist_ok=True)
    images = RNG.integers(0, 256, size=(6 * n, 3, 32, 32), dtype=np.uint8)
    labels = RNG.integers(0, 10, size=6 * n, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(6 * n, -1)], axis=1)
    for i, name in enumerate(named._CIFAR10_BINARY):
        (folder / name).write_bytes(records[i * n : (i + 1) * n].tobytes())
    return images, labels


@pytest.mark.parametrize("form", ["batches", "unpacked", "archive"])
def test_cifar10_is_read_from_its_original_binary_version(tmp_path, form):
    folder = tmp_path / "cifar-10-batches-bin"
    images, labels = cifar10_binary(folder)
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        shutil.rmtree(folder)
    train, test = cifar10(folder if form == "batches" else tmp_path)
    assert (np.concatenate([train.inputs[0], test.inputs[0]]) == images).all()
    assert (np.concatenate([train.targets, test.targets]) == labels).all()
    assert (len(train), len(test), train.targets.dtype) == (20, 4, np.int64)


def test_cifar10_is_read_from_parquet_of_images(tmp_path):
    pixels = RNG.integers(0, 256, size=(3, 32, 32, 3), dtype=np.uint8)
    rows = [{"bytes": png(p), "path": None} for p in pixels]
    for file in named._CIFAR10_PARQUET:
        pq.write_table(pa.table({"img": rows, "label": [9, 0, 3]}), tmp_path / file)
    train, test = cifar10(tmp_path)
    assert (train.inputs[0] == pixels.transpose(0, 3, 1, 2)).all()
    assert list(test.targets) == [9, 0, 3]


def test_batches_of_cifar10_that_were_cut_are_refused(tmp_path):
    cifar10_binary(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"1234")
    with refused("not whole records of 3,073 bytes: download them again"):
        cifar10(tmp_path)


def test_a_damaged_archive_of_cifar10_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with refused(r"cifar-10-binary\.tar\.gz is corrupt \(.*\): download it again"):
        cifar10(tmp_path)


@pytest.mark.data
def test_the_shared_copy_of_cifar10_is_whole():
    folder = Path(os.environ.get("TENFOLD_DATA", "nowhere")) / "cifar10"
    if not folder.is_dir():
        pytest.skip("no copy of CIFAR-10: set TENFOLD_DATA to the folder that holds cifar10")
    train, test = cifar10(folder)
    assert train.inputs[0].shape == (50_000, 3, 32, 32)
    assert list(np.bincount(test.targets)) == [1_000] * 10
    mean = train.inputs[0].mean(axis=(0, 2, 3)) / 255
    assert mean == pytest.approx(cifar10_family.MEAN, abs=0.002)
