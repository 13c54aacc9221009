"""Who is let in."""

from __future__ import annotations

import hmac
import logging
import time
from pathlib import Path

from tenfold.errors import TenfoldError

log = logging.getLogger("tenfold.serve")
LOOK_SECONDS = 5.0
"""How often the file is looked at."""


class Tokens:
    """Those that are let in: the lines of a file, read again when it changes, as Kubernetes changes secrets."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            TenfoldError: the file cannot be read, or holds none.
        """
        self._path = path
        self._looked = time.monotonic()
        try:
            self._text = path.read_bytes()
        except OSError as error:
            raise TenfoldError(f"the file of tokens cannot be read ({error.strerror}): {path}") from error
        self._tokens = self._lines()
        if not self._tokens:
            raise TenfoldError(f"{path} holds no token: write one into it, or give --no-auth")

    def _lines(self) -> list[bytes]:
        return [line.strip() for line in self._text.splitlines() if line.strip()]

    def lets_in(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header is `Bearer` and a token; in a time that does not tell which part is wrong."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._renew()
        kind, _, given = authorization.partition(b" ")
        found = [hmac.compare_digest(given.strip(), token) for token in self._tokens]  # all of them, whichever it is
        return kind.lower() == b"bearer" and any(found)

    def _renew(self) -> None:
        try:
            text = self._path.read_bytes()
        except OSError:
            return  # what was known still holds: a file that is being replaced locks nobody out
        if text != self._text:
            self._text, before = text, len(self._tokens)
            self._tokens = self._lines()
            log.info("%s has changed: %d tokens were let in, %d are now", self._path, before, len(self._tokens))
