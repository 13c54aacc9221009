"""Kubernetes' API on loopback, for tests: JSON over HTTPS with a token of all rights."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_ANY = ssl._create_unverified_context()  # noqa: S323 - its certificate was made by itself, on loopback


@dataclass(frozen=True)
class Api:
    port: int
    token: str

    def __call__(self, method: str, path: str, content: Any = None, kind: str = "application/json") -> Any:
        """What it answers; None where it answers 404 or 409.

        Raises:
            urllib.error.HTTPError: it answers another error.
        """
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", method=method, data=None if content is None else json.dumps(content).encode())
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=30, context=_ANY) as answer:  # noqa: S310 - of one host
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code in (404, 409):
                return None
            raise

    def patch(self, path: str, content: Any) -> Any:
        return self("PATCH", path, content, "application/strategic-merge-patch+json")
