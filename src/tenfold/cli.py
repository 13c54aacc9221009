"""The command line: parse, call, print, exit code. A thin shell over the library."""

from __future__ import annotations

import json
import re
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tenfold import __version__
from tenfold.errors import TenfoldError

INTERRUPTED = 130
CHEAPER, USE, LOOK = "Make a model cheaper", "Use what came out", "Look around"

app = typer.Typer(
    name="tenfold",
    help="Measures how much cheaper a PyTorch model can be at the same quality, proves it on held-out data, and hands it over.",
    epilog="Exit codes: 0 done, 2 bad usage or input, 3 nothing could be certified (the bundle is the baseline's), "
    "130 interrupted (go on with --resume).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ObjectiveName(StrEnum):
    serve = "serve"
    latency = "latency"
    throughput = "throughput"
    size = "size"
    train = "train"


WorkloadArgument = Annotated[str, typer.Argument(help="A built-in (`tenfold workloads` lists them), or path/to/task.py[:name].", show_default=False)]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder that holds the data of a built-in; of `language` a text file or folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and only it, on standard output.")]
MarginOption = Annotated[float | None, typer.Option("--margin", help="Quality that may be given up, instead of the workload's.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tenfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)] = False,
) -> None:
    pass


@app.command("run", rich_help_panel=CHEAPER)
def run_command(
    workload: WorkloadArgument,
    data: DataOption = None,
    budget: Annotated[str, typer.Option(help="Time to search, from when the baseline is there: 90s, 10m, 2h.")] = "10m",
    trials: Annotated[int | None, typer.Option(help="Configs measured at the most.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Post-training levers only, five minutes.")] = False,
    objective: Annotated[ObjectiveName, typer.Option(help="What is to become cheaper.")] = ObjectiveName.serve,
    levers: Annotated[str | None, typer.Option(help="Only these levers: a,b,…", show_default=False)] = None,
    margin: MarginOption = None,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/<workload>-<number>.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped: --out, or the newest.")] = False,
    show_examples: Annotated[bool, typer.Option("--show-examples", help="Put pictures of test examples in the report.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while at work.")] = False,
    as_json: JsonOption = False,
    workers: Annotated[int | None, typer.Option(help="Not there yet: scale out on this machine.", show_default=False)] = None,
    dask: Annotated[str | None, typer.Option(help="Not there yet: scale out on a Dask cluster.", show_default=False)] = None,
) -> None:
    """Measure, certify and hand over a cheaper model."""
    if workers is not None or dask is not None:
        raise TenfoldError("--workers and --dask are not there yet: leave them out to run on this machine")
    from tenfold.pipeline import run

    result = run(
        workload,
        data=data,
        budget=seconds(budget),
        trials=trials,
        quick=quick,
        objective=objective.value,
        levers=[x.strip() for x in levers.split(",") if x.strip()] if levers is not None else None,
        margin=margin,
        seed=seed,
        out=out,
        resume=resume,
        show_examples=show_examples,
        view="quiet" if quiet else "auto",
    )
    if as_json:
        _print_json(result.document)
    elif not quiet:
        from tenfold.summary import print_summary

        print_summary(result.document, result.folder)
    raise typer.Exit(result.exit_code)


@app.command("compare", rich_help_panel=CHEAPER)
def compare_command(
    a: Annotated[Path, typer.Argument(help="The ONNX model that is trusted.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The ONNX model that would replace it.", show_default=False)],
    workload: WorkloadArgument,
    data: DataOption = None,
    margin: MarginOption = None,
    as_json: JsonOption = False,
) -> None:
    """The guard alone: is B as good as A, and cheaper?"""
    from tenfold.compare import compare

    document = compare(a, b, workload, data=data, margin=margin)
    if as_json:
        _print_json(document)
    else:
        from tenfold.summary import print_comparison

        print_comparison(document)
    raise typer.Exit(document["exit_code"])


@app.command("update", rich_help_panel=CHEAPER)
def update_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run that ended.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="The new data: what the workload's train may be.", show_default=False)],
    workload: Annotated[str | None, typer.Option(help="Where the run's own is elsewhere: a built-in, or path/to/task.py[:name].", show_default=False)] = None,
    old_data: Annotated[Path | None, typer.Option(help="Folder of the run's data, where it is no longer where it was.", show_default=False)] = None,
    planned: Annotated[int | None, typer.Option(help="Upgrades to come, over which the error is spent; with the first. Default: 12.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an upgrade that was stopped.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while at work.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Learn from new data, and put the result into service if it is as good: exit code 0, else 3."""
    from tenfold.renew.update import update

    view = "quiet" if quiet else "auto"
    result = update(run, data, workload=workload, old_data=old_data, planned=planned, resume=resume, view=view)
    if as_json:
        _print_json(result.document)
    elif not quiet:
        from tenfold.summary import print_update

        print_update(result.document, result.page)
    raise typer.Exit(result.exit_code)


@app.command("batch", rich_help_panel=LOOK)
def batch_command(
    workload: WorkloadArgument,
    data: DataOption = None,
    target: Annotated[float | None, typer.Option(help="Loss on valid that is to be reached. Default: what the workload's own training comes to.", show_default=False)] = None,
    budget: Annotated[str, typer.Option(help="Time for all of it, about: 90s, 10m, 2h.")] = "10m",
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the study. Default: runs/<workload>-batch-<number>.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a study that was stopped: --out, or the newest.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while at work.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Which batch size trains soonest and cheapest: from the gradient's noise, the time of a step, and short trainings."""
    from tenfold.sweep.study import study

    result = study(workload, data=data, target=target, budget=seconds(budget), seed=seed, out=out, resume=resume, view="quiet" if quiet else "auto")
    if as_json:
        _print_json(result.document)
    elif not quiet:
        from tenfold.summary import print_study

        print_study(result.document, result.folder)


@app.command("predict", rich_help_panel=USE)
def predict_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.", show_default=False)],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An .npy, image or .csv file.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Run a bundle on an input, without torch."""
    from tenfold.bundle import Bundle, read_input

    loaded = Bundle.load(bundle)
    specs = loaded.manifest["inputs"]
    if len(specs) != 1:
        raise TenfoldError(f"the model takes {len(specs)} inputs: use tenfold.Bundle.load(path).predict(…) from Python")
    import numpy as np

    outputs = np.atleast_2d(loaded.predict(read_input(source, specs[0])))
    named = loaded.labels_of(outputs)
    if as_json:
        rows: dict[str, Any] = {"outputs": outputs.tolist()}
        if named is not None:
            rows["labels"] = [{"label": label, "probability": share} for label, share in named]
        _print_json(rows)
    elif named is not None:
        for label, share in named:
            print(f"{label}\t{share:.4f}")
    else:
        for row in outputs:
            print("\t".join(f"{v:.6g}" for v in row.ravel()))


@app.command(
    "serve", rich_help_panel=USE, add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Serve bundles over HTTP: the Open Inference Protocol v2, and a page to try them on.",
)  # fmt: skip
def serve_command(context: typer.Context) -> None:
    """Serve bundles; `tenfold serve --help` lists the options."""
    import os

    os.execv(sys.executable, [sys.executable, "-m", "tenfold.serve", *context.args])  # noqa: S606 - a process that holds only what serving needs


@app.command("ship", rich_help_panel=USE)
def ship_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.", show_default=False)],
    image: Annotated[str, typer.Option("--image", help="NAME:TAG of the image, with its registry.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the image and the manifests.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="On the cluster. Default: the workload's.", show_default=False)] = None,
    namespace: Annotated[str, typer.Option(help="On the cluster.")] = "tenfold",
    rate: Annotated[float, typer.Option(help="Requests a second that a pod is planned for.")] = 20.0,
    push: Annotated[bool, typer.Option("--push", help="Copy the image to its registry, with skopeo.")] = False,
    sign: Annotated[str | None, typer.Option(help="Push and sign it with this key, with cosign.", show_default=False)] = None,
    training_image: Annotated[str | None, typer.Option(help="Write updates by the clock as well, on this image.", show_default=False)] = None,
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim of updates, with the folders run, new and old.")] = "tenfold-data",
    schedule: Annotated[str, typer.Option(help="Of updates, as cron has it.")] = "0 3 * * *",
    workers: Annotated[int, typer.Option(help="Of Dask, for updates.")] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while at work.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle as an OCI image and as Kubernetes manifests."""
    from tenfold.ship.write import Asked, ship

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr)

    if not 0 < rate < float("inf"):
        raise TenfoldError(f"--rate {rate:g} is no number of requests above 0")
    asked = Asked(
        image=image, out=out, name=name, namespace=namespace, rate=rate, push=push, sign=sign, training_image=training_image, claim=claim, schedule=schedule, workers=workers,
    )  # fmt: skip
    document = ship(bundle, asked, say=say)
    if as_json:
        _print_json(document)
    elif not quiet:
        from tenfold.summary import print_shipped

        print_shipped(document, out)


PoolOption = Annotated[Path | None, typer.Option("--pool", help="Folder of servers that run: tenfold serve --pool FOLDER.", show_default=False)]
KubernetesOption = Annotated[str | None, typer.Option("--kubernetes", help="NAMESPACE/NAME of a deployment.", show_default=False)]


@app.command("upgrade", rich_help_panel=USE)
def upgrade_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the new bundle.", show_default=False)],
    pool: PoolOption = None,
    kubernetes: KubernetesOption = None,
    image: Annotated[str | None, typer.Option(help="Of the new bundle, for --kubernetes: NAME@DIGEST.", show_default=False)] = None,
    old: Annotated[Path | None, typer.Option("--from", help="Folder of the bundle in service. Default: as the pool says.", show_default=False)] = None,
    workload: Annotated[str | None, typer.Option(help="Compare the two on this workload's test split as well.", show_default=False)] = None,
    data: DataOption = None,
    inputs: Annotated[Path | None, typer.Option(help="An .npy file of real examples, to compare cost by.", show_default=False)] = None,
    watch: Annotated[str, typer.Option(help="Time for which each step is watched: 60s, 10m.")] = "60s",
    most: Annotated[str, typer.Option(help="After which a step that saw too few requests is given up.")] = "10m",
    uncertified: Annotated[bool, typer.Option("--uncertified", help="Let in a bundle that was not certified.")] = False,
    dearer: Annotated[bool, typer.Option("--dearer", help="Let in a bundle whose predictions cost more.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all checks, print the plan, change nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while at work.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a bundle in another's place, step by step, if it does as well: exit code 0, else 3."""
    from tenfold.data.sources import load_npy
    from tenfold.rollout.upgrade import Asked, upgrade

    asked = Asked(
        pool=pool, kubernetes=kubernetes, image=image, old=old, workload=workload, data=data, examples=None if inputs is None else [load_npy(inputs)],
        watch_seconds=seconds(watch), most_seconds=seconds(most), uncertified=uncertified, dearer=dearer, dry_run=dry_run,
    )  # fmt: skip
    document = upgrade(bundle, asked, say=lambda line: None if quiet else print(line, file=sys.stderr))
    if as_json:
        _print_json(document)
    elif not quiet:
        from tenfold.summary import print_upgrade

        print_upgrade(document)
    raise typer.Exit(document["exit_code"])


@app.command("rollback", rich_help_panel=USE)
def rollback_command(pool: PoolOption = None, kubernetes: KubernetesOption = None) -> None:
    """Put back what was in service before the last upgrade."""
    from tenfold.rollout.upgrade import rollback

    rollback(pool, kubernetes, say=print)


@app.command("report", rich_help_panel=USE)
def report_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a run again from its result.json, and say where it is."""
    from tenfold.document import read_result
    from tenfold.report import write

    document = read_result(run)
    path = run / "report.html"
    write(document, path)
    if as_json:
        _print_json(document)
    else:
        print(path.resolve().as_uri())
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


@app.command("levers", rich_help_panel=LOOK)
def levers_command(
    name: Annotated[str | None, typer.Argument(help="Show the card of one lever.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the levers, or show a lever's card: what it does, when it pays, when not."""
    from tenfold.lever import card, discover

    levers = discover()
    if name is not None and name not in levers:
        raise TenfoldError(f"there is no lever {name!r}: use {', '.join(levers)}")
    chosen = [levers[name]] if name is not None else list(levers.values())
    if as_json:
        _print_json([{"name": x.name, "stages": [*map(str, x.stages)], "summary": x.summary, "card": card(x.name)} for x in chosen])
        return
    for lever in chosen:
        if name is None:
            print(f"{lever.name:<12} {'/'.join(lever.stages):<20} {lever.summary}")
        else:
            print(card(name).rstrip())
    if name is None:
        print("\nThe card of one: tenfold levers NAME")


@app.command("workloads", rich_help_panel=LOOK)
def workloads_command(as_json: JsonOption = False) -> None:
    """List the built-in workloads."""
    from importlib import import_module

    from tenfold.workloads import built_in

    rows = [{"name": n, "about": _about(import_module(f"tenfold.workloads.{n.replace('-', '_')}"))} for n in built_in()]
    if as_json:
        _print_json(rows)
    else:
        for row in rows:
            print(f"{row['name']:<16} {row['about']}")


def _about(module: Any) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def seconds(text: str) -> float:
    """Seconds in "90s", "10m", "2h" or "90".

    Raises:
        TenfoldError: it is no such thing, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if value <= 0:
        raise TenfoldError(f"budget {text!r} is no time above 0: write 90s, 10m or 2h")
    return value


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))


def _fail(message: str, code: int) -> NoReturn:
    print(f"tenfold: {message}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Entry point. What a user got wrong is one sentence and exit code 2; Ctrl-C is 130."""
    warnings.showwarning = lambda message, *_rest: print(f"tenfold: {message}", file=sys.stderr)
    try:
        app()
    except SystemExit as leave:
        if leave.code == INTERRUPTED:
            resumable = sys.argv[1:2] in (["run"], ["batch"], ["update"])
            print("tenfold: interrupted" + (": nothing recorded is lost, go on with --resume" if resumable else ""), file=sys.stderr)
        raise
    except TenfoldError as error:
        _fail(str(error), 2)
    except MemoryError:
        _fail("out of memory: use less data, a smaller image_size or a smaller batch_size", 2)
    except BrokenPipeError:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
