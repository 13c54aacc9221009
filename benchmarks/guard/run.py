"""How often does the guard ship what it must not, and turn away what it should ship? Truth is planted.

    python benchmarks/guard/run.py [--out records/guard] [--peer nncf=PYTHON] [--peer inc=PYTHON]

Writes guard.json (raw counts, seeds, environment, bars) and selection.csv (a row a selection), and
prints the tables as Markdown. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from plants import BASELINE_ACCURACY, SCENARIOS, Offer, Plant, Scores, draw
from rules import decisions, exact_rate, measured_rate, oracle_shipped, worst_size
from selection import best_good, draw_splits, exact_error, select

from tenfold.device import environment
from tenfold.verdict import LEVEL, Decision

MARGIN = 0.005
SIZES = (600, 10_000)
BOUNDARY_DISCORDANCES = (0.01, 0.04, 0.08)
EQUAL_DISCORDANCES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.10)
CHOOSING = {"valid": 5_000, "confirm": 5_000}
HIGHEST_DISCORDANCE = 0.15
"""Up to which the worst exact size is looked for."""
PEERS = ("nncf", "inc")
HERE = Path(__file__).parent

# what each random stream is for: the first number after the seed
BOUNDARY, EQUAL, SELECTION, REPLICATION = 1, 2, 3, 4

Json = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    started = time.monotonic()
    boundary, boundary_scores = cells(BOUNDARY, -MARGIN, BOUNDARY_DISCORDANCES, options)
    equal, equal_scores = cells(EQUAL, 0.0, EQUAL_DISCORDANCES, options)
    replication = replicate(options)
    say("worst exact size")
    sizes = [{"n": n, "size": size, "discordance": at} for n in SIZES for size, at in [worst_size(n, MARGIN, HIGHEST_DISCORDANCE)]]
    selections, rows, offered = selections_of(options)
    peers = {
        name: ask_peer(name, python, boundary_scores + equal_scores, offered) for name, python in options.peer.items()
    }
    document = {
        "schema": 1,
        "command": command(options),
        "seed": options.seed,
        "margin": MARGIN,
        "level": LEVEL,
        "repetitions": options.repetitions,
        "environment": environment(),
        "boundary": boundary,
        "equal": equal,
        "replication": replication,
        "worst_exact_size": sizes,
        "selection": selections,
        "peers": {name: peer_summary(answer, boundary, equal, offered) for name, answer in peers.items()},
        "bars": bars(boundary, equal, replication, selections),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "guard.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with open(options.out / "selection.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(tables(document))
    say(f"done in {time.monotonic() - started:.0f} s")
    return 0 if all(bar["met"] for bar in document["bars"]) else 1


# ---------------------------------------------------------------- one candidate at a time


def cells(stream: int, difference: float, discordances: Sequence[float], options: argparse.Namespace) -> tuple[list[Json], list[Scores]]:
    """`certify` on many draws of one plant, for each n and discordance."""
    out, drawn = [], []
    for i, n in enumerate(SIZES):
        for j, discordance in enumerate(discordances):
            say(f"difference {difference:+.3f}, n {n:,}, discordance {discordance:.1%}")
            plant = Plant(difference=difference, discordance=discordance)
            key = [options.seed, stream, i, j]
            scores = draw(plant, n, options.repetitions, np.random.default_rng(key))
            counts = decisions(scores, MARGIN)
            shipped = counts[Decision.TAKE]
            out.append({
                "n": n,
                "difference": difference,
                "discordance": discordance,
                "seed": key,
                "drawn": scores.digest(),
                "counts": {str(d): c for d, c in counts.items()},
                "oracle_shipped": oracle_shipped(scores, MARGIN),
                "exact_shipped": exact_rate(plant, n, MARGIN),
                "shipped": measured_rate(shipped, options.repetitions).to_json(),
                "turned_away": measured_rate(options.repetitions - shipped, options.repetitions).to_json(),
            })  # fmt: skip
            drawn.append(scores)
    return out, drawn


def replicate(options: argparse.Namespace) -> list[Json]:
    """The boundary cells again on fresh draws, block after block: is what a cell shows its draw, or the guard?"""
    out = []
    for i, n in enumerate(SIZES):
        for j, discordance in enumerate(BOUNDARY_DISCORDANCES):
            say(f"replication, n {n:,}, discordance {discordance:.1%}")
            plant = Plant(difference=-MARGIN, discordance=discordance)
            blocks = []
            for block in range(options.replications):
                rng = np.random.default_rng([options.seed, REPLICATION, i, j, block])
                blocks.append(decisions(draw(plant, n, options.repetitions, rng), MARGIN)[Decision.TAKE])
            pooled = measured_rate(sum(blocks), options.repetitions * len(blocks))
            out.append({
                "n": n,
                "discordance": discordance,
                "block_size": options.repetitions,
                "shipped_by_block": blocks,
                "shipped": pooled.to_json(),
                "exact_shipped": exact_rate(plant, n, MARGIN),
            })  # fmt: skip
    return out


# ---------------------------------------------------------------- selection, end to end


def selections_of(options: argparse.Namespace) -> tuple[list[Json], list[Json], list[Json]]:
    """Selections among many: a summary for each scenario and test size, a row for each, and what peers are offered."""
    summaries, rows, offered = [], [], []
    for s, (scenario, offers_of) in enumerate(SCENARIOS.items()):
        here: dict[int, list[Json]] = {n: [] for n in SIZES}
        there: dict[int, list[tuple[Scores, list[Offer]]]] = {n: [] for n in SIZES}
        for run in range(options.runs):
            if run % 100 == 0:
                say(f"selection, {scenario}, {run:,} of {options.runs:,}")
            rng = np.random.default_rng([options.seed, SELECTION, s, run])
            offers = sorted(offers_of(MARGIN, options.candidates, rng), key=lambda o: -o.gain)
            splits = draw_splits(offers, {**CHOOSING, **{f"test{n}": n for n in SIZES}}, rng)
            best = best_good(offers, MARGIN)
            for n in SIZES:
                test = splits[f"test{n}"]
                outcome = select(offers, splits["valid"], splits["confirm"], test, MARGIN)
                shipped = None if outcome.shipped is None else offers[outcome.shipped]
                here[n].append({
                    "scenario": scenario,
                    "n": n,
                    "run": run,
                    "met_test": len(outcome.sequence),
                    "wrong": int(outcome.bad(offers, MARGIN)),
                    "shipped_difference": "" if shipped is None else round(shipped.plant.difference, 6),
                    "shipped_gain": "" if shipped is None else round(shipped.gain, 4),
                    "best_good_gain": "" if best is None else round(offers[best].gain, 4),
                    "exact_error": "" if (e := exact_error(offers, outcome, n, MARGIN)) is None else round(e, 6),
                })  # fmt: skip
                if run < options.headline:
                    there[n].append((test, offers))
        for n in SIZES:
            rows += here[n]
            offered.append({"scenario": scenario, "n": n, "runs": there[n]})
            few = {"scenario": scenario, "n": n, **summary(here[n][: options.headline])}
            summaries += [few, {"scenario": scenario, "n": n, **summary(here[n])}] if options.runs > options.headline else [few]
    return summaries, rows, offered


def summary(rows: list[Json]) -> Json:
    runs, wrong = len(rows), sum(r["wrong"] for r in rows)
    shipped = sum(r["shipped_gain"] != "" for r in rows)
    possible = [r for r in rows if r["best_good_gain"] != ""]
    kept = [r for r in possible if r["shipped_gain"] != "" and not r["wrong"]]
    exact = [r["exact_error"] for r in rows]
    out: Json = {
        "runs": runs,
        "shipped": shipped,
        "wrong": wrong,
        "error": measured_rate(wrong, runs).to_json(),
        "exact_error": None if "" in exact else float(np.mean(exact)),
    }
    if possible:
        out |= {
            "good_existed": len(possible),
            "good_shipped": measured_rate(len(kept), len(possible)).to_json(),
            # geometric means over the runs in which a good one existed; nothing or a wrong one shipped counts as 1
            "gain_shipped": math.exp(sum(math.log(r["shipped_gain"]) for r in kept) / len(possible)),
            "gain_of_best_good": math.exp(sum(math.log(r["best_good_gain"]) for r in possible) / len(possible)),
        }
    return out


# ---------------------------------------------------------------- peers


def ask_peer(name: str, python: str, drawn: list[Scores], offered: list[Json]) -> Json:
    """A peer's own code, in its own environment, on the same plants. It sees what a user would give it: accuracies."""
    say(f"asking {name}")
    with tempfile.TemporaryDirectory() as folder:
        plants, answer = Path(folder) / "plants.npz", Path(folder) / "decisions.json"
        np.savez(
            plants,
            margin=MARGIN,
            baseline_accuracy=BASELINE_ACCURACY,
            cell_n=[s.n for s in drawn],
            cell_baseline=np.stack([s.baseline for s in drawn]),
            cell_candidate=np.stack([s.candidate for s in drawn]),
            sel_n=[o["n"] for o in offered],
            sel_baseline=np.stack([[t.baseline[0] for t, _ in o["runs"]] for o in offered]),
            sel_candidate=np.stack([[t.candidate for t, _ in o["runs"]] for o in offered]),
        )
        program = Path(shutil.which(python) or python).absolute()  # not resolved: a venv is known by its link
        script = (HERE / "peers" / f"{name}_rule.py").absolute()
        subprocess.run([program, script, plants, answer], check=True, stdout=sys.stderr, cwd=folder)  # they write where they stand
        return dict(json.loads(answer.read_text(encoding="utf-8")))


