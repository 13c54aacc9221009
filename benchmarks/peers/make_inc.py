"""Intel Neural Compressor's static int8 for PyTorch: make_inc.py baseline.pt2 calibration.npy valid.npy targets.npy margin out.pt2"""

import sys

import numpy as np
import torch

baseline, calibration, valid, targets, margin, out = sys.argv[1:7]
model = torch.export.load(baseline).module()

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
torch.export.save(torch.export.export(quantized, (images[:2],), dynamic_shapes=({0: batch},)), out)
