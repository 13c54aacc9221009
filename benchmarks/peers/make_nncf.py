"""NNCF's quantization with accuracy control on OpenVINO: make_nncf.py plain.onnx calibration.npy valid.npy targets.npy margin out.xml"""

import sys

import numpy as np

plain, calibration, valid, targets, margin, out = sys.argv[1:7]

# --- what a user writes
import nncf
import openvino as ov

model = ov.Core().read_model(plain)
images, labels = np.load(valid), np.load(targets)


def accuracy(compiled, items):
    right = [float(compiled(image[None])[0].argmax() == label) for image, label in items]
    return float(np.mean(right)), right


quantized = nncf.quantize_with_accuracy_control(
    model,
    calibration_dataset=nncf.Dataset([image[None] for image in np.load(calibration)]),
    validation_dataset=nncf.Dataset(list(zip(images, labels, strict=True))),
    validation_fn=accuracy,
    max_drop=float(margin),
)
ov.save_model(quantized, out, compress_to_fp16=False)
# ---
