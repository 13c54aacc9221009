"""What a command prints at its end, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenfold.progress import mark


def print_summary(result: dict[str, Any], folder: Path) -> None:
    """The ladder, the headline and where things lie."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), title=None)
    table.add_column("")
    table.add_column("lever")
    table.add_column("factor", justify="right")
    table.add_column("quality", justify="right")
    table.add_column("why", overflow="fold")
    for row in result["ladder"]:
        taken = row["verdict"] == "take"
        cost, quality = row["cost_ratio"], row["quality_difference"]
        table.add_row(
            mark(row["verdict"]),
            escape(row["lever"]),
            f"{cost['value']:.2f}×" if cost else "",
            f"{quality['value']:+.4f}" if quality else "",
            escape(row["reason"]),
            style=None if taken else "dim",
        )
    console.print()
    console.print(table)
    console.print()
    console.print(escape(headline(result)), style="bold")
    if worst := result["points"][0]["worst_to_mean"]:
        over = worst / result["points"][0]["cpu"]["value"]
        console.print(f"Cost depends on the input: the dearest prediction costs {worst:.1f} times the mean, and {over:.2f} times what the baseline does.")
    if result["workload"]["demo"]:
        console.print("This workload is a demonstration: its figures claim nothing.")
    console.print(f"report  {(folder / 'report.html').resolve().as_uri()}", soft_wrap=True)
    console.print(f"bundle  {folder / 'bundle'}", soft_wrap=True)


def _end(value: float | None) -> str:
    return "no end" if value is None else f"{value:,.0f}"


def print_study(document: dict[str, Any], folder: Path) -> None:
    """Which batch, and what goes with it."""
    from rich.console import Console

    console, found = Console(highlight=False), document["recommended"]
    base = document["reference"]["batch"]
    over = {c["batch"]: c["seconds"]["value"] for c in document["curve"]}
    for what, choice in found.items():
        rate = f"learning rate {choice['learning_rate']:.3g}" + (f", second beta {choice['second_beta']:.4g}" if "second_beta" in choice else "")
        console.print(f"for {what:<5} batch {choice['best']:,} ({choice['low']:,} to {choice['high']:,} could be the best), {rate}", style="bold")
    console.print(
        f"batch {found['time']['best']:,} is expected at the target {over[base] / over[found['time']['best']]:.2f} times as soon as batch {base:,} "
        f"(critical batch size {document['critical']['value']:,.0f}, {document['critical']['low']:,.0f} to {_end(document['critical']['high'])})"
    )
    if not (aim := document["target"])["reached"]:
        console.print(f"the loss of {aim['asked']:g} was not reached: the target is {aim['loss']:.4g}, the best that the reference came to; give a larger --budget")
    if not document["checked"]:
        console.print("no short training with another batch came to its end: this rests on the noise of the gradient alone; give a larger --budget")
    if missed := document["missed"]["sizes"]:
        console.print(f"batches of {', '.join(f'{b:,}' for b in missed)} did not come to the loss of batch {base:,} in {document['missed']['times']:g} times its time, or to none")
    if document["warm_up"]["pays"]:
        console.print(f"a batch that grows ({' → '.join(f'{b:,}' for b in document['warm_up']['sizes'])}) is {document['warm_up']['gain']:.2f} times as soon there as the best fixed one")
    console.print(f"up to {document['devices']:,} devices are worth having")
    console.print(f"page  {(folder / 'batch.html').resolve().as_uri()}", soft_wrap=True)


