"""Figures as text. Each is a rounding of the number it stands for, never a number of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

NOTHING = "–"
MINUS = "−"

VERDICTS = {"take": "taken", "refuse": "refused", "inconclusive": "inconclusive"}
ENGINES = {"eager": "PyTorch, eager", "onnxruntime": "ONNX Runtime, float32", "compiled": "PyTorch, compiled"}

_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


def exact(value: float | None) -> str:
    """The number as `result.json` has it, for `data-` attributes."""
    return json.dumps(value)


def number(value: float | None, digits: int) -> str:
    """`1,234.50`, with a true minus sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int) -> str:
    """A difference: `+0.0017`, `−0.0050`, and plain `0.0000`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = number(value, digits)
    return f"+{text}" if value > 0 else text.removeprefix(MINUS) if value == 0 else text


def ratio(value: float | None, like: float | None = None) -> str:
    """A cost ratio: `4.73×`, `12.4×`, `130×`; with the decimals of `like` where that is given."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{number(value, _ratio_digits(value if like is None else like))}×"


def _ratio_digits(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0


def score_digits(margin: float) -> int:
    """Decimals that show a margin to three significant digits: 4 for 0.02, 1 for 50."""
    if not (math.isfinite(margin) and margin > 0):
        return 4
    return min(max(2 - math.floor(math.log10(margin)), 0), 8)


def percent(share: float | None, digits: int = 1) -> str:
    return NOTHING if share is None else f"{number(share * 100, digits)} %"


def level(value: float) -> str:
    """`90 %`."""
    return f"{value * 100:g} %"


def chance(p: float) -> str:
    """`p = 0.0012`."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def micros(value: float | None) -> str:
    """Microseconds, without the unit: `8.71`, `41.2`, `3,120`."""
    if value is None:
        return NOTHING
    return number(value, 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0)


def duration(seconds: float | None) -> str:
    """`0.42 s`, `12.3 s`, `9 min 42 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def size(count: float | None) -> str:
    """Bytes in decimal units: `812 B`, `4.41 MB`."""
    if count is None:
        return NOTHING
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= step:
            return f"{number(count / step, 2)} {unit}"
    return f"{count:,.0f} B"


def day(stamp: str) -> str:
    """`24 November 2026, 06:00 UTC` of an ISO 8601 time; the text itself where it is none."""
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    zone = moment.strftime("%Z").removesuffix("+00:00")
    return f"{moment.day} {moment:%B %Y, %H:%M} {zone}".rstrip()


def settings(config: Mapping[str, Any] | None) -> str:
    """A config in a line: `backend = static, calibration = minmax`; what is nested in brackets, recipes by their number."""
    return ", ".join(_setting(key, value) for key, value in (config or {}).items())


def _setting(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{key} ({settings(value)})"
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        return f"{len(value)} {key}"
    return f"{key} = {plain(value)}"


def plain(value: Any) -> str:
    """A value of a config or a target, as one would write it down."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}".replace("-", MINUS)
    return json.dumps(value, ensure_ascii=False, default=str)


def picture(entry: Mapping[str, Any]) -> str | None:
    """The picture of an example, if it is one that needs no network and can hold no script."""
    uri = entry.get("image")
    return uri if isinstance(uri, str) and _PICTURE.fullmatch(uri) else None


def verdict(word: str | None) -> str:
    return NOTHING if word is None else VERDICTS.get(word, word)


def engine(name: str) -> str:
    return ENGINES.get(name, name)
