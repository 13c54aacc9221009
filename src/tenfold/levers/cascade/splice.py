"""Finished ONNX graphs made into one, in which a later graph computes only the rows that an earlier one is unsure of.

    outputs = first(inputs);  score = the largest probability of a row
    if any score < threshold:   outputs[rows] = (1 - blend) next(inputs[rows]) + blend outputs[rows]

The later graph stands in the branch of an `If`, so that it costs nothing where no row is handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper, inliner, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from tenfold.bundle import SURENESS, THRESHOLD
from tenfold.engine import GraphError
from tenfold.errors import first_line

OUTPUT = "output"


def splice(parts: Sequence[ModelProto], thresholds: Sequence[float], blend: float = 0.0) -> ModelProto:
    """One graph of two or more, with the inputs and the output of the first, and how sure that was.

    Args:
        parts: from the cheapest to the best; each maps the same inputs (batch, …) to (batch, classes) logits.
        thresholds: one fewer; rows whose largest probability is below are handed on.
        blend: share of what was answered so far in the answer of a later part.

    Raises:
        GraphError: the graphs differ in inputs or outputs, or an operator of one means another thing in the other.
    """
    parts = [compose.add_prefix(inliner.inline_local_functions(p), f"part{i}/", rename_inputs=False) for i, p in enumerate(parts)]
    opsets = _opsets(parts)
    inputs = list(parts[0].graph.input)
    for part in parts[1:]:
        if [_type(i) for i in part.graph.input] != [_type(i) for i in inputs]:
            raise GraphError("the graphs of a cascade take different inputs: make each from the same workload")
    nodes, _ = _stage(parts, thresholds, blend, 0, [i.name for i in inputs], None)
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, _dims(parts[0].graph.output[0]))
    sureness = helper.make_tensor_value_info(SURENESS, TensorProto.FLOAT, _dims(parts[0].graph.output[0])[:1])
    graph = helper.make_graph(nodes, "cascade", inputs, [output, sureness], initializer=list(parts[0].graph.initializer))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=max(p.ir_version for p in parts))
    helper.set_model_props(model, {THRESHOLD: repr(float(np.float32(thresholds[0])))})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"the graphs of a cascade cannot be spliced ({first_line(error)}): leave that part out") from error
    return model


def _stage(
    parts: Sequence[ModelProto], thresholds: Sequence[float], blend: float, index: int, inputs: Sequence[str], before: str | None
) -> tuple[list[NodeProto], str]:
    """Nodes of a part and all that come after it, and the name of their common output.

    Args:
        inputs, before: names in scope: what the part takes, and what was answered so far on it.
    """
    part, prefix = parts[index].graph, f"part{index}/"
    names = {i.name: given for i, given in zip(part.input, inputs, strict=True)}
    nodes = [_renamed(n, names) for n in part.node]
    output = part.output[0].name
    if before is not None and blend:
        part.initializer.extend([_number(1 - blend, f"{prefix}own_share"), _number(blend, f"{prefix}share_before")])
        nodes += [
            helper.make_node("Mul", [output, f"{prefix}own_share"], [f"{prefix}own"]),
            helper.make_node("Mul", [before, f"{prefix}share_before"], [f"{prefix}from_before"]),
            helper.make_node("Add", [f"{prefix}own", f"{prefix}from_before"], [f"{prefix}blended"]),
        ]
        output = f"{prefix}blended"
    if index == len(parts) - 1:
        return nodes, output
    part.initializer.extend([numpy_helper.from_array(np.array([1]), f"{prefix}class_axis"), _number(thresholds[index], f"{prefix}threshold")])
    rows, merged, score = f"{prefix}rows", *((f"{prefix}merged", f"{prefix}score") if index else (OUTPUT, SURENESS))
    nodes += _score(output, score, prefix)
    nodes += [
        helper.make_node("ReduceMin", [score], [f"{prefix}least"], keepdims=0),
        helper.make_node("Less", [f"{prefix}least", f"{prefix}threshold"], [f"{prefix}any"]),
    ]
    handed = [f"{prefix}handed_{i}" for i in range(len(inputs))]
    inner = [
        helper.make_node("Less", [score, f"{prefix}threshold"], [f"{prefix}unsure"]),
        helper.make_node("NonZero", [f"{prefix}unsure"], [f"{prefix}unsure_rows"]),
        helper.make_node("Transpose", [f"{prefix}unsure_rows"], [rows], perm=[1, 0]),  # (handed on, 1)
        *(helper.make_node("GatherND", [given, rows], [name]) for given, name in zip(inputs, handed, strict=True)),
    ]
    if blend:
        inner.append(helper.make_node("GatherND", [output, rows], [f"{prefix}so_far"]))
    more, answer = _stage(parts, thresholds, blend, index + 1, handed, f"{prefix}so_far" if blend else None)
    inner += [*more, helper.make_node("ScatterND", [output, rows, answer], [f"{prefix}scattered"])]
    branches = {
        "then_branch": _branch(inner, f"{prefix}scattered", part, parts[index + 1].graph),
        "else_branch": _branch([helper.make_node("Identity", [output], [f"{prefix}kept"])], f"{prefix}kept", part, None),
    }
    nodes.append(helper.make_node("If", [f"{prefix}any"], [merged], **branches))
    return nodes, merged


def _branch(nodes: Sequence[NodeProto], output: str, like: GraphProto, weights_of: GraphProto | None) -> GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, _dims(like.output[0]))
    return helper.make_graph(list(nodes), output, [], [info], initializer=list(weights_of.initializer) if weights_of is not None else [])


def _score(output: str, score: str, prefix: str) -> list[NodeProto]:
    """The largest probability of each row, (batch,): of the logits (batch, classes)."""
    return [
        helper.make_node("Softmax", [output], [f"{prefix}probabilities"], axis=1),
        helper.make_node("ReduceMax", [f"{prefix}probabilities", f"{prefix}class_axis"], [score], keepdims=0),
    ]


def _number(value: float, name: str) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=np.float32), name)


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    """A node that reads other names; those that its subgraphs read from outside too."""
    out = NodeProto()
    out.CopyFrom(node)
    for i, name in enumerate(out.input):
        out.input[i] = names.get(name, name)
    for attribute in out.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            inner = [_renamed(n, names) for n in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
    return out


def _opsets(parts: Sequence[ModelProto]) -> list[onnx.OperatorSetIdProto]:
    """The operator sets of all parts together."""
    versions: dict[str, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for opset in part.opset_import:
            known, first = versions.setdefault(opset.domain, (opset.version, number))
            if known != opset.version:
                used = sorted({n.op_type for n in part.graph.node if n.domain == opset.domain})
                name = opset.domain or "ai.onnx"
                raise GraphError(
                    f"the graphs of a cascade cannot be spliced: part {number + 1} uses {', '.join(used[:3]) or 'operators'} of {name} "
                    f"{opset.version}, part {first + 1} of {known}: export both with one version"
                )
    return [helper.make_opsetid(domain, version) for domain, (version, _) in versions.items()]


def _type(info: onnx.ValueInfoProto) -> tuple[str, int, tuple[int | str, ...]]:
    return info.name, info.type.tensor_type.elem_type, tuple(_dims(info)[1:])


def _dims(info: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]


def load(path: Path, part: int = 1) -> ModelProto:
    """A graph whose output is one float (batch, classes), its nodes in order: tools that change graphs may append what comes first.

    Raises:
        GraphError: it is not.
    """
    model = onnx.load(path)
    output = model.graph.output[0]
    if output.type.tensor_type.elem_type != TensorProto.FLOAT or len(_dims(output)) != 2:
        raise GraphError(f"a cascade needs class scores (batch, classes) of float32, part {part} gives {_dims(output)}: leave it out")
    ONNXModel(model).topological_sort()
    return model
