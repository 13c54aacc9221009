"""A server that checks nothing: what there is to be had of this stack. `python serve_bare.py GRAPH PORT`"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(given, *_), (output, *_) = session.get_inputs(), session.get_outputs()
DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64}


async def infer(request: Request) -> Response:
    tensor = orjson.loads(await request.body())["inputs"][0]
    x = np.array(tensor["data"], dtype=DTYPES[given.type]).reshape(tensor["shape"])
    (y,) = session.run([output.name], {given.name: x})
    answer = {"model_name": "model", "outputs": [{"name": output.name, "datatype": "FP32", "shape": y.shape, "data": y.ravel()}]}
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


async def ready(_request: Request) -> Response:
    return Response(b"{}")


app = Starlette(routes=[Route("/v2/models/model/infer", infer, methods=["POST"]), Route("/v2/health/ready", ready)])
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False, http="httptools", loop="uvloop")