def print_update(document: dict[str, Any], page: Path) -> None:
    """Whether an upgrade went into service, and why."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for c in document["comparisons"]:
        quality = c["quality"]
        shown = f"{quality['value']:+.4f}  ({quality['level']:.1%} interval {quality['low']:+.4f} to {quality['high']:+.4f})"
        console.print(f"{mark(c['verdict'])} against {c['against']} on {c['n']:,} {c['on']}: {shown}, margin {c['margin']:g}")
    taken = document["let_in"]
    console.print(escape(f"upgrade {document['number']}: {'let into service' if taken else 'not let into service'}: {document['reason']}"), style="bold")
    if (cost := document["cost_ratio"]) is not None:
        console.print(f"it answers at {cost['value']:.2f}× ({cost['low']:.2f} to {cost['high']:.2f}) of the speed of what it replaces")
    console.print(f"in service  {document['in_service']}", soft_wrap=True)
    console.print(f"page        {page.resolve().as_uri()}", soft_wrap=True)


def print_shipped(document: dict[str, Any], out: Path) -> None:
    """What was written, and what comes next."""
    from rich.console import Console

    console, image = Console(highlight=False, soft_wrap=True), document["image"]
    if image is not None:
        console.print(f"image       {out / 'image'}  ({image['bytes'] / 1e6:.1f} MB compressed)\n            {image['name']}@{image['digest']}")
    console.print(f"manifests   {out / 'kubernetes'}, and as a chart {out / 'chart'}")
    taken, requests = document["measured"], document["requests"]
    console.print(f"measured    {taken['peak_bytes'] / 1e6:.0f} MB at the most under load, {taken['idle_bytes'] / 1e6:.0f} MB idle: a pod requests {requests['cpu']} CPU and {requests['memory']}")
    name, namespace = document["name"], document["namespace"]
    console.print(f"next        kubectl apply -f {out / 'kubernetes'}\n            kubectl create secret generic {name}-token --namespace {namespace} --from-file=token=FILE")


def print_upgrade(document: dict[str, Any]) -> None:
    """What would be done, or was."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if document["dry_run"]:
        for step in document["plan"]:
            console.print(f"plan        {step['canaries']} of {step['of']} servers, watched for {document['watch_seconds']:g} s")
        console.print("plan        all of them; nothing was changed")
        return
    taken = document["exit_code"] == 0
    console.print("promoted" if taken else f"taken back: {document['steps'][-1]['judged']['reason']}", style="bold")
    console.print(f"in service  {document['in_service']}")


def headline(result: dict[str, Any]) -> str:
    """The result in two sentences."""
    certified = result["certified"]
    if certified is None:
        return (
            f"Nothing could be certified within {result['workload']['margin_absolute']:g} of the baseline's "
            f"{result['workload']['metric']}. The bundle is the baseline's."
        )
    gain = main_gain(result)
    quality = certified["quality_difference"]
    turned = "" if result["workload"]["higher_is_better"] else "; above 0 is better"
    low = f" (at least {gain['low']:.2f}×)" if gain["low"] != gain["high"] else ""
    perplexity = " Perplexity {:.3f}, was {:.3f}.".format(*reversed(p)) if (p := certified.get("perplexity")) else ""
    return (
        f"{gain['value']:.2f}× cheaper{low} in {result['unit']}. {result['workload']['metric']} {quality['value']:+.4f} "
        f"(90 % interval {quality['low']:+.4f} to {quality['high']:+.4f}{turned}), margin {certified['margin']:g}, "
        f"on {certified['n']:,} test examples.{perplexity}"
    )


def main_gain(result: dict[str, Any]) -> dict[str, float]:
    """The gain that the objective is about."""
    name = result["objective"] if result["objective"] in ("size", "train") else "serve"
    gain: dict[str, float] = result["gain"][name]
    return gain


def print_comparison(result: dict[str, Any]) -> None:
    """The guard's finding on two models."""
    quality, cost = result["quality_difference"], result["cost_ratio"]
    print(f"quality   {quality['value']:+.4f}  (90 % interval {quality['low']:+.4f} to {quality['high']:+.4f}), margin {result['margin']:g}")
    print(f"cost      {cost['value']:.2f}×  ({cost['low']:.2f} to {cost['high']:.2f}) cheaper, {result['unit']}")
    if result["agreement"]:
        agreement = result["agreement"]
        print(
            f"agreement {agreement['same']:.2%} of {agreement['n']:,}; only A right {agreement['baseline_only_right']}, "
            f"only B right {agreement['candidate_only_right']}"
        )
    for row in result["slices"]:
        part = row["quality_difference"]
        flag = "  margin not kept" if row["held"] is False else ""
        print(f"  {row['name']:<24} n {row['n']:>6,}  {part['value']:+.4f}  ({part['low']:+.4f} to {part['high']:+.4f}){flag}")
    for row in result["disagreements"][:10]:
        print(f"  example {row['index']}: is {row['target']}, A says {row['baseline']}, B says {row['candidate']}")
    if len(result["disagreements"]) > 10:
        print(f"  … {len(result['disagreements']) - 10} more with --json")
    for notice in result["notices"]:
        print(notice)
    print(f"{result['verdict']}: {result['reason']}")
