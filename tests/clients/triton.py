"""Every call of tritonclient's HTTP client, as anybody would write it: `python triton.py PORT MODEL`. Prints what came back, as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
from tritonclient import http

client = http.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}")
model = sys.argv[2]
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready(model)
assert client.is_model_ready(model, "1")
assert not client.is_model_ready("none")
metadata = client.get_model_metadata(model)
server = client.get_server_metadata()
pixels = np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)
found = {"server": server["name"], "inputs": metadata["inputs"], "answers": {}}
for into in (True, False):
    for out in (True, False):
        given = http.InferInput("input", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels, binary_data=into)
        asked = [http.InferRequestedOutput("output", binary_data=out)]
        answer = client.infer(model, [given], outputs=asked, request_id="mine")
        assert answer.get_response()["id"] == "mine"
        found["answers"][f"binary in {into}, out {out}"] = answer.as_numpy("output").tolist()
        found["answers"][f"all outputs, in {into}"] = client.infer(model, [given]).as_numpy("output").tolist()
compressed = client.infer(model, [given], request_compression_algorithm="gzip", response_compression_algorithm="gzip")
found["answers"]["packed"] = compressed.as_numpy("output").tolist()
waiting = [client.async_infer(model, [given]) for _ in range(4)]  # over one connection: it is free when the answer before has been read
found["answers"]["awaited"] = [w.get_result() for w in waiting][-1].as_numpy("output").tolist()
classes = client.infer(model, [given], outputs=[http.InferRequestedOutput("output", class_count=2)]).as_numpy("output")
found["classes"] = [[c.decode() for c in row] for row in classes]
wrong = http.InferInput("input", [1, 3], "FP32")
wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
try:
    client.infer(model, [wrong])
except http.InferenceServerException as error:
    found["error"] = {"status": error.status(), "message": error.message()}
print(json.dumps(found))
