"""`python -m tenfold.serve`: the server alone, for images that hold nothing else; `tenfold serve` takes the same words."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tenfold.errors import TenfoldError
from tenfold.serve import check_installed
from tenfold.serve.settings import Settings

MOST_PORT = 65_535


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container has no handler of its own, and importing takes a while
    given = _parser().parse_args()
    try:
        check_installed()
        _serve(given)
    except TenfoldError as error:
        print(f"tenfold: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _serve(given: argparse.Namespace) -> None:
    from tenfold.serve.model import Source
    from tenfold.serve.server import Handed, check, serve
    from tenfold.serve.service import Service

    settings = Settings(
        host=given.host, port=given.port, metrics_port=None if given.no_metrics else given.metrics_port, token_file=given.token_file,
        certificate=given.tls_cert, key=given.tls_key, force=given.force, max_body=given.max_body, max_held=given.max_held,
        max_examples=given.max_examples, max_requests=given.max_requests, answer_seconds=given.timeout, drain_seconds=given.drain,
        connection_seconds=given.connection_age, delay=None if given.delay is None else given.delay / 1e3, access_log=not given.no_access_log,
    )  # fmt: skip
    sources = [Source.parse(b) for b in given.bundles]
    if given.check:
        for model in Service(sources, settings).open_all():
            print(f"{model.name} {model.version} answers as its manifest says", flush=True)
    elif given.handed is not None:
        serve(sources, settings, auth=not given.no_auth, handed=Handed(listening=given.handed[0], says=given.handed[1]))
    elif given.replicas > 1 or given.pool is not None:
        from tenfold.serve.pool import supervise_command

        check(settings, auth=not given.no_auth)
        supervise_command(vars(given))
    else:
        serve(sources, settings, auth=not given.no_auth)


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = argparse.ArgumentParser(prog="tenfold serve", description="Serve bundles by the Open Inference Protocol v2; GET / is a page to try them on.", allow_abbrev=False)
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="a folder, NAME=FOLDER, or NAME@VERSION=FOLDER")
    parser.add_argument("--host", default=usual.host, help="default: %(default)s")
    parser.add_argument("--port", type=_port, default=usual.port, help="default: %(default)s; 0: any that is free")
    parser.add_argument("--metrics-port", type=_port, default=usual.metrics_port, help="for Prometheus; default: %(default)s; 0: any that is free")
    parser.add_argument("--no-metrics", action="store_true")
    parser.add_argument("--token-file", type=Path, help="whose lines are the tokens that are let in; read again when it changes")
    parser.add_argument("--no-auth", action="store_true", help="let everybody in, though it listens elsewhere than on loopback")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--force", action="store_true", help="serve on machines that lack what a bundle was certified on")
    parser.add_argument("--check", action="store_true", help="open the bundles, replay their golden outputs, and end")
    parser.add_argument("--max-body", type=_count, default=usual.max_body, help="bytes of a request; default: what --max-examples of the model take")
    parser.add_argument("--max-held", type=_count, default=usual.max_held, help="bytes of all requests that are at work; default: %(default)s")
    parser.add_argument("--max-examples", type=_count, default=usual.max_examples, help="of a request; default: %(default)s")
    parser.add_argument("--max-requests", type=_count, default=usual.max_requests, help="at the same time; default: %(default)s")
    parser.add_argument("--timeout", type=_seconds, default=usual.answer_seconds, help="seconds, for an answer; default: %(default)s")
    parser.add_argument("--drain", type=_seconds, default=usual.drain_seconds, help="seconds that it serves on after a SIGTERM, not ready any more; default: %(default)s")
    parser.add_argument("--delay", type=_seconds, help="milliseconds that a request may wait for others, where batches pay")
    parser.add_argument("--connection-age", type=_seconds, default=usual.connection_seconds, help="seconds, after about which a connection is closed with an answer; default: %(default)s")
    parser.add_argument("--no-access-log", action="store_true")
    parser.add_argument("--replicas", type=_count, default=1, help="processes behind the one port; default: %(default)s")
    parser.add_argument("--pool", type=Path, metavar="FOLDER", help="a folder through which `tenfold upgrade` exchanges what is served")
    parser.add_argument("--handed", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser


def _port(text: str) -> int:
    port = _whole(text)
    if port > MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is no port: give 0 to {MOST_PORT}")
    return port


def _count(text: str) -> int:
    count = _whole(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: give 1 or more")
    return count


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 0 on")
    return value


if __name__ == "__main__":
    main()
