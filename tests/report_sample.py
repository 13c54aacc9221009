"""A result of schema 1 with figures as a run gives them, for the tests of the report."""

from __future__ import annotations

import base64
import copy
import math
import struct
import zlib
from typing import Any

MARGIN = 0.02


def sample() -> dict[str, Any]:
    """A run that certified a model 4.68 times cheaper. A fresh copy on every call."""
    return copy.deepcopy(_RESULT)


def uncertified() -> dict[str, Any]:
    """The same run, had the first of the sequence failed on test: what it hands over is the baseline."""
    result = sample()
    result |= {"certified": None, "exit_code": 3, "break_even_predictions": None}
    result |= {"slices": [], "agreement": None, "calibration": None, "disagreements": []}
    result["gain"] = {name: interval(1.0, 1.0, 1.0) for name in result["gain"]}
    for row in result["ladder"]:
        if row["verdict"] == "take":
            row |= {"verdict": "inconclusive", "reason": f"could not be certified on test ({row['reason']})"}
    for candidate in result["candidates"]:
        candidate["certified"] = False
    first, *rest = result["sequence"]
    first |= {
        "test": interval(-0.015, -0.0261, -0.0052),
        "verdict": "inconclusive",
        "reason": "lower bound −0.0261 is below the margin −0.0200; about 2,957 test examples would decide it, 600 are there",
    }
    for entry in rest:
        entry |= {"test": None, "verdict": None, "reason": None}
    return result


def bare() -> dict[str, Any]:
    """A run in which nothing was tried: every nullable part is null, every list is empty."""
    result = uncertified()
    result["workload"] |= {"labels": None, "notes": [], "demo": False}
    result["baseline"]["quality"] |= {"confirm": None, "test": None}
    result["baseline"]["training"] = None
    result["profile"] = {"reason": "an operator cannot be counted"}
    result["training_memory"] = None
    result["gain"] = dict.fromkeys(result["gain"])
    for empty in ("ladder", "candidates", "sequence", "points", "slices", "disagreements", "notices", "tuned"):
        result[empty] = []
    result["test_openings"] = 0
    return result


def crowded() -> dict[str, Any]:
    """60 candidates, 100 slices, and names as long as they come."""
    result = sample()
    long = "MultiHeadSelfAttentionWithRelativePositionalEncodingsAndGatedFeedForward" * 2
    result["workload"] |= {"name": long, "labels": [f"{long} {i}" for i in range(100)]}
    for i in range(60):
        quality = 0.01 - 0.0009 * i + 0.006 * math.sin(2.3 * i)
        gain = 1.02 * 1.045**i
        result["candidates"].append(
            {
                "recipe": f"{0xABCDEF00 + i:016x}",
                "label": f"precision({long}) + quantize(backend=static, number={i})",
                "stage": "compression",
                "lever": "quantize",
                "config": {"backend": long, "number": i},
                "quality_difference": interval(quality, quality - 0.011, quality + 0.009),
                "gain": interval(gain, gain * 0.96, gain * 1.05),
                "verdict": ("take", "refuse", "inconclusive")[i % 3],
                "reason": f"one of many, {long}",
                "certified": False,
            }
        )
    result["ladder"][0] |= {"lever": long, "config": {"a_setting_of_great_length": long, "parts": [{"lever": long}]}, "reason": long}
    result["ladder"][-1] |= {"lever": long, "reason": long}
    slices = result["slices"]
    result["slices"] = [{**slices[i % len(slices)], "name": f"{long} {i}"} for i in range(100)]
    result["disagreements"] = [
        {"index": i, "target": long, "baseline": f"{long} {i}", "candidate": long} for i in range(60)
    ]
    result["sequence"][0]["label"] = long
    result["environment"]["cpu"] = long
    result["command"] = f"tenfold run {long} " + "--levers " + ",".join(["precision", "quantize", "runtime"] * 12)
    return result


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "level": 0.9}


def png(rows: list[str]) -> str:
    """A grey picture as a data URI; each character is a level from 0 to f."""
    levels = [bytes(int(c, 16) * 17 for c in row) for row in rows]
    header = struct.pack(">IIBBBBB", len(levels[0]), len(levels), 8, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in levels))
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def _micros(mean: float, spread: float = 1.0) -> dict[str, float]:
    return {
        "cpu_mean": mean,
        "wall_mean": mean * 1.0213,
        "wall_p50": mean * 0.9871,
        "wall_p99": mean * (1.31 + 0.4 * spread),
    }