def peer_summary(answer: Json, boundary: list[Json], equal: list[Json], offered: list[Json]) -> Json:
    cell_rows = []
    for cell, accepted in zip(boundary + equal, answer["accepted"]):
        of = sum(cell["counts"].values())
        cell_rows.append({
            **{k: cell[k] for k in ("n", "difference", "discordance")},
            "accepted": accepted,
            "shipped": measured_rate(accepted, of).to_json(),
            "turned_away": measured_rate(of - accepted, of).to_json(),
        })  # fmt: skip
    selection_rows = []
    for offer, shipped, within in zip(offered, answer["shipped"], answer["within"]):
        truths = [None if c < 0 else offers[c].plant.difference for c, (_, offers) in zip(shipped, offer["runs"])]
        wrong = sum(d is not None and d <= -MARGIN for d in truths)
        selection_rows.append({
            "scenario": offer["scenario"],
            "n": offer["n"],
            "runs": len(shipped),
            "shipped": sum(c >= 0 for c in shipped),
            "shipped_though_not_accepted": sum(c >= 0 and not ok for c, ok in zip(shipped, within)),
            "wrong": wrong,
            "error": measured_rate(wrong, len(shipped)).to_json(),
        })  # fmt: skip
    keep = ("version", "rule", "handed_over")
    return {**{k: answer[k] for k in keep}, "cells": cell_rows, "selection": selection_rows}


