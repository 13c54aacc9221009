"""The page on which a model can be tried: one file, no network but this server."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources


@cache
def page() -> tuple[str, str]:
    """The page, and its Content-Security-Policy: only the script and the style that are in it."""
    html = resources.files("tenfold.serve").joinpath("page.html").read_text(encoding="utf-8")
    script, style = (_between(html, f"<{tag}>", f"</{tag}>") for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return html, policy


def _between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