def _slice(digit: int) -> dict[str, Any]:
    n = 61 - (7 * digit) % 11
    lost = (0, 1, 0, 2, 0, 1, 0, 0, 1, 0)[digit]
    won = (0, 0, 0, 1, 0, 0, 0, 1, 1, 0)[digit]
    value = (won - lost) / n
    right = (n - 1 - digit % 3) / n
    return {
        "name": str(digit),
        "n": n,
        "baseline": right,
        "candidate": right + value,
        "quality_difference": interval(value, value - 0.052 - 0.012 * lost, value + 0.051 + 0.009 * won),
        "margin": 0.15 if digit == 3 else None,
        "held": True if digit == 3 else None,
    }


def _bin(i: int) -> dict[str, Any]:
    low, high = i / 10, (i + 1) / 10
    count = (0, 0, 0, 2, 6, 9, 8, 14, 31, 530)[i]
    mean, right = (low + 0.06, min(low + 0.04 + 0.07 * ((i * 7) % 3) / 2, 1.0)) if count else (None, None)
    return {
        "low": low,
        "high": high,
        "baseline_n": count,
        "baseline_confidence": mean,
        "baseline_accuracy": right,
        "candidate_n": count,
        "candidate_confidence": None if mean is None else mean - 0.01,
        "candidate_accuracy": None if right is None else min(right + (0.05 if i % 2 else -0.06), 1.0),
    }


_THREE = png(["07ffff70", "0ff00ff0", "00000ff0", "0007fe00", "00003ff0", "0b000ff0", "0ff04ff0", "05ffff60"])
_EIGHT = png(["08ffff80", "0f9009f0", "0f9009f0", "04ffff40", "0f7007f0", "0f4004f0", "0fa00af0", "07ffff70"])

_RATIOS = (1.2143, 2.5872, 1.4901)
_GAIN = math.prod(_RATIOS)

