"""The Open Inference Protocol: what is parsed, what is refused, and that nothing but a refusal comes of whatever is sent."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.serve.protocol import RejectedError, Request, TensorSpec, Wanted, answer, numbers, parse

PIXELS = TensorSpec(name="input", shape=(2, 2), dtype=np.dtype("uint8"))
VALUES = TensorSpec(name="x", shape=(3,), dtype=np.dtype("float32"))
FLAG = TensorSpec(name="flag", shape=(), dtype=np.dtype("bool"))
SCORES = TensorSpec(name="output", shape=(3,), dtype=np.dtype("float32"))


def tensor(spec: TensorSpec = VALUES, rows: int = 1, **changes):
    return {"name": spec.name, "shape": [rows, *spec.shape], "datatype": spec.datatype, "data": [0] * rows * spec.values} | changes


def body(*tensors, **more) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def parsed(content: bytes, *specs: TensorSpec, header: str | None = None) -> Request:
    return parse(content, header, specs or (VALUES,), (SCORES,), 4)


@pytest.mark.parametrize("data", [[1, 2.5, -3, 4, 5, 6], [[1, 2.5, -3], [4, 5, 6]]])
def test_values_come_flat_or_nested(data) -> None:
    request = parsed(body(tensor(rows=2, data=data), id="a"))
    assert request.id == "a"
    assert request.inputs[0].dtype == np.float32
    np.testing.assert_array_equal(request.inputs[0], [[1, 2.5, -3], [4, 5, 6]])
    assert request.outputs == [Wanted(name="output")]


def test_inputs_come_in_any_order_and_binary_beside_json() -> None:
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    head = body(
        tensor(PIXELS, 2, data=None, parameters={"binary_data_size": 8}), tensor(VALUES, 2, data=[1, 2, 3, 4, 5, 6]),
        outputs=[{"name": "output", "parameters": {"binary_data": True}}],
    )  # fmt: skip
    request = parsed(head + pixels.tobytes(), VALUES, PIXELS, header=str(len(head)))
    np.testing.assert_array_equal(request.inputs[0], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(request.inputs[1], pixels)
    assert request.outputs == [Wanted(name="output", binary=True)]


def test_bytes_that_lie_anyhow_in_a_body_are_aligned() -> None:
    values = np.array([[1.5, 2, 3]], dtype="<f4")
    head = body(tensor(data=None, parameters={"binary_data_size": 12}))
    for pad in range(4):
        request = parsed(head + b" " * pad + values.tobytes(), header=str(len(head) + pad))
        assert request.inputs[0].flags.aligned
        np.testing.assert_array_equal(request.inputs[0], values)


REFUSED = [
    (b"", "not JSON"), (b"[]", "no JSON object"), (b"{}", "inputs has to be a list"), (body(1), "inputs has to be a list"),
    (body(), "the model takes x as well"), (body(tensor(), tensor()), "each once, not x"), (body(tensor(name=["x"])), "each once"),
    (body(tensor(name="y" * 500)), "y…"), (body(tensor(), id=3), "id has to be a text"),
    (body(tensor(shape=[3])), r"takes \[n, 3\]"), (body(tensor(shape=[])), "shape"), (body(tensor(shape=[True, 3])), "whole numbers"),
    (body(tensor(shape=[1, 4])), "shape"), (body(tensor(rows=0)), "from 1 to 4"), (body(tensor(rows=5)), "from 1 to 4"),
    (body(tensor(datatype="FP64")), "takes FP32"), (body(tensor(datatype=None)), "takes FP32"),
    (body(tensor(data=[1, 2])), "shape says"), (body(tensor(data=[[1, 2], [3]])), "different lengths"), (body(tensor(data=[[[1, 2, 3]]])), "too many brackets"),
    (body(tensor(data=["1", 2, 3])), "no numbers"), (body(tensor(data=[None, 2, 3])), "no numbers"), (body(tensor(data=[True, 2, 3])), "no numbers"),
    (body(tensor(data=[{}, 2, 3])), "no numbers"), (body(tensor(data=[[1, 2, 3], 4])), "different lengths"), (body(tensor(data="123")), "lacks data"),
    (body(tensor(data=[1e39, 2, 3])), "NaN, infinity"), (body(tensor(parameters=[])), "have to be an object"),
    (body(tensor(parameters={"shared_memory_region": "a"})), "shared memory"), (body(tensor(parameters={"binary_data_size": 12})), "one of the two"),
    (body(tensor(data=None, parameters={"binary_data_size": 12})), "body ends before"), (body(tensor(data=None, parameters={"binary_data_size": 8})), "has 12 bytes"),
    (body(tensor(), outputs="output"), "outputs has to be a list"), (body(tensor(), outputs=[{"name": {}}]), "each once"),
    (body(tensor(), outputs=[{"name": "output"}, {"name": "output"}]), "each once"),
    (body(tensor(), outputs=[{"name": "output", "parameters": {"classification": -1}}]), "number of classes"),
    (body(tensor(), outputs=[{"name": "output", "parameters": {"binary_data": 1}}]), "true or false"),
    (body(tensor(), parameters={"binary_data_output": "yes"}), "true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(content: bytes, message: str) -> None:
    with pytest.raises(RejectedError, match=message) as refused:
        parsed(content)
    assert refused.value.status == 400
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("header", ["-1", "1e3", "²", "x" * 100, "9" * 30, ""])
def test_the_length_of_the_json_has_to_be_a_number(header: str) -> None:
    with pytest.raises(RejectedError, match="number of bytes"):
        parsed(body(tensor()), header=header)
    with pytest.raises(RejectedError, match="the body has"):
        parsed(b"{}", header="3")


@pytest.mark.parametrize(("dtype", "value", "message"), [
    ("uint8", 256, "beyond"), ("uint8", -1, "beyond"), ("int64", 2**63, "beyond"), ("int32", 1.0, "no numbers"), ("float16", 70000, "NaN"), ("bool", 1, "no numbers"),
])  # fmt: skip
def test_what_a_dtype_does_not_hold_is_refused(dtype: str, value: float, message: str) -> None:
    with pytest.raises(RejectedError, match=message):
        numbers([value], TensorSpec(name="x", shape=(), dtype=np.dtype(dtype)))


def test_a_long_text_among_numbers_takes_no_memory() -> None:
    import tracemalloc

    data = [0] * 20_000 + ["x" * 20_000]
    tracemalloc.start()
    with pytest.raises(RejectedError, match="no numbers"):
        numbers(data, VALUES)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000, "numpy would have made 20,001 texts of 20,000 characters"
    tracemalloc.stop()


def test_flags_are_0_or_1() -> None:
    head = body(tensor(FLAG, 2, data=None, parameters={"binary_data_size": 2}))
    assert parsed(head + b"\x00\x01", FLAG, header=str(len(head))).inputs[0].tolist() == [False, True]
    with pytest.raises(RejectedError, match="neither 0 nor 1"):
        parsed(head + b"\x00\x02", FLAG, header=str(len(head)))
    assert parsed(body(tensor(FLAG, 2, data=[True, False])), FLAG).inputs[0].tolist() == [True, False]


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "inputs", "outputs", "parameters", "id"]), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_LIKE, st.binary(max_size=20), st.none() | st.integers(0, 200))
def test_whatever_is_sent_is_parsed_or_refused(content, tail: bytes, length: int | None) -> None:
    head = json.dumps(content, allow_nan=False, default=str).encode() if _is_finite(content) else b"{"
    with suppress(RejectedError):
        parsed(head + tail, header=None if length is None else str(length))


@given(st.fixed_dictionaries({"shape": JSON_LIKE, "data": JSON_LIKE, "datatype": st.just("FP32"), "name": st.just("x"), "parameters": JSON_LIKE}))
def test_whatever_a_tensor_says_is_parsed_or_refused(content) -> None:
    if _is_finite(content):
        try:
            (x,) = parsed(body(content)).inputs
        except RejectedError:
            return
        assert x.shape[1:] == VALUES.shape


def _is_finite(content) -> bool:
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- answers


def test_an_answer_is_json_or_has_bytes_behind_it() -> None:
    outputs = {"output": np.array([[0.5, 2.0, np.nan]], dtype=np.float32)}
    content, size = answer("m", "1", Request(inputs=[], id="a", outputs=[Wanted(name="output")]), outputs, None)
    assert size is None
    assert json.loads(content) == {
        "model_name": "m", "model_version": "1", "id": "a", "outputs": [{"name": "output", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 2.0, None]}],
    }  # fmt: skip
    content, size = answer("m", "1", Request(inputs=[], outputs=[Wanted(name="output", binary=True)]), outputs, None)
    assert size is not None
    assert json.loads(content[:size])["outputs"][0]["parameters"] == {"binary_data_size": 12}
    np.testing.assert_array_equal(np.frombuffer(content[size:], "<f4"), outputs["output"][0])


def test_classes_are_told_as_triton_tells_them() -> None:
    outputs = {"output": np.array([[0.5, 2.0, 1.0]], dtype=np.float32)}
    content, _ = answer("m", "1", Request(inputs=[], outputs=[Wanted(name="output", classes=2)]), outputs, ["a", "b", "c"])
    assert json.loads(content)["outputs"] == [{"name": "output", "datatype": "BYTES", "shape": [1, 2], "data": ["2.000000:1:b", "1.000000:2:c"]}]
    content, size = answer("m", "1", Request(inputs=[], outputs=[Wanted(name="output", classes=9, binary=True)]), outputs, None)
    tail, texts = content[size:], []
    while tail:
        (length,) = struct.unpack("<I", tail[:4])
        texts.append(tail[4 : 4 + length].decode())
        tail = tail[4 + length :]
    assert texts == ["2.000000:1", "1.000000:2", "0.500000:0"]
    with pytest.raises(RejectedError, match="one row of class scores"):
        answer("m", "1", Request(inputs=[], outputs=[Wanted(name="output", classes=1)]), {"output": np.zeros((1, 2, 3))}, None)
