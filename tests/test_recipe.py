"""A recipe's identity: one text for one value, and nothing that is not data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.recipe import Pull, Recipe, canonical, digest
from tenfold.train.config import TrainConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

RECIPE = Recipe(
    workload="w", seed=3, pulls=(Pull("precision", {"dtype": "bfloat16", "channels_last": True}), Pull("quantize", {"bits": 8}))
)


def reordered(value, rng: random.Random):
    """The same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {k: reordered(value[k], rng) for k in keys}
    return [reordered(v, rng) for v in value] if isinstance(value, list) else value


@given(JSON, st.randoms())
def test_the_order_of_keys_does_not_change_an_identity(value, rng):
    assert digest(reordered(value, rng)) == digest(value)


@given(JSON)
def test_a_value_that_went_through_json_has_the_same_identity(value):
    assert digest(json.loads(json.dumps(value))) == digest(value)


def test_the_digest_is_sha256_of_the_canonical_text():
    assert canonical({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    assert digest({}) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_have_no_identity(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"x": [number]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(TrainConfig(learning_rate=1.0, max_seconds=number))


@pytest.mark.parametrize("thing", [object(), lambda: 0, {1, 2}, b"bytes", TrainConfig])
def test_what_is_not_data_has_no_identity(thing):
    with pytest.raises(TypeError, match="is not data"):
        digest({"x": thing})


def test_a_dataclass_is_the_object_of_its_fields():
    config = TrainConfig(epochs=3)
    assert digest(config) == digest(dataclasses.asdict(config))
    assert digest(config) != digest(TrainConfig(epochs=4))


@given(st.lists(st.tuples(st.text(), st.dictionaries(st.text(), JSON, max_size=3)), max_size=4), st.text(), st.integers())
def test_a_recipe_that_travelled_as_json_is_the_same_recipe(pulls, workload, seed):
    recipe = Recipe(workload=workload, seed=seed, pulls=tuple(Pull(lever, config) for lever, config in pulls))
    back = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert back == recipe
    assert back.id == recipe.id


def test_a_recipe_within_a_recipe_travels_too():
    outer = Recipe(workload="w").then("cascade", {"parts": [RECIPE.to_json(), RECIPE.to_json()]})
    back = Recipe.from_json(json.loads(json.dumps(outer.to_json())))
    assert back.id == outer.id
    assert Recipe.from_json(back.pulls[0].config["parts"][1]) == RECIPE


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(RECIPE, workload="v"),
        dataclasses.replace(RECIPE, seed=4),
        dataclasses.replace(RECIPE, pulls=RECIPE.pulls[::-1]),
        dataclasses.replace(RECIPE, pulls=RECIPE.pulls[:1]),
        RECIPE.then("runtime", {}),
        Recipe(workload="w", seed=3, pulls=(RECIPE.pulls[0], Pull("quantize", {"bits": 4}))),
    ],
    ids=["workload", "seed", "order", "fewer", "more", "config"],
)
def test_whatever_differs_in_a_recipe_changes_its_identity(other):
    assert other.id != RECIPE.id


def test_pulling_a_lever_leaves_the_recipe_as_it_was():
    before = RECIPE.id
    longer = RECIPE.then("runtime", {"threads": 2})
    assert (RECIPE.id, len(RECIPE.pulls)) == (before, 2)
    assert longer.pulls == (*RECIPE.pulls, Pull("runtime", {"threads": 2}))


def test_a_pull_reads_as_a_call():
    assert str(Pull("quantize", {"bits": 8, "scheme": "static"})) == "quantize(bits=8, scheme=static)"


SMALL, INT8 = Pull("distill", {"width": 8}), Pull("quantize", {"bits": 8})


def cascade(*parts: list[Pull]) -> Recipe:
    held = [{"pulls": [dataclasses.asdict(p) for p in pulls], "hand_on": 0.1 * (i + 1)} for i, pulls in enumerate(parts)]
    del held[-1]["hand_on"]
    return Recipe(workload="w").then("cascade", {"parts": held})


def test_a_tree_knows_all_its_levers():
    recipe = cascade([SMALL, INT8], [INT8], [])
    assert recipe.levers() == {"cascade", "distill", "quantize"}
    assert recipe.find("quantize") == [INT8, INT8]
    assert RECIPE.levers() == {p.lever for p in RECIPE.pulls}


def test_a_tree_with_fewer_levers():
    recipe = cascade([SMALL, INT8], [INT8], [])
    assert recipe.only({"cascade", "distill", "quantize"}) == recipe
    # parts that become the same stay once, with the share that the last of them hands on
    assert recipe.only({"cascade", "distill"}).pulls[0].config["parts"] == [
        {"pulls": [dataclasses.asdict(SMALL)], "hand_on": 0.1},
        {"pulls": []},
    ]
    assert recipe.only({"cascade", "quantize"}).pulls[0].config["parts"] == [
        {"pulls": [dataclasses.asdict(INT8)], "hand_on": 0.2},
        {"pulls": []},
    ]
    # without the whole, its best part is what stays
    assert cascade([SMALL], [SMALL, INT8]).only({"distill", "quantize"}).pulls == (SMALL, INT8)
    assert recipe.only({"cascade"}).pulls == ()
    assert RECIPE.only({RECIPE.pulls[0].lever}).pulls == RECIPE.pulls[:1]
