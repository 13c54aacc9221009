"""Whether a bundle may take the place of another at all, before any request comes to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold import device
from tenfold.bundle import Bundle
from tenfold.data.split import Array
from tenfold.engine import Runner
from tenfold.errors import TenfoldError
from tenfold.measure import calls_for, interleave
from tenfold.verdict import Interval, cost_ratio

SECONDS, ROUNDS = 6.0, 12
"""Of timing, both together."""
MOST_TIMES = 1.1
"""What a prediction may cost, over that of the one in service."""
SAME = ("workload", "inputs", "outputs", "labels", "task")


def check_same(new: Bundle, old: Bundle) -> None:
    """
    Raises:
        TenfoldError: it is the same bundle, takes or gives something else, or was certified on a CPU that this machine's is not like.
    """
    if new.path.resolve() == old.path.resolve():
        raise TenfoldError(f"{new.path} is the bundle in service: write the new one into a folder of its own, so that the old one can come back")
    for what in SAME:
        if new.manifest.get(what) != old.manifest.get(what):
            raise TenfoldError(f"the new bundle's {what} is not that of the one in service ({_short(new.manifest.get(what))}, not {_short(old.manifest.get(what))}): serve it beside, under another name")
    if missing := set(str(new.manifest["cpu_class"]).split("+")) - set(device.cpu_class().split("+")):
        raise TenfoldError(f"the new bundle was certified on {new.manifest['cpu_class']}, and this machine has no {', '.join(sorted(missing))}: certify it here, or upgrade from there")


def check_quality(new: Bundle, old: Bundle) -> str:
    """On what grounds the new one is as good as the old one, by what was certified; in words.

    Raises:
        TenfoldError: it is not shown to be.
    """
    otherwise = "compare the two with --workload, or give --uncertified"
    if not new.manifest.get("certified"):
        raise TenfoldError(f"the new bundle was not certified: certify it with tenfold run or tenfold update, {otherwise}")
    if new.manifest.get("upgrade", {}).get("beside") == old.manifest["files"]["model.onnx"]:  # it was let in beside this very one
        return f"upgrade {new.manifest['upgrade']['number']} of its run was let in by tenfold update"
    mine, others = _recorded(new), _recorded(old)
    if mine is None or others is None or mine["metric"] != others["metric"]:
        raise TenfoldError(f"the two bundles have no certificates that can be held against each other: {otherwise}")
    if mine["quality"] < others["quality"] - mine["margin"]:
        raise TenfoldError(
            f"the new bundle's {mine['metric']} on test was {mine['quality']:.4f}, that of the one in service {others['quality']:.4f}, and {mine['margin']:g} may be given up: {otherwise}"
        )
    return f"{mine['metric']} on test was {mine['quality']:.4f}, that of the one in service {others['quality']:.4f} (margin {mine['margin']:g})"


def _recorded(bundle: Bundle) -> dict[str, Any] | None:
    """What was certified; of a baseline, which is served uncertified, what it is itself. Higher is better, as scores have it."""
    quality = bundle.manifest.get("quality") or {}
    certified = quality.get("certified")
    if certified is not None:
        return {"metric": quality["metric"], "quality": certified["candidate_quality"], "margin": certified["margin"]}
    baseline = quality.get("baseline")
    return {"metric": quality["metric"], "quality": baseline, "margin": quality["margin"]} if isinstance(baseline, float) else None


def check_cost(new: Bundle, old: Bundle, *, dearer: bool, examples: Sequence[Array] | None = None) -> Interval:
    """How many times cheaper than the old one the new one answers here, on the same examples.

    Args:
        dearer: let one in that costs more.
        examples: real ones, an array an input; None: the old one's golden inputs, which say less of what depends on them, as a cascade does.

    Raises:
        TenfoldError: it costs more.
    """
    inputs = old.golden()[0] if examples is None else examples
    runners = {"old": _alone(old), "new": _alone(new)}
    calls = calls_for(runners, inputs, batch=1, rounds=ROUNDS, seconds=SECONDS)
    samples = interleave(runners, inputs, batch=1, rounds=ROUNDS, calls=calls)
    ratio = cost_ratio(samples["old"].by_input("cpu"), samples["new"].by_input("cpu"))
    if ratio.high < 1 / MOST_TIMES and not dearer:
        raise TenfoldError(f"a prediction of the new bundle costs {1 / ratio.value:.2f} times as much here (at least {1 / ratio.high:.2f}): give --dearer to let it in all the same")
    return ratio


def _alone(bundle: Bundle) -> Runner:
    """Its first output."""
    return lambda inputs: bundle.run(inputs)[0]


def check_on_data(new: Path, old: Path, workload: str, data: Path | None) -> dict[str, Any]:
    """The guard's document on a workload's test split, of the two graphs.

    Raises:
        TenfoldError: the new one is not shown to be as good.
    """
    from tenfold.compare import compare

    found = compare(old / "model.onnx", new / "model.onnx", workload, data=data, cheaper=False)
    if found["exit_code"]:
        raise TenfoldError(f"the new bundle is not shown to be as good on {workload}'s test split: {found['reason']}")
    return found


def _short(content: Any) -> str:
    text = str(content)
    return text if len(text) <= 120 else f"{text[:120]}…"
