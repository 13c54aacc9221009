"""The graph by KServe's model server. `python serve_kserve.py GRAPH PORT`"""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Graph(Model):
    def __init__(self) -> None:
        super().__init__("model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: InferRequest, *_args: Any, **_more: Any) -> InferResponse:
        x = payload.inputs[0].as_numpy()
        y = self.session.run([self.session.get_outputs()[0].name], {self.session.get_inputs()[0].name: x})[0]
        output = InferOutput(name="output", shape=list(y.shape), datatype="FP32", data=y.ravel().tolist())
        return InferResponse(response_id=payload.id or "1", model_name="model", infer_outputs=[output])


ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1, access_log_format=None).start([Graph()])
