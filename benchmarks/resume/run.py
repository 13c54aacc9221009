"""Kills a run at random moments with SIGKILL and resumes it, again and again.

    python benchmarks/resume/run.py [--kills 20] [--out records/resume/resume.json]

Each trial starts a run of a small task in a fresh cache, kills it at a random moment, resumes it, and
checks: it ends; its choices are those that its recorded measurements imply (the ledger is replayed in
another process and gives the same ladder, sequence and certificate); nothing was measured twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASK = "from tenfold.testing import small_workload\n\nworkload = small_workload()\n"
CHOICES = ("ladder", "candidates", "sequence", "certified")


def start(folder: Path, task: Path, cache: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tenfold.cli", "run", str(task), "--out", str(folder), "--budget", "5m", "--quiet", *extra]
    return subprocess.Popen(command, env=os.environ | {"TENFOLD_CACHE": str(cache)}, stderr=subprocess.PIPE)


def trial(seed: int, length: float, scratch: Path) -> dict[str, object]:
    """One run, killed once at a random moment of its first `length` seconds, then resumed to its end."""
    rng = random.Random(seed)
    task, folder, cache = scratch / "task.py", scratch / "run", scratch / "cache"
    task.write_text(TASK)
    moment = rng.uniform(0.5, length)
    process = start(folder, task, cache)
    try:
        process.wait(timeout=moment)
        killed = False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = True
    ledger = folder / "ledger.jsonl"
    before = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
    if killed:
        again = start(folder, task, cache, *(["--resume"] if before else []))
        _, message = again.communicate(timeout=600)
        if again.returncode not in (0, 3):
            return {"seed": seed, "moment": moment, "killed": killed, "error": message.decode()[-500:]}
    result = json.loads((folder / "result.json").read_text())
    keys = [json.loads(line.partition(b" ")[2])["key"] for line in ledger.read_bytes().splitlines()]
    copy = scratch / "replay"
    shutil.copytree(folder, copy)
    replay = start(copy, task, cache, "--resume")
    _, message = replay.communicate(timeout=600)
    replayed = json.loads((copy / "result.json").read_text())
    return {
        "seed": seed,
        "moment": moment,
        "killed": killed,
        "entries_before": before,
        "entries": len(keys),
        "twice": len(keys) - len(set(keys)),
        "same_choices": all(result[c] == replayed[c] for c in CHOICES),
        "exit_code": result["exit_code"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("records/resume/resume.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as whole:
        started = time.monotonic()
        task = Path(whole) / "task.py"
        task.write_text(TASK)
        if start(Path(whole) / "run", task, Path(whole) / "cache").wait(timeout=600) not in (0, 3):
            print("the run that sets the length failed")
            return 1
        length = time.monotonic() - started
    trials = []
    for seed in range(arguments.kills):
        with tempfile.TemporaryDirectory() as scratch:
            trials.append(trial(seed, length, Path(scratch)))
        print(trials[-1], flush=True)
    good = sum(t.get("same_choices") is True and t["twice"] == 0 for t in trials)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"good": good, "of": len(trials), "trials": trials}, indent=1))
    print(f"{good} of {len(trials)} resumed with the choices that their recorded measurements imply")
    return 0 if good == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
