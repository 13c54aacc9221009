"""The root file system of an image: Debian's interpreter and what it needs, and nothing that could be used to look around.

By mmdebstrap, which fetches and unpacks packages without running any of their scripts; then what only installs or documents is left out. What
of a package is there is kept in var/lib/dpkg/status.d, where scanners look for it.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path

from tenfold.errors import TenfoldError
from tenfold.recipe import digest
from tenfold.store import cache_dir, write_atomic

RELEASE, PYTHON = "bookworm", "3.11"
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgcc-s1", "base-files")
STATUS = "var/lib/dpkg/status"
DESCRIBED = 'for package in "$1"/var/cache/apt/archives/*.deb; do dpkg-deb --field "$package"; echo; done > "$1/var/lib/dpkg/status"'
"""A hook of mmdebstrap, which only unpacks: what the packages are."""
LEFT_OUT = (
    "var/lib/dpkg/", "var/cache/", "var/log/", "var/lib/apt/", "usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/",
    "usr/share/bug/", "usr/share/menu/", "usr/share/pixmaps/", "usr/share/applications/", "usr/sbin/", "usr/lib/python3.11/pydoc_data/", "usr/lib/python3.11/lib2to3/",
    "usr/lib/python3.11/ensurepip/", "usr/lib/python3.11/test/", "usr/lib/python3.11/distutils/", "etc/apt/", "etc/dpkg/", "dev/",
)  # fmt: skip
"""Beginnings of paths: package managers, manuals, and what of the standard library no server imports."""
LEFT_OUT_ANYWHERE = ("/gconv/", "/libdb-5.3.so")
"""Parts of paths: tables of character sets and a database, which lie by the architecture and are loaded by nothing that serves."""
KEPT_PROGRAMS = ("usr/bin/python3.11",)


@dataclass(frozen=True, kw_only=True)
class Root:
    tar: bytes
    packages: dict[str, str]
    """By name, their versions."""


def root(epoch: int, architecture: str) -> Root:
    """The file system, from the cache where it was made today: a later one may have mended packages.

    Args:
        epoch: time of all files, in seconds.
        architecture: by Debian's name.

    Raises:
        TenfoldError: mmdebstrap is not installed, or fails.
    """
    today = datetime.now(UTC).date().isoformat()
    kept = cache_dir() / "root" / f"{digest([RELEASE, PACKAGES, LEFT_OUT, LEFT_OUT_ANYWHERE, KEPT_PROGRAMS, epoch, architecture, today])[:32]}.tar"
    if not kept.exists():
        whole = _debian(epoch, architecture)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob("[!.]*.tar"):  # of other days
            if old.stat().st_mtime < time.time() - 86_400:
                old.unlink(missing_ok=True)
        write_atomic(kept, slimmed(whole, epoch))
    tar = kept.read_bytes()
    if not (packages := _packages(tar)):
        raise TenfoldError("mmdebstrap did not say which packages it unpacked: install dpkg, or build the Containerfile that is written beside")
    return Root(tar=tar, packages=packages)


def _debian(epoch: int, architecture: str) -> bytes:
    if shutil.which("mmdebstrap") is None:
        raise TenfoldError("the image needs mmdebstrap: apt install mmdebstrap, or build the Containerfile that is written beside")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "root.tar"
        hooks = "/usr/share/mmdebstrap/hooks/merged-usr"
        command = [
            "mmdebstrap", "--quiet", "--variant=extract", f"--architectures={architecture}", f"--hook-dir={hooks}", f"--extract-hook={DESCRIBED}", f"--include={','.join(PACKAGES)}", RELEASE, str(whole),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)})
        if done.returncode:
            raise TenfoldError(f"mmdebstrap failed ({(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}): build the Containerfile that is written beside")
        return whole.read_bytes()


def slimmed(whole: bytes, epoch: int) -> bytes:
    """A tar without what is left out, in the order of its paths, all of root's and of one time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(whole)) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as target:
        members = {m.name.removeprefix("./"): m for m in source.getmembers()}
        kept = {name: m for name, m in members.items() if name not in ("", ".") and _is_kept(name, m)}
        status = source.extractfile(members[STATUS]) if STATUS in members else None
        contents = {name: source.extractfile(m) for name, m in kept.items() if m.isreg() or m.islnk()}  # before their headers are changed
        described = dict(_described(status.read().decode())) if status is not None else {}
        for name in sorted({*kept, *described, *(str(p) for d in described for p in Path(d).parents if str(p) != ".")}):
            if name in described:
                info = tarfile.TarInfo(name)
                info.size = len(described[name])
            elif name in kept:
                info = kept[name]
                info.name, info.uid, info.gid, info.uname, info.gname, info.pax_headers = name, 0, 0, "", "", {}
                if info.islnk():  # as a file of its own, whose target need not come before it
                    info.type, info.size = tarfile.REGTYPE, members[info.linkname.removeprefix("./")].size
                info.mode &= ~0o6000  # nothing that would give rights
            else:
                info = tarfile.TarInfo(name)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            info.mtime = epoch
            target.addfile(info, io.BytesIO(described[name]) if name in described else contents.get(name))
    return out.getvalue()


def _is_kept(name: str, member: tarfile.TarInfo) -> bool:
    if member.ischr() or member.isblk() or member.isfifo():
        return False
    if name.startswith("usr/bin/") and not member.isdir():
        return name in KEPT_PROGRAMS
    return not any(f"{name}/".startswith(start) for start in LEFT_OUT) and not any(part in f"/{name}/" for part in LEFT_OUT_ANYWHERE)


def _described(status: str) -> Iterator[tuple[str, bytes]]:
    """By path, what dpkg says of each package."""
    for text in status.split("\n\n"):
        if name := HeaderParser().parsestr(text.strip()).get("Package"):
            yield f"{STATUS}.d/{name}", f"{text.strip()}\n".encode()


def _packages(tar: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as source:
        texts = [source.extractfile(m) for m in source.getmembers() if m.name.startswith(f"{STATUS}.d/") and m.isreg()]
        headers = [HeaderParser().parsestr(t.read().decode()) for t in texts if t is not None]
    return {h["Package"]: h["Version"] for h in headers}
