"""What a longer search buys: the certified gain of a built-in workload by the minutes that are given.

    python benchmarks/budgets/run.py WORKLOAD 10 30 60 90 [--work runs/budgets] [--data DIR]

Each run begins with a cache that holds the trained baseline (`../baselines/kept.py`) and nothing else, so that no run lives on
another's trainings. Runs go one after the other; finished ones are kept, and one that was stopped goes on. Writes records/budgets (a
summary, and each ledger with the raw samples that figures are made of) and the picture docs/budgets-WORKLOAD.svg, with a curve for each class of
processor: what was recorded before, or elsewhere, keeps its place.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tenfold import device
from tenfold.build import Builder
from tenfold.lever import Stage
from tenfold.report.scale import Log
from tenfold.store import Store, cache_dir, write_atomic
from tenfold.workload import find, load

sys.path.insert(0, str(Path(__file__).parents[1] / "baselines"))
import kept

WIDTH, HEIGHT, LEFT, TOP = 640, 360, 56, 24
"""Of the picture, and where its chart begins."""
COLOURS = ("#06c", "#b40", "#073", "#74a")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload")
    parser.add_argument("minutes", type=int, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs/budgets"))
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()

    trained = baseline(arguments.workload, arguments.data)
    records = Path("records/budgets")
    summary = records / f"{arguments.workload}.json"
    before = json.loads(summary.read_text())["rows"] if summary.exists() else []
    rows: dict[tuple[str, int], dict[str, Any]] = {(r["environment"]["cpu_class"], r["minutes"]): r for r in before}
    for minutes in sorted(arguments.minutes):
        folder = arguments.work / arguments.workload / f"{minutes}m"
        if not (folder / "result.json").exists():
            search(arguments.workload, arguments.data, minutes, folder, trained)
        row = row_of(minutes, json.loads((folder / "result.json").read_text()))
        cpu = row["environment"]["cpu_class"]
        rows = dict(sorted({**rows, (cpu, minutes): row}.items()))
        records.mkdir(parents=True, exist_ok=True)
        samples = gzip.compress(behind_figures((folder / "ledger.jsonl").read_bytes()), mtime=0)
        (records / f"{arguments.workload}-{minutes}m.{cpu}.ledger.jsonl.gz").write_bytes(samples)
        write_atomic(summary, json.dumps({"workload": arguments.workload, "rows": list(rows.values())}))  # at once: the next run may be stopped
        write_atomic(Path(f"docs/budgets-{arguments.workload}.svg"), picture(list(rows.values()), arguments.workload))
    for row in rows.values():
        print(f"{row['environment']['cpu_class']}, {row['minutes']} min: {said(row)}")


def baseline(name: str, data: Path | None) -> Path:
    """Where the trained baseline lies in the cache."""
    workload = find(name, data)
    builder = Builder(workload, load(workload), Store(cache_dir() / "steps"), seed=0, threads=device.cores())
    return kept.baseline(builder).path


def search(name: str, data: Path | None, minutes: int, folder: Path, trained: Path) -> None:
    """A run from a cache of its own."""
    cache = folder.parent / f"cache-{minutes}m"
    if not cache.exists():  # copied beside and renamed, so that a copy that was cut is none
        partial = cache.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(trained, partial / "steps" / trained.name)
        openings = cache_dir() / "openings"  # of the test split: counted over all runs
        openings.mkdir(parents=True, exist_ok=True)
        (partial / "openings").symlink_to(openings.resolve())
        partial.rename(cache)
    command = [sys.executable, "-m", "tenfold.cli", "run", name, "--budget", f"{minutes}m", "--out", str(folder)]
    command += ["--data", str(data)] if data else []
    command += ["--resume"] if folder.exists() else []
    code = subprocess.run(command, env=os.environ | {"TENFOLD_CACHE": str(cache.resolve())}, check=False).returncode
    if not (folder / "result.json").exists():
        raise SystemExit(f"the run of {minutes} minutes ended with {code} and without a result: see above")


def row_of(minutes: int, result: dict[str, Any]) -> dict[str, Any]:
    certified = result["certified"]
    return {
        "minutes": minutes, "label": certified and certified["label"], "quality_difference": certified and certified["quality_difference"],
        "baseline_quality": result["baseline"]["quality"],
        **{k: result[k] for k in ("gain", "points", "attribution", "best_single", "joint_search", "spent", "test_openings", "environment")},
    }  # fmt: skip


def behind_figures(ledger: bytes) -> bytes:
    """A ledger without the timings of compressed models and of cascades that guided the search: they are most of it, and no figure is made of them."""
    guided = tuple(f'"key":"cost:{stage}:'.encode() for stage in (Stage.COMPRESSION, Stage.COMPOSE))
    return b"".join(line for line in ledger.splitlines(keepends=True) if not any(key in line[:80] for key in guided))


def said(row: dict[str, Any]) -> str:
    if row["label"] is None:
        return "nothing certified"
    gain, quality = row["gain"]["serve"], row["quality_difference"]
    return f"{gain['value']:.2f}× (at least {gain['low']:.2f}×) at {quality['value']:+.4f} (at least {quality['low']:+.4f}): {row['label']}"


def gain_of(row: dict[str, Any]) -> dict[str, float]:
    gain: dict[str, float] = row["gain"]["serve"] if row["label"] else {"value": 1.0, "low": 1.0, "high": 1.0}
    return gain


def picture(rows: Sequence[dict[str, Any]], name: str) -> str:
    """The gains, each with its interval, over the minutes, a curve for each class of processor; both axes logarithmic."""
    minutes = [r["minutes"] for r in rows]
    across, up = Log(min(minutes) / 1.3, max(minutes) * 1.3), Log(0.9, max(10.0, 1.2 * max(gain_of(r)["high"] for r in rows)))
    wide, high = WIDTH - LEFT - 16, HEIGHT - TOP - 44

    def x(value: float) -> float:
        return round(LEFT + across(value) / 100 * wide, 1)

    def y(value: float) -> float:
        return round(TOP + (1 - up(value) / 100) * high, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="14">{name}: certified gain, by minutes of search</text>',
    ]
    for value in (1, 2, 3, 5, 10, 20):
        if 0.9 <= value <= up.high:
            lines.append(f'<path d="M{LEFT} {y(value)}H{LEFT + wide}" stroke="#ddd"/>')
            lines.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value}×</text>')
    lines += [f'<text x="{x(value)}" y="{TOP + high + 18}" text-anchor="middle">{value}</text>' for value in sorted(set(minutes))]
    lines.append(f'<text x="{LEFT + wide}" y="{HEIGHT - 6}" text-anchor="end">minutes of search, the baseline being there</text>')
    ranked = {m: sorted(gain_of(r)["value"] for r in rows if r["minutes"] == m) for m in minutes}
    for i, (cpu, found) in enumerate(groupby(rows, key=lambda r: r["environment"]["cpu_class"])):
        points, colour = [(r["minutes"], gain_of(r)) for r in found], COLOURS[i % len(COLOURS)]
        path = "M" + "L".join(f"{x(value)} {y(gain['value'])}" for value, gain in points)
        lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{LEFT + 8}" y="{TOP + high - 32 - 16 * i}" fill="{colour}">{", ".join(cpu.split("+")[1:])}</text>')
        for value, gain in points:
            lines.append(f'<path d="M{x(value)} {y(gain["low"])}V{y(gain["high"])}" stroke="{colour}"/>')
            lines.append(f'<circle cx="{x(value)}" cy="{y(gain["value"])}" r="4" fill="{colour}"/>')
            left, down, anchor = x(value), y(gain["high"]) - 8, "middle"  # above the highest, below the lowest, beside those between
            if gain["value"] == ranked[value][0] < ranked[value][-1]:
                down = y(gain["low"]) + 18
            elif gain["value"] < ranked[value][-1]:
                left, down, anchor = left - 10, y(gain["value"]) + 4, "end"
            lines.append(f'<text x="{left}" y="{down}" text-anchor="{anchor}" fill="{colour}">{gain["value"]:.2f}×</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    main()
