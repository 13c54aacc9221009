"""Where a server listens, and with what key."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from pathlib import Path
from typing import Any, NoReturn

from tenfold.errors import TenfoldError
from tenfold.serve.settings import Settings
from tenfold.serve.tokens import LOOK_SECONDS

log = logging.getLogger("tenfold.serve")


def bind(host: str, port: int) -> socket.socket:
    """A socket with its address taken; it does not listen yet.

    Raises:
        TenfoldError: it cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise TenfoldError(f"port {port} of {host} cannot be had ({getattr(error, 'strerror', None) or error}): give another --port or --metrics-port") from error
    return bound


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def tls(settings: Settings) -> dict[str, Any]:
    """What uvicorn takes for it; nothing without a certificate.

    Raises:
        TenfoldError: certificate and key cannot be used.
    """
    if settings.certificate is None and settings.key is None:
        return {}
    if settings.certificate is None or settings.key is None:
        raise TenfoldError("TLS needs both: give --tls-cert and --tls-key")
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl's are OSErrors
        reason = getattr(error, "strerror", None) or str(error)
        raise TenfoldError(f"{settings.certificate} and {settings.key} are no certificate with its key ({reason}): name PEM files that belong together") from error
    return {"ssl_certfile": str(settings.certificate), "ssl_keyfile": str(settings.key)}


async def renew(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have new connections use what the files say when they change, as a certificate ends while a server runs. Until it is cancelled."""
    known = _contents(certificate, key)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        found = _contents(certificate, key)
        if found in (known, None):
            continue
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as error:  # one of the two was exchanged, the other not yet
            log.warning("%s and %s have changed, and cannot be used (%s): what was there goes on", certificate, key, error)
            continue
        known = found
        log.info("%s was read again", certificate)


def _contents(*paths: Path) -> list[bytes] | None:
    try:
        return [path.read_bytes() for path in paths]
    except OSError:
        return None


def _no_password() -> NoReturn:
    raise ValueError("the key is encrypted: decrypt it first")
