"""What keeps a model up to date on a cluster: `tenfold update` by the clock, and the Dask scheduler and workers that training runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tenfold.ship.image import UID
from tenfold.ship.kubernetes import Object

PRIORITY = -100
"""Below what serves, which has none of its own: 0."""
SCHEDULER_PORT = 8786
RUN, NEW, OLD = "/data/run", "/data/new", "/data/old"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How it is to be kept up to date."""

    name: str
    namespace: str
    image: str
    """That holds Tenfold with PyTorch and Dask, and the task."""
    claim: str
    """A PersistentVolumeClaim with the folders run, new and old."""
    schedule: str
    """Of cron."""
    workers: int
    cpu: int
    """Of a worker, and of the update."""
    memory: str


def objects(training: Training) -> dict[str, Object]:
    """By file name."""
    def meta(suffix: str) -> Object:
        return {"name": f"{training.name}{suffix}", "namespace": training.namespace, "labels": _labels(training, suffix)}

    scheduler = {"matchLabels": _labels(training, "-dask-scheduler")}
    mine = {"matchLabels": {"app.kubernetes.io/name": training.name, "app.kubernetes.io/part-of": "training"}}
    ports = [{"name": "scheduler", "port": SCHEDULER_PORT, "targetPort": SCHEDULER_PORT, "protocol": "TCP"}]
    among = [{"podSelector": mine}]
    return {
        "00-priorityclass.yaml": {
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": _class_of(training)}, "value": PRIORITY, "preemptionPolicy": "Never",
            "globalDefault": False, "description": "Training waits where serving needs the room.",
        },
        "10-serviceaccount.yaml": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("-training"), "automountServiceAccountToken": False},
        "20-networkpolicy.yaml": {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("-training"), "spec": {
            "podSelector": mine, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": among}],
            "egress": [{"to": among}, {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}],
        }},
        "30-dask-scheduler.yaml": _deployment(training, "-dask-scheduler", ["dask", "scheduler", f"--port={SCHEDULER_PORT}", "--no-dashboard"], 1, cpu=1, memory="1Gi"),
        "31-dask-service.yaml": {"apiVersion": "v1", "kind": "Service", "metadata": meta("-dask-scheduler"), "spec": {"type": "ClusterIP", "selector": scheduler["matchLabels"], "ports": ports}},
        "32-dask-workers.yaml": _deployment(
            training, "-dask-worker", ["dask", "worker", address_of(training), "--nthreads=1", f"--memory-limit={_bytes(training.memory)}", "--no-dashboard"], training.workers, cpu=training.cpu, memory=training.memory,
        ),
        "40-cronjob.yaml": {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": meta("-update"), "spec": {
            "schedule": training.schedule, "concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 3600, "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 3,
            "jobTemplate": {"spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 7 * 86_400, "template": {
                "metadata": {"labels": _labels(training, "-update")},
                "spec": _pod(training, ["tenfold", "update", RUN, "--data", NEW, "--old-data", OLD, "--json"], cpu=training.cpu, memory=training.memory, restart="Never"),
            }}},
        }},
    }  # fmt: skip


def address_of(training: Training) -> str:
    """Of the scheduler, which Dask's clients find by DASK_SCHEDULER_ADDRESS."""
    return f"tcp://{training.name}-dask-scheduler.{training.namespace}.svc:{SCHEDULER_PORT}"


def _labels(training: Training, suffix: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": training.name, "app.kubernetes.io/part-of": "training", "app.kubernetes.io/component": suffix.lstrip("-")}


def _deployment(training: Training, suffix: str, command: list[str], replicas: int, *, cpu: int, memory: str) -> Object:
    labels = _labels(training, suffix)
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": f"{training.name}{suffix}", "namespace": training.namespace, "labels": labels}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"},
        "template": {"metadata": {"labels": labels}, "spec": _pod(training, command, cpu=cpu, memory=memory, restart="Always")},
    }}  # fmt: skip


def _pod(training: Training, command: list[str], *, cpu: int, memory: str, restart: str) -> Object:
    amounts: dict[str, Any] = {"cpu": str(cpu), "memory": memory}
    container = {
        "name": "work", "image": training.image, "imagePullPolicy": "IfNotPresent", "command": command,
        "env": [{"name": k, "value": v} for k, v in {
            "HOME": "/scratch", "TMPDIR": "/scratch", "XDG_CACHE_HOME": "/scratch/cache", "DASK_TEMPORARY_DIRECTORY": "/scratch", "DASK_SCHEDULER_ADDRESS": address_of(training),
        }.items()],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "scratch", "mountPath": "/scratch"}],
    }  # fmt: skip
    return {
        "serviceAccountName": f"{training.name}-training", "automountServiceAccountToken": False, "enableServiceLinks": False, "restartPolicy": restart,
        "priorityClassName": _class_of(training),
        "securityContext": {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": training.claim}}, {"name": "scratch", "emptyDir": {"sizeLimit": "20Gi"}}],
    }  # fmt: skip


def _class_of(training: Training) -> str:
    """Of priority; they are of the whole cluster."""
    return f"{training.namespace}-{training.name}-training"


def _bytes(amount: str) -> str:
    """A Kubernetes amount of memory as Dask writes it."""
    return amount.replace("i", "iB") if amount.endswith("i") else f"{amount}B"
