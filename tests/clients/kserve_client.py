"""KServe's InferenceRESTClient, as anybody would write it: `python kserve_client.py PORT MODEL`. Prints what came back, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main() -> None:
    url, model = f"http://127.0.0.1:{sys.argv[1]}", sys.argv[2]
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    pixels = np.arange(192, dtype=np.uint8).reshape(3, 1, 8, 8)
    found = {
        "live": await client.is_server_live(url), "ready": await client.is_server_ready(url), "model_ready": await client.is_model_ready(url, model), "answers": {},
    }
    for binary in (True, False):
        given = InferInput("input", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels, binary_data=binary)
        answer = await client.infer(url, InferRequest(model_name=model, infer_inputs=[given], request_id="mine"), model_name=model)
        assert answer.id == "mine"
        found["answers"][f"binary in {binary}"] = answer.outputs[0].as_numpy().tolist()
    print(json.dumps(found))


asyncio.run(main())
