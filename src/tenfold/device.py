"""What this machine can do. Imports neither torch nor numpy."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from tenfold.limits import core_limit

# what decides which kernels the engines pick, hence cost and the last digits of the numbers
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM_FEATURES = ("asimd", "asimddp", "i8mm", "bf16", "sve")
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "openvino", "numpy", "scipy", "safetensors", "torch-pruning", "optuna")


@cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that matter here, of those the kernel reports; empty where it reports none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        return ()
    present = set(flags.partition(":")[2].split())
    return tuple(f for f in (*_FEATURES, *_ARM_FEATURES) if f in present)


def has_vnni() -> bool:
    """Eight-bit dot products in one instruction: without them int8 may saturate at 16 bits on x86."""
    return any(f in cpu_features() for f in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))


def has_bfloat16() -> bool:
    return any(f in cpu_features() for f in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_class() -> str:
    """A name for machines whose numbers may be compared: architecture and instruction sets."""
    return "+".join((platform.machine() or "unknown", *cpu_features()))


def cores() -> int:
    """Cores this process may use: those it may run on, or fewer where a control group gives it less time."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = core_limit()
    return able if limit is None else min(able, max(1, math.ceil(limit)))


def thread_counts() -> list[int]:
    """Numbers of threads worth trying: powers of two, and all cores."""
    return sorted({2**i for i in range(cores().bit_length()) if 2**i <= cores()} | {cores()})


@cache
def versions() -> Mapping[str, str]:
    """Installed versions of what shapes the numbers."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def environment() -> dict[str, Any]:
    """What stands beside every figure: machine, cores, versions."""
    return {
        "cpu_class": cpu_class(),
        "cpu": _cpu_name(),
        "vnni": has_vnni(),
        "bfloat16": has_bfloat16(),
        "cores": cores(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or sys.platform
