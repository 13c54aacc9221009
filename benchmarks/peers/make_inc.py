"""Intel Neural Compressor's static int8 for PyTorch: make_inc.py baseline.pt2 calibration.npy valid.npy targets.npy margin out.pt2"""

import operator
import sys

import numpy as np
import torch
from torch.nn import functional

baseline, calibration, valid, targets, margin, out = sys.argv[1:7]
AS_WRITTEN = {
    "aten.conv2d.default": functional.conv2d, "aten.linear.default": functional.linear, "aten.relu.default": functional.relu,
    "aten.max_pool2d.default": functional.max_pool2d, "aten.adaptive_avg_pool2d.default": functional.adaptive_avg_pool2d,
    "aten.adaptive_max_pool2d.default": functional.adaptive_max_pool2d_with_indices,
    "aten.add.Tensor": operator.add, "aten.mul.Tensor": operator.mul, "aten.flatten.using_ints": torch.flatten,
}  # fmt: skip
"""What a program that was saved calls, as its model called it: by that the quantizer knows what it may quantize."""

model = torch.export.load(baseline).module()
for node in list(model.graph.nodes):
    if "_assert" in str(node.target) or "_guards" in str(node.target):
        model.graph.erase_node(node)
    else:
        node.target = AS_WRITTEN.get(str(node.target), node.target)
model = torch.fx.GraphModule(model, model.graph)

# --- what a user writes
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

images = torch.from_numpy(np.load(calibration))
batch = torch.export.Dim("batch")
exported = export(model, (images[:2],), dynamic_shapes=({0: batch},))
prepared = prepare(exported, StaticQuantConfig())
for i in range(0, len(images), 64):
    prepared(images[i : i + 64])
quantized = convert(prepared)
# ---
if not any("quantize" in str(node.target) for node in quantized.graph.nodes):
    raise SystemExit("nothing was quantized")
torch.export.save(torch.export.export(quantized, (images[:2],), dynamic_shapes=({0: batch},)), out)
