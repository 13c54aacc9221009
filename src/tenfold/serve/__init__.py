"""A bundle as a service: the Open Inference Protocol v2 over HTTP, on starlette, uvicorn and the bundle's own engine. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec

from tenfold.errors import TenfoldError

NEEDS = ("httptools", "orjson", "packaging", "prometheus_client", "starlette", "uvicorn", "uvloop")


def check_installed() -> None:
    """
    Raises:
        TenfoldError: a package that serving needs is not there.
    """
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise TenfoldError(f"serving needs {', '.join(missing)}: pip install 'tenfold[serve]'")
