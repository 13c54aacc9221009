"""`python -m tenfold.probe JOB`: a fresh serving process that reports its peak memory in bytes. No torch."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from tenfold.engine import SessionConfig, open_session

REPEATS = 20


def main() -> None:
    job = json.loads(sys.argv[1])
    runner = open_session(Path(job["model"]), SessionConfig(**job["session"]))
    inputs = [np.zeros(shape, dtype=dtype) for shape, dtype in job["inputs"]]
    for _ in range(REPEATS):
        runner(inputs)
    print(peak_resident())


def peak_resident() -> int:
    """Peak resident bytes of this process."""
    if sys.platform == "linux":  # where ru_maxrss starts from the parent's peak: exec keeps it
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