# ---------------------------------------------------------------- what is said of it


def bars(boundary: list[Json], equal: list[Json], replication: list[Json], selections: list[Json]) -> list[Json]:
    """The bars, against the rates measured as planned (`met`), and beside them against all further draws."""
    good = [c for c in equal if c["n"] == 10_000 and c["discordance"] <= 0.03]
    first, last = ({(s["scenario"], s["n"]): s for s in order} for order in (reversed(selections), selections))
    found: list[tuple[str, float, float, float | None]] = [
        (
            "boundary plants shipped, worst cell", 0.056,
            max(c["shipped"]["value"] for c in boundary), max(c["shipped"]["value"] for c in replication),
        ),
        (
            "good candidates turned away (n = 10,000, discordance ≤ 3 %), worst cell", 0.20,
            max(c["turned_away"]["value"] for c in good), None,
        ),
        *(
            (
                f"end to end, {name}, test n = {n:,}, {row['runs']} selections", 0.05,
                row["error"]["value"], last[name, n]["error"]["value"],
            )
            for (name, n), row in sorted(first.items())
        ),
    ]  # fmt: skip
    return [
        {"bar": what, "at_most": limit, "measured": value, "met": value <= limit, "more_draws": more}
        for what, limit, value, more in found
    ]


def tables(document: Json) -> str:
    peers = document["peers"]
    at = {
        name: {(c["n"], c["difference"], c["discordance"]): c for c in peer["cells"]} for name, peer in peers.items()
    }

    def cell_table(title: str, cell_rows: list[Json], key: str) -> list[str]:
        head = ["n", "discordance", f"Tenfold, {key.replace('_', ' ')}", "exact", *(f"{p} {peers[p]['version']}" for p in peers)]
        out = [f"\n{title}\n", *header(head)]
        for c in cell_rows:
            exact = c["exact_shipped"] if key == "shipped" else 1 - c["exact_shipped"]
            theirs = [percent(at[p][c["n"], c["difference"], c["discordance"]][key]["value"]) for p in peers]
            out.append(line([f"{c['n']:,}", percent(c["discordance"]), spread(c[key]), percent(exact), *theirs]))
        return out

    out = cell_table("True difference −margin: shipped", document["boundary"], "shipped")
    out += cell_table("True difference 0: turned away", document["equal"], "turned_away")
    head = ["n", "discordance", "blocks", "shipped, all blocks", "exact", "least and most in a block", "blocks above 5.6 %"]
    out += ["\nTrue difference −margin, replicated on fresh draws: shipped\n", *header(head)]
    for c in document["replication"]:
        rates = [b / c["block_size"] for b in c["shipped_by_block"]]
        ends = f"{percent(min(rates))}, {percent(max(rates))}"
        above = sum(r > 0.056 for r in rates)
        out.append(line([f"{c['n']:,}", percent(c["discordance"]), len(rates), spread(c["shipped"]), percent(c["exact_shipped"]), ends, above]))
    out += ["\nWorst exact size over all discordances up to 15 %\n", *header(["n", "size", "at discordance"])]
    out += [line([f"{s['n']:,}", percent(s["size"]), percent(s["discordance"])]) for s in document["worst_exact_size"]]
    head = ["scenario", "test n", "selections", "shipped", "shipped wrongly", "exact", "good one shipped", "gain (of the best good)"]
    out += ["\nSelection among many\n", *header(head)]
    for s in document["selection"]:
        gain = f"{s['gain_shipped']:.2f}× (of {s['gain_of_best_good']:.2f}×)" if "gain_shipped" in s else ""
        exact = "" if s["exact_error"] is None else percent(s["exact_error"])
        good = spread(s["good_shipped"]) if "good_shipped" in s else ""
        out.append(line([s["scenario"], f"{s['n']:,}", s["runs"], s["shipped"], spread(s["error"]), exact, good, gain]))
    for name, peer in peers.items():
        head = ["scenario", "n", "selections", "shipped", "though not accepted", "shipped wrongly"]
        out += [f"\nSelection by {name} {peer['version']}\n", *header(head)]
        for s in peer["selection"]:
            out.append(line([s["scenario"], f"{s['n']:,}", s["runs"], s["shipped"], s["shipped_though_not_accepted"], spread(s["error"])]))
        out += ["", *(f"{name}, every candidate 40 points worse: {json.dumps(h)}" for h in peer["handed_over"])]
    out += ["\nBars\n", *header(["bar", "at most", "measured", "met", "on more draws"])]
    for b in document["bars"]:
        more = "" if b["more_draws"] is None else percent(b["more_draws"])
        out.append(line([b["bar"], percent(b["at_most"]), percent(b["measured"]), "yes" if b["met"] else "NO", more]))
    return "\n".join(out)


