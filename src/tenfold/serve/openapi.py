"""The OpenAPI document of a server: what may be sent to it, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenfold import __version__
from tenfold.serve.model import Model
from tenfold.serve.protocol import DATATYPES
from tenfold.serve.settings import Settings

Schema = dict[str, Any]


def openapi(models: Sequence[Model], settings: Settings) -> Schema:
    """OpenAPI 3.1, of the models that are served."""
    paths: Schema = {
        "/v2/health/live": {"get": _get("whether the process is there", "live", _object(live={"type": "boolean"}), open_to_all=True)},
        "/v2/health/ready": {"get": _get("whether requests are taken", "ready", _object(ready={"type": "boolean"}), unready=True, open_to_all=True)},
        "/v2": {"get": _get("the server", "server", _object(name=_text(), version=_text(), extensions=_list(_text())))},
        "/predict": {"post": _predict(models)},
        "/openapi.json": {"get": _get("this document", "openapi", {"type": "object"})},
        "/": {"get": {
            "operationId": "page", "summary": "a page to try the model on", "security": [],
            "responses": {"200": {"description": "the page", "content": {"text/html": {"schema": _text()}}}},
        }},
    }  # fmt: skip
    for model in models:
        for at in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
            tag = at.strip("/").replace("/", "-")
            paths[at] = {"get": _get("what the model takes and gives", tag, {"$ref": "#/components/schemas/Metadata"})}
            paths[f"{at}/ready"] = {"get": _get("whether the model answers", f"{tag}-ready", _object(name=_text(), ready={"type": "boolean"}), unready=True)}
            paths[f"{at}/manifest"] = {"get": _get("the bundle's manifest", f"{tag}-manifest", {"type": "object"})}
            paths[f"{at}/infer"] = {"post": _infer(model, tag, settings.max_examples)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tenfold", "version": __version__, "description": "Open Inference Protocol v2, and /predict for people."},
        "paths": paths,
        "x-models": [{"name": m.name, "version": m.version} for m in models],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": _object(error=_text()),
                "Metadata": _object(name=_text(), versions=_list(_text()), platform=_text(), inputs=_list(_tensor()), outputs=_list(_tensor())),
                "Answer": _object(
                    model_name=_text(), model_version=_text(),
                    outputs=_list({**_object(name=_text(), datatype=_text(), shape=_list({"type": "integer"})), "properties": {
                        "name": _text(), "datatype": _text(), "shape": _list({"type": "integer"}), "data": {"type": "array"}, "parameters": {"type": "object"},
                    }}),
                ),
            },
        },
        **({"security": [{"token": []}]} if settings.token_file is not None else {}),
    }  # fmt: skip


def _infer(model: Model, tag: str, most: int) -> Schema:
    inputs = [
        {
            "type": "object", "required": ["name", "shape", "datatype", "data"],
            "properties": {
                "name": {"const": spec.name}, "datatype": {"const": spec.datatype},
                "shape": {"type": "array", "prefixItems": [{"type": "integer", "minimum": 1, "maximum": most}, *({"const": n} for n in spec.shape)], "minItems": 1 + len(spec.shape), "maxItems": 1 + len(spec.shape)},
                "data": {"type": "array", "description": f"shape[0] × {spec.values} values, row by row or nested"},
            },
        }
        for spec in model.inputs
    ]  # fmt: skip
    body = {
        "type": "object", "required": ["inputs"],
        "properties": {
            "id": _text(), "parameters": {"type": "object"},
            "inputs": {"type": "array", "prefixItems": inputs, "minItems": len(inputs), "maxItems": len(inputs)},
            "outputs": _list({"type": "object", "required": ["name"], "properties": {"name": {"enum": [o.name for o in model.outputs]}, "parameters": {"type": "object"}}}),
        },
    }  # fmt: skip
    return {
        "operationId": f"{tag}-infer", "summary": "what the model answers",
        "parameters": [{
            "name": "Inference-Header-Content-Length", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
            "description": "bytes of the body that are JSON; tensors follow, little-endian, in the order of the inputs with binary_data_size",
        }],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}, "application/octet-stream": {}}},
        "responses": {
            "200": {"description": "the outputs", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Answer"}}, "application/octet-stream": {}}},
            **_errors(400, 401, 404, 408, 413, 415, 503),
        },
    }  # fmt: skip


def _predict(models: Sequence[Model]) -> Schema:
    asked = [{"name": n, "in": "query", "required": n == "model" and len({m.name for m in models}) > 1, "schema": s} for n, s in (
        ("model", {"enum": sorted({m.name for m in models})}), ("version", {"enum": sorted({m.version for m in models})}),
    )]  # fmt: skip
    return {
        "operationId": "predict", "summary": "an image, a table or JSON, and what the model says to it", "parameters": asked,
        "requestBody": {"required": True, "content": {"application/json": {}, "image/png": {}, "image/jpeg": {}, "text/csv": {}, "text/plain": {}}},
        "responses": {
            "200": {"description": "the answer", "content": {"application/json": {"schema": _object(model=_text(), version=_text(), outputs={"type": "array"})}}},
            **_errors(400, 401, 404, 408, 413, 415, 503),
        },
    }  # fmt: skip


def _get(summary: str, name: str, schema: Schema, *, unready: bool = False, open_to_all: bool = False) -> Schema:
    answers = {"200": {"description": summary, "content": {"application/json": {"schema": schema}}}}
    if unready:
        answers["503"] = {"description": "not ready", "content": {"application/json": {"schema": schema}}}
    return {
        "operationId": name, "summary": summary, "responses": {**answers, **({} if open_to_all else _errors(401, 404)), **({} if unready else _errors(503))},
        **({"security": []} if open_to_all else {}),
    }  # fmt: skip


def _errors(*codes: int) -> Schema:
    return {str(code): {"description": "why not", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}} for code in codes}


def _tensor() -> Schema:
    return _object(name=_text(), datatype={"enum": [*DATATYPES.values()]}, shape=_list({"type": "integer"}))


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _text() -> Schema:
    return {"type": "string"}
