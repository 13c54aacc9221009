"""Kubernetes' own control plane on loopback, and a way in to its services, for tests."""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.containers.api import Api

START_SECONDS = 120.0


@dataclass(frozen=True)
class Cluster:
    api: Api
    configuration: Path
    """Of kubectl."""

    def kubectl(self, *words: str, given: str | None = None, code: int = 0) -> str:
        done = subprocess.run(["kubectl", *words], input=given, capture_output=True, text=True, check=False, env=self.environment())
        assert done.returncode == code, f"{words}: {done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        return os.environ | {"KUBECONFIG": str(self.configuration)}


@contextmanager
def control_plane(programs: Path, folder: Path) -> Iterator[Cluster]:
    """etcd, API server, controller manager and scheduler, with a new and empty state."""
    client, peer, port, token = _free(), _free(), _free(), secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"], check=True, capture_output=True)
    configuration = folder / "kubectl.conf"
    configuration.write_text(f"""\
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "https://127.0.0.1:{port}", insecure-skip-tls-verify: true}}}}]
users: [{{name: admin, user: {{token: {token}}}}}]
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
current-context: test
""")
    api, key = Api(port, token), folder / "accounts.key"
    commands = {
        "etcd": [
            "etcd", f"--data-dir={folder / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}", f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ],
        "kube-apiserver": [
            str(programs / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1", f"--secure-port={port}", "--insecure-port=0", f"--cert-dir={folder}",
            "--service-account-issuer=test", f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}", f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
        ],
        "kube-controller-manager": [
            str(programs / "kube-controller-manager"), f"--kubeconfig={configuration}", f"--service-account-private-key-file={key}", "--use-service-account-credentials=false", "--secure-port=0", "--port=0",
            "--controllers=*,-nodeipam,-route,-cloud-node-lifecycle",
        ],
        "kube-scheduler": [str(programs / "kube-scheduler"), f"--kubeconfig={configuration}", "--secure-port=0", "--port=0"],
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, words in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                running.append(subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT))
            if name == "kube-apiserver":
                _wait(api, folder / f"{name}.log")
        yield Cluster(api, configuration)
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _wait(api: Api, log: Path) -> None:
    ends = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError, urllib.error.URLError):
            if api("GET", "/api/v1/namespaces/default"):
                return
        assert time.monotonic() < ends, log.read_text()[-3000:]
        time.sleep(0.3)


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Way(threading.Thread):
    """A way in to a service, as a node has it: each connection goes to one of the addresses that the service has then, whatever comes of it."""

    def __init__(self, api: Api, name: str) -> None:
        super().__init__(daemon=True)
        self.api, self.name = api, name
        self.ending = threading.Event()
        self.addresses: list[tuple[str, int]] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while not self.ending.is_set():
            with suppress(OSError, urllib.error.URLError):
                found = self.api("GET", f"/api/v1/namespaces/tenfold/endpoints/{self.name}") or {}
                parts = found.get("subsets") or []
                self.addresses = [(a["ip"], p["port"]) for part in parts for a in part.get("addresses", ()) for p in part["ports"]]
            time.sleep(0.1)

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        try:
            there = socket.create_connection(random.choice(self.addresses), timeout=10)
        except (OSError, IndexError):
            client.close()
            return
        threading.Thread(target=_pass, args=(there, client), daemon=True).start()
        _pass(client, there)

    def end(self) -> None:
        self.ending.set()
        self._listening.close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