def header(names: Sequence[str]) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def line(values: Sequence[object]) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def spread(rate: Json) -> str:
    return f"{100 * rate['value']:.2f} % ({100 * rate['low']:.2f} to {100 * rate['high']:.2f})"


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- command line


def command(options: argparse.Namespace) -> str:
    """The command that gives this again; where a peer's Python lies is the reader's business."""
    names = ("seed", "repetitions", "replications", "runs", "headline", "candidates")
    words = [f"--{name} {getattr(options, name)}" for name in names] + [f"--peer {name}=PYTHON" for name in options.peer]
    return " ".join(["python benchmarks/guard/run.py", *words])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("records/guard"), help="folder that the results are written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=10_000, help="draws of each cell")
    parser.add_argument("--replications", type=int, default=100, help="blocks of as many further draws of each boundary cell")
    parser.add_argument("--runs", type=int, default=2_000, help="selections of each scenario, for a tight interval")
    parser.add_argument("--headline", type=int, default=200, help="the first of them, which the bar and the peers are for")
    parser.add_argument("--candidates", type=int, default=50, help="that each selection chooses among, at most 64")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"{' or '.join(PEERS)}, with the Python that has it; may be repeated"
    )
    options = parser.parse_args(argv)
    options.peer = dict(p.split("=", 1) if "=" in p else (p, "") for p in options.peer)
    for name, python in options.peer.items():
        if name not in PEERS or not python:
            parser.error(f"--peer wants NAME=PYTHON with a name of {', '.join(PEERS)}, not {name}={python}")
    if min(options.repetitions, options.replications, options.runs, options.headline) < 1 or not 1 <= options.candidates <= 64:
        parser.error("counts start at 1, and candidates end at 64")
    options.headline = min(options.headline, options.runs)
    return options


if __name__ == "__main__":
    sys.exit(main())
