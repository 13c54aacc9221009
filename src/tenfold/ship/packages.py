"""The Python packages of an image: those that serving needs, in the versions that are installed here, as wheels for the image's interpreter."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tenfold.errors import TenfoldError
from tenfold.ship.oci import File, content_of, tree
from tenfold.ship.root import PYTHON

SERVING = ("httptools", "numpy", "orjson", "pillow", "prometheus-client", "starlette", "uvicorn", "uvloop")
"""Beside the engine."""
NOT_NEEDED = frozenset({"sympy", "mpmath", "coloredlogs", "humanfriendly", "openvino-telemetry"})
"""What engines ask for, and no graph needs that is run."""
LEFT_OUT = (
    "**/tests", "**/test", "**/*.pyi", "**/*.h", "**/*.a", "*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED", "*.dist-info/direct_url.json", "bin",
    "numpy/f2py", "numpy/distutils", "numpy/_core/include", "numpy/_core/lib", "onnxruntime/tools", "onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/datasets",
    "PIL/_avif*", "PIL/_webp*", "PIL/_imagingft*", "PIL/_imagingcms*", "PIL/_imagingtk*",
    *(f"pillow.libs/lib{name}*" for name in ("avif", "webp", "sharpyuv", "freetype", "harfbuzz", "png", "brotli", "lcms")),
)  # fmt: skip
"""What is for building, testing and training; what decodes images that are not taken; and what says how it came here, which is not the same each time."""
OLDEST_GLIBC, NEWEST_GLIBC = 17, 36
"""2.x, of wheels that the image's runs."""


def pins(engine: str) -> dict[str, str]:
    """By name, the versions of all that serving with an engine takes; what is installed here decides.

    Raises:
        TenfoldError: something is not installed.
    """
    found: dict[str, str] = {}
    left = [engine, *SERVING]
    while left:
        name = canonicalize_name(left.pop())
        if name in found or name in NOT_NEEDED:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise TenfoldError(f"{name} is not installed, which an image takes in the version that is here: pip install 'tenfold[serve]'") from error
        left += _needs(name)
    return dict(sorted(found.items()))


def _needs(name: str) -> Iterator[str]:
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "platform_system": "Linux", "extra": ""}
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement.name


def installed(versions: Mapping[str, str], at: str, machine: str, python: list[str]) -> list[File]:
    """Their files, at a path of the image, compiled.

    Args:
        machine: by the kernel's name.
        python: command of the image's interpreter; empty: nothing is compiled.

    Raises:
        TenfoldError: pip cannot get them.
    """
    platforms = [f"manylinux_2_{n}_{machine}" for n in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "lib"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--only-binary=:all:", f"--python-version={PYTHON}",
            *(f"--platform={p}" for p in platforms), f"--target={target}", *(f"{name}=={version}" for name, version in versions.items()),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TenfoldError(f"pip cannot get what the image needs ({(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}): try again with a network, or build the Containerfile")
        for pattern in LEFT_OUT:
            for path in list(target.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        compiled(target, f"/{at}", python)
        return [File(path=f.path, content=content_of(f), mode=f.mode) for f in tree(target, at)]


def compiled(folder: Path, at: str, python: list[str]) -> None:
    """Byte code beside each module, that is not looked at again: the image cannot be written to.

    Args:
        at: where the folder is in the image.
        python: command of the image's interpreter; empty: nothing is compiled.

    Raises:
        TenfoldError: the interpreter does not run here.
    """
    if not python:
        return
    command = [*python, "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", "-s", str(folder), "-p", at, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # 1: what cannot be compiled is no module of this Python
    if done.returncode not in (0, 1) or not any(folder.rglob("*.pyc")):
        raise TenfoldError(f"the image's interpreter does not run here ({(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}): build the Containerfile that is written beside")