_RESULT: dict[str, Any] = {
    "schema": 1,
    "tenfold": "0.1.0",
    "run": "digits-1",
    "command": "tenfold run digits --seed 0",
    "created": "2026-11-24T06:00:00+00:00",
    "workload": {
        "name": "digits",
        "demo": True,
        "metric": "accuracy",
        "higher_is_better": True,
        "margin": MARGIN,
        "margin_kind": "absolute",
        "margin_absolute": MARGIN,
        "labels": [str(i) for i in range(10)],
        "examples": {"train": 897, "valid": 200, "confirm": 100, "test": 600},
        "notes": ["confirm was carved out of valid: 100 of 300 examples."],
    },
    "objective": "serve",
    "operating_point": {"batch": 1, "threads": 1},
    "unit": "CPU-seconds a prediction",
    "seed": 0,
    "baseline": {
        "quality": {"valid": 0.985, "confirm": 0.99, "test": 0.9883333333333333},
        "costs": {
            "eager": _micros(182.4417),
            "onnxruntime": _micros(94.1283),
            "compiled": {"reason": "no C++ compiler on this machine"},
        },
        "cheaper": "onnxruntime",
        "training": {"seconds": 38.217, "cpu_seconds": 71.9044, "steps": 580, "reused": False},
        "bytes": 4412873,
        "peak_memory_bytes": 71303168,
    },
    "profile": {
        "prediction": {"products": 1_204_224.0, "bytes": 402_112.5, "sequential": 14},
        "training": {"products": 3_411_968.0, "bytes": 1_310_720.25, "sequential": 41},
        "kept": 98_304.0,
    },
    "tuned": [
        {"lever": "optimizer", "kind": "adamw", "tried": 8, "seconds": 41.5, "cpu_seconds": 70.2, "failed": None, "best": {"label": "optimizer(adamw, linear, 0.002 learning rate, 6 epochs)", "gain": interval(1.92, 1.88, 1.97), "quality_difference": interval(-0.0012, -0.0051, 0.0027)}},
        {"lever": "optimizer", "kind": "muon", "tried": 7, "seconds": 43.2, "cpu_seconds": 71.8, "failed": None, "best": None},
        {"lever": "optimizer", "kind": "lion", "tried": 1, "seconds": 0.0, "cpu_seconds": 0.0, "failed": "failed: this optimizer needs the package lion-pytorch: pip install 'tenfold[optimizers]'", "best": None},
    ],
    "training_memory": {
        "ways": [
            {"what": "as it is", "change": {}, "kept": 41_943_040, "bytes": 48_234_496, "times": interval(1.0, 1.0, 1.0)},
            {"what": "half of the activations", "change": {"recompute": ["blocks.0", "blocks.1"]}, "kept": 18_874_368, "bytes": 25_165_824, "times": interval(1.2131, 1.1904, 1.2388)},
            {"what": "the optimizer's state in bfloat16", "change": {"state": "bfloat16"}, "kept": 41_943_040, "bytes": 44_040_192, "times": interval(1.0411, 1.0213, 1.0629)},
        ],
    },
    "ladder": [
        {
            "stage": "model",
            "lever": "prune",
            "config": {"share": 0.25, "unit": "channel"},
            "quality_difference": interval(-0.005, -0.0182, 0.0081),
            "cost_ratio": interval(_RATIOS[0], 1.1902, 1.2391),
            "verdict": "take",
            "reason": "1.21× cheaper, quality −0.0050 on valid",
            "recipe": "5f0c1d9be42a7713",
            "tried": 3,
        },
        {
            "stage": "compression",
            "lever": "quantize",
            "config": {"backend": "static", "calibration": "minmax", "per_channel": True},
            "quality_difference": interval(0.0, -0.0133, 0.0133),
            "cost_ratio": interval(_RATIOS[1], 2.5116, 2.6644),
            "verdict": "take",
            "reason": "2.59× cheaper, quality +0.0000 on valid",
            "recipe": "0b8e3ac2955d1f40",
            "tried": 8,
        },
        {
            "stage": "model",
            "lever": "distil",
            "config": {"width": 0.5},
            "quality_difference": interval(-0.085, -0.1203, -0.0551),
            "cost_ratio": interval(3.1207, 3.0311, 3.2088),
            "verdict": "refuse",
            "reason": "worse: even the upper bound −0.0551 is below the margin −0.0200",
            "recipe": "c77e019d3a6b5528",
            "tried": 2,
        },
        {
            "stage": "runtime",
            "lever": "runtime",
            "config": {"engine": "openvino", "threads": 1},
            "quality_difference": interval(0.0, -0.0133, 0.0133),
            "cost_ratio": interval(_RATIOS[2], 1.4307, 1.5462),
            "verdict": "take",
            "reason": "1.49× cheaper, quality +0.0000 on valid",
            "recipe": "91d24fe6a8b03c7e",
            "tried": 2,
        },
        {
            "stage": "compression",
            "lever": "precision",
            "config": {"serve": "float16"},
            "quality_difference": interval(0.0, -0.0133, 0.0133),
            "cost_ratio": interval(0.4118, 0.4031, 0.4212),
            "verdict": "refuse",
            "reason": "not cheaper: 0.41× (0.40 to 0.42), 1.02× wanted",
            "recipe": "3e6f7a10cc94d852",
            "tried": 1,
        },
        {
            "stage": "compression",
            "lever": "cascade",
            "config": None,
            "quality_difference": None,
            "cost_ratio": None,
            "verdict": "inconclusive",
            "reason": "the budget ended before it",
            "recipe": None,
            "tried": 0,
        },
        {
            "stage": "training",
            "lever": "batch",
            "config": None,
            "quality_difference": None,
            "cost_ratio": None,
            "verdict": "refuse",
            "reason": "it makes training cheaper, not serving: pull it with --objective train",
            "recipe": None,
            "tried": 0,
        },
    ],
    "attribution": [
        {"lever": "prune", "factor": interval(_RATIOS[0], 1.1902, 1.2391), "without": {"reason": "it would take a training of its own"}},
        {
            "lever": "quantize",
            "factor": interval(_RATIOS[1], 2.5116, 2.6644),
            "without": {"gain": interval(1.8094, 1.7501, 1.8702), "quality_difference": interval(-0.005, -0.0182, 0.0081)},
        },
    ],
    "best_single": {
        "lever": "quantize", "label": "quantize(static, minmax)", "gain": interval(2.5107, 2.4611, 2.5698),
        "quality_difference": interval(0.0, -0.0133, 0.0133), "times": interval(1.8605, 1.7904, 1.9312),
    },
    "joint_search": {
        "learned": {"trials": 8, "compared": 8, "seconds": 61.2, "hypervolume": 0.1432, "same_time": {"seconds": 58.9, "trials": 4, "hypervolume": 0.1398}},
        "random": {"trials": 8, "compared": 8, "seconds": 58.9, "hypervolume": 0.1127, "same_time": {"seconds": 58.9, "trials": 8, "hypervolume": 0.1127}},
    },
    "candidates": [
        {
            "recipe": recipe,
            "label": label,
            "stage": stage,
            "lever": lever,
            "config": {},
            "quality_difference": quality,
            "gain": gain,
            "verdict": verdict,
            "reason": reason,
            "certified": certified,
        }
        for recipe, label, stage, lever, quality, gain, verdict, reason, certified in [
            ("5f0c1d9be42a7713", "prune(share=0.25)", "model", "prune", interval(-0.005, -0.0182, 0.0081), interval(1.2143, 1.1902, 1.2391), "take", "1.21× cheaper, quality −0.0050 on valid", False),
            ("5f0c1d9be42a7714", "prune(share=0.5)", "model", "prune", interval(-0.03, -0.0518, -0.0121), interval(1.6011, 1.5602, 1.6408), "inconclusive", "the budget ended before it", False),
            ("0b8e3ac2955d1f40", "prune(share=0.25) + quantize(static, minmax)", "compression", "quantize", interval(0.0, -0.0133, 0.0133), interval(3.1416, 3.0299, 3.2441), "take", "2.59× cheaper, quality +0.0000 on valid", False),
            ("0b8e3ac2955d1f41", "prune(share=0.25) + quantize(dynamic)", "compression", "quantize", interval(0.005, -0.0081, 0.0182), interval(1.3902, 1.3511, 1.4322), "take", "1.14× cheaper, quality +0.0050 on valid", False),
            ("0b8e3ac2955d1f42", "prune(share=0.25) + quantize(static, entropy)", "compression", "quantize", interval(-0.01, -0.0263, 0.0051), interval(3.1622, 3.0510, 3.2701), "take", "2.60× cheaper, quality −0.0100 on valid", False),
            ("0b8e3ac2955d1f43", "prune(share=0.25) + quantize(static, per-tensor 4 bit)", "compression", "quantize", interval(-0.615, -0.6701, -0.5572), interval(5.8411, 5.6021, 6.0712), "refuse", "worse: even the upper bound −0.5572 is below the margin −0.0200", False),
            ("c77e019d3a6b5528", "distil(width=0.5)", "model", "distil", interval(-0.085, -0.1203, -0.0551), interval(3.1207, 3.0311, 3.2088), "refuse", "worse: even the upper bound −0.0551 is below the margin −0.0200", False),
            ("91d24fe6a8b03c7e", "prune(share=0.25) + quantize(static, minmax) + runtime(openvino)", "runtime", "runtime", interval(0.0, -0.0133, 0.0133), interval(_GAIN, 4.5097, 4.8551), "take", "1.49× cheaper, quality +0.0000 on valid", True),
            ("91d24fe6a8b03c7f", "prune(share=0.25) + quantize(static, minmax) + runtime(onnxruntime, 2 threads)", "runtime", "runtime", interval(0.0, -0.0133, 0.0133), interval(2.2017, 2.1308, 2.2690), "refuse", "not cheaper: 0.70× (0.68 to 0.72), 1.02× wanted", False),
            ("3e6f7a10cc94d852", "precision(float16)", "compression", "precision", interval(0.0, -0.0133, 0.0133), interval(0.4118, 0.4031, 0.4212), "refuse", "not cheaper: 0.41× (0.40 to 0.42), 1.02× wanted", False),
            ("3e6f7a10cc94d853", "precision(bfloat16)", "compression", "precision", None, None, "refuse", "the engine has no bfloat16 kernel for Conv", False),
        ]
    ],
    "sequence": [
        {
            "recipe": "0b8e3ac2955d1f40",
            "label": "prune(share=0.25) + quantize(static, minmax)",
            "confirm": interval(0.0, -0.0263, 0.0263),
            "gain": interval(3.1416, 3.0299, 3.2441),
            "test": interval(0.0, -0.0081, 0.0081),
            "verdict": "take",
            "reason": "lower bound −0.0081 is within the margin −0.0200",
        },
        {
            "recipe": "91d24fe6a8b03c7e",
            "label": "prune(share=0.25) + quantize(static, minmax) + runtime(openvino)",
            "confirm": interval(-0.01, -0.0421, 0.0119),
            "gain": interval(_GAIN, 4.5097, 4.8551),
            "test": interval(-0.0016666666666666668, -0.0096, 0.0059),
            "verdict": "take",
            "reason": "lower bound −0.0096 is within the margin −0.0200",
        },
        {
            "recipe": "c77e019d3a6b5529",
            "label": "distil(width=0.75) + quantize(static, minmax)",
            "confirm": interval(-0.02, -0.0588, 0.0092),
            "gain": interval(6.0411, 5.8802, 6.2108),
            "test": interval(-0.0183, -0.0319, -0.0061),
            "verdict": "inconclusive",
            "reason": "lower bound −0.0319 is below the margin −0.0200; about 38,400 test examples would decide it, 600 are there",
        },
        {
            "recipe": "c77e019d3a6b5530",
            "label": "distil(width=0.75) + quantize(static, entropy)",
            "confirm": interval(-0.03, -0.0713, 0.0011),
            "gain": interval(6.2204, 6.0551, 6.4002),
            "test": None,
            "verdict": None,
            "reason": None,
        },
    ],
    "certified": {
        "recipe": "91d24fe6a8b03c7e",
        "label": "prune(share=0.25) + quantize(static, minmax) + runtime(openvino)",
        "quality_difference": interval(-0.0016666666666666668, -0.0096, 0.0059),
        "margin": MARGIN,
        "n": 600,
        "p": 0.00021,
        "baseline_quality": 0.9883333333333333,
        "candidate_quality": 0.9866666666666667,
        "perplexity": None,
    },
    "gain": {
        "serve": interval(_GAIN, 4.5097, 4.8551),
        "train": None,
        "memory": interval(1.3127, 1.2903, 1.3344),
        "size": interval(3.9021, 3.9021, 3.9021),
    },
    "points": [
        {
            "batch": 1,
            "threads": 1,
            "candidate_threads": 1,
            "reference": "onnxruntime",
            "baseline": _micros(94.1283),
            "candidate": _micros(94.1283 / _GAIN),
            "cpu": interval(_GAIN, 4.5097, 4.8551),
            "wall": interval(4.7012, 4.5211, 4.8803),
            "worst_to_mean": 3.4127,
        },
        {
            "batch": 64,
            "threads": 2,
            "candidate_threads": 4,
            "reference": "eager",
            "baseline": _micros(41.7702, 0.4),
            "candidate": _micros(13.0912, 0.4),
            "cpu": interval(3.1907, 3.0211, 3.3505),
            "wall": interval(3.0288, 2.8107, 3.2519),
        },
    ],
    "slices": [_slice(digit) for digit in range(10)],
    "agreement": {"same": 0.9916666666666667, "n": 600, "baseline_only_right": 3, "candidate_only_right": 2, "both_wrong": 5},
    "calibration": {"baseline_ece": 0.00812, "candidate_ece": 0.01141, "bins": [_bin(i) for i in range(10)]},
    "disagreements": [
        {"index": 12, "target": "3", "baseline": "3", "candidate": "8", "image": _THREE},
        {"index": 77, "target": "8", "baseline": "8", "candidate": "1", "image": _EIGHT},
        {"index": 203, "target": "3", "baseline": "3", "candidate": "9", "image": _THREE},
        {"index": 318, "target": "8", "baseline": "3", "candidate": "8", "image": _EIGHT},
        {"index": 590, "target": "3", "baseline": "5", "candidate": "3", "image": _THREE},
    ],
    "spent": {
        "seconds": 412.38,
        "by_activity": {"train": 171.2, "calibrate": 12.9, "export": 31.4, "evaluate": 48.7, "time": 139.6, "other": 8.58},
        "baseline_seconds": 51.06,
    },
    "break_even_predictions": 5570412,
    "test_openings": 1,
    "exit_code": 0,
    "environment": {
        "cpu_class": "x86-64-v4",
        "cpu": "Intel Xeon Platinum 8481C",
        "vnni": True,
        "bfloat16": True,
        "cores": 2,
        "platform": "Linux 6.1, x86_64",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "onnxruntime": "1.32.0", "openvino": "2026.4.1", "numpy": "2.4.6"},
    },
    "notices": ["2 of 10 slices hold fewer than 55 examples: their intervals are wide."],
    "bundle": "runs/digits-1/bundle",
}
