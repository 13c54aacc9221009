"""onnxruntime's static int8, as its documentation shows it: make_onnxruntime.py plain.onnx calibration.npy out.onnx"""

import sys

import numpy as np

plain, calibration, out = sys.argv[1:4]
REDUCE = sys.argv[4] == "7"  # 7-bit weights: onnxruntime's advice for CPUs without VNNI

# --- what a user writes
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    def __init__(self, images):
        self.batches = iter([{"input": images[i : i + 64]} for i in range(0, len(images), 64)])

    def get_next(self):
        return next(self.batches, None)


quant_pre_process(plain, "prepared.onnx", skip_symbolic_shape=True)
quantize_static(
    "prepared.onnx", out, Reader(np.load(calibration)), quant_format=QuantFormat.QDQ,
    per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, reduce_range=REDUCE,
)
# ---
