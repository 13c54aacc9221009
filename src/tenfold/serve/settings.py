"""What a server is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8080
    metrics_port: int | None = 8081
    """0: any that is free; None: no metrics."""
    token_file: Path | None = None
    """Whose lines are the tokens that are let in; read again when it changes."""
    certificate: Path | None = None
    key: Path | None = None
    """Of TLS."""
    force: bool = False
    """Serve on machines that lack what a bundle was certified on."""
    max_body: int | None = None
    """Bytes of a request, unpacked; None: what `max_examples` of the largest model take, written out."""
    max_held: int = 64 << 20
    """Bytes of all requests together that have not been answered."""
    max_examples: int = 256
    """Of a request."""
    max_requests: int = 256
    """At the same time, those that wait included."""
    max_connections: int = 1024
    connection_seconds: float = 20.0
    """After about which a connection is closed with an answer, so that clients come to servers that were started since."""
    head_seconds: float = 10.0
    """In which a request's line and headers have to be there."""
    body_seconds: float = 10.0
    """In which its body has to be there."""
    answer_seconds: float = 30.0
    """In which it is answered, or given up."""
    drain_seconds: float = 0.0
    """Between a SIGTERM and the end of new connections: not ready, but serving, until nobody sends any more."""
    grace_seconds: float = 30.0
    """In which requests are finished after that."""
    delay: float | None = None
    """Seconds that a request may wait for others to be put together with; None: none."""
    access_log: bool = True
