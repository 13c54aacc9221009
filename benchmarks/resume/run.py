"""Kills a run at random moments with SIGKILL and resumes it, again and again.

    python benchmarks/resume/run.py [--kills 20] [--jobs 2] [--out records/resume/resume.json]

Each trial starts a run of a small task in a fresh cache, kills it at a random moment, resumes it, and
checks: it ends; its choices are those that its recorded measurements imply (the ledger is replayed in
another process and gives the same ladder, sequence and certificate); what was recorded before the kill still
stands; nothing was measured twice.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tenfold.device import environment

TASK = "from tenfold.testing import small_workload\n\nworkload = small_workload()\n"
CHOICES = ("ladder", "candidates", "sequence", "certified")


def start(folder: Path, task: Path, cache: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tenfold.cli", "run", str(task), "--out", str(folder), "--budget", "5m", "--quiet", *extra]
    return subprocess.Popen(command, env=os.environ | {"TENFOLD_CACHE": str(cache)}, stderr=subprocess.PIPE)


def killed_after(process: subprocess.Popen[bytes], moment: float) -> float | None:
    """Kill a process at a moment of its life; None where it ended before."""
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return moment
    return None


def trial(seed: int, length: float, scratch: Path) -> dict[str, object]:
    """One run, killed once at a random moment of its first `length` seconds, then resumed to its end."""
    rng = random.Random(seed)
    task, folder, cache = scratch / "task.py", scratch / "run", scratch / "cache"
    task.write_text(TASK)
    while not (moment := killed_after(start(folder, task, cache), rng.uniform(0.5, length))):
        length *= 0.9  # it ended before its moment: again, from the start
        shutil.rmtree(folder)
        shutil.rmtree(cache)
    ledger = folder / "ledger.jsonl"
    written = ledger.read_bytes() if ledger.exists() else b""
    whole = written[: written.rfind(b"\n") + 1]
    before = whole.count(b"\n")
    again = start(folder, task, cache, *(["--resume"] if before else []))
    _, message = again.communicate(timeout=900)
    if again.returncode not in (0, 3):
        return {"seed": seed, "moment": moment, "same_choices": False, "error": message.decode()[-500:]}
    result = json.loads((folder / "result.json").read_text())
    keys = [json.loads(line.partition(b" ")[2])["key"] for line in ledger.read_bytes().splitlines()]
    copy = scratch / "replay"
    shutil.copytree(folder, copy)
    replay = start(copy, task, cache, "--resume")
    _, message = replay.communicate(timeout=900)
    replayed = json.loads((copy / "result.json").read_text())
    return {
        "seed": seed,
        "moment": moment,
        "entries_before": before,
        "entries": len(keys),
        "kept": ledger.read_bytes().startswith(whole),
        "twice": len(keys) - len(set(keys)),
        "same_choices": all(result[c] == replayed[c] for c in CHOICES),
        "exit_code": result["exit_code"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time: what they time does not matter here")
    parser.add_argument("--out", type=Path, default=Path("records/resume/resume.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as whole:
        started = time.monotonic()
        task = Path(whole) / "task.py"
        task.write_text(TASK)
        if start(Path(whole) / "run", task, Path(whole) / "cache").wait(timeout=900) not in (0, 3):
            print("the run that sets the length failed")
            return 1
        length = time.monotonic() - started

    def one(seed: int) -> dict[str, object]:
        with tempfile.TemporaryDirectory() as scratch:
            found = trial(seed, length * arguments.jobs, Path(scratch))
        print(found, flush=True)
        return found

    with ThreadPoolExecutor(arguments.jobs) as pool:
        trials = list(pool.map(one, range(arguments.kills)))
    good = sum(t["same_choices"] is True and t["kept"] and t["twice"] == 0 for t in trials)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"good": good, "of": len(trials), "environment": environment(), "trials": trials}, indent=1))
    print(f"{good} of {len(trials)} resumed with the choices that their recorded measurements imply")
    return 0 if good == len(trials) else 1


if __name__ == "__main__":
    sys.exit(main())
