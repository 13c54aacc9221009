"""What a bundle needs on a cluster, as Kubernetes objects: data, of which the plain files and the Helm chart are both written.

Kubernetes 1.29 and later; Pod Security "restricted".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenfold.errors import TenfoldError
from tenfold.serve.settings import Settings
from tenfold.ship.image import ARCHITECTURES, BUNDLE, METRICS_PORT, PORT, UID
from tenfold.ship.yaml import Computed, Each, Value, When

ROOM = 1.25
"""Times what was measured, that is requested and may be taken: what of memory is not there when it is wanted ends the process."""
SERVER_SECONDS = 0.4e-3
"""CPU of the server for a request, beside the model's."""
LEAST_CPU = 0.1
DRAIN, GRACE = 10, 45
"""Seconds that a pod that is to end still serves, until every node knows; and after which it is killed."""
SERVICE_PORT, TLS_PORT = 80, 443
OLDEST = "1.29"
STABLE, CANARY, TRACK, CONTAINER = "stable", "canary", "tenfold.dev/track", "serve"
TEXT, NAME = {"type": "string"}, {"type": "string", "minLength": 1}
WHOLE = {"type": "integer", "minimum": 1}
FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX512F", "avx512_vnni": "AVX512VNNI", "avx_vnni": "AVXVNNI", "avx512_bf16": "AVX512BF16", "amx_int8": "AMXINT8", "amx_bf16": "AMXBF16",
    "asimd": "ASIMD", "asimddp": "ASIMDDP", "sve": "SVE",
}  # fmt: skip
"""As node-feature-discovery labels them: feature.node.kubernetes.io/cpu-cpuid.X."""

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What is to run."""

    name: str
    namespace: str
    repository: str
    digest: str
    """Of the image, sha256:…"""
    cpu_class: str
    """That the bundle was certified on."""
    threads: int
    """Of its session."""
    dearest_seconds: float
    """CPU of the dearest prediction."""
    peak_bytes: int
    """Resident memory of its server at the most, measured."""
    rate: float
    """Requests a second that a pod is planned for."""


def dearest_seconds(costs: Mapping[str, Any]) -> float:
    """CPU of the dearest prediction, of a manifest's costs: the mean of single ones, or of what is nearest to that, times the dearest's ratio to it."""
    if not costs.get("points"):
        raise TenfoldError("the bundle does not say what it costs, which its pods' CPU is reckoned by: certify it with this Tenfold")
    point = min(costs["points"], key=lambda p: (p["batch"], p["threads"]))
    return float(point["cpu_mean"] * costs["worst_case_ratio_to_mean"] / 1e6)


def resources(shipped: Shipped) -> tuple[Object, Object]:
    """Requests and limits: of the memory that was measured; of the CPU that `rate` takes where every prediction is the dearest."""
    cpu = round(min(max(LEAST_CPU, shipped.rate * (shipped.dearest_seconds + SERVER_SECONDS)), shipped.threads + 1), 6)
    memory = f"{16 * math.ceil(ROOM * shipped.peak_bytes / (16 << 20))}Mi"
    return {"cpu": f"{math.ceil(1e3 * cpu)}m", "memory": memory}, {"cpu": str(shipped.threads + 1), "memory": memory}


def values(shipped: Shipped) -> dict[str, Value]:
    """By path, what an installation may change."""
    requests, limits = resources(shipped)
    amount = {"type": ["string", "number"]}
    amounts = {"type": "object", "required": ["cpu", "memory"], "additionalProperties": False, "properties": {"cpu": amount, "memory": amount}}
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    each = [
        Value("image.repository", shipped.repository, NAME, "where the image is pulled from, without a tag"),
        Value("image.digest", shipped.digest, {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}, "of the image"),
        Value("image.pullPolicy", "IfNotPresent", {"enum": ["Always", "IfNotPresent", "Never"]}, "when it is pulled; by digest, so that none can be another"),
        Value("image.pullSecrets", [], {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": NAME}}}, "Secrets of the registry, [{name: …}]"),
        Value("replicas", 2, WHOLE, "pods, where nothing scales them"),
        Value("resources.requests", requests, amounts, "measured: memory of the server under load, CPU at the planned rate where every prediction is the dearest"),
        Value("resources.limits", limits, amounts, "what a pod may take"),
        Value("autoscaling.enabled", True, {"type": "boolean"}, "whether the number of pods follows their CPU"),
        Value("autoscaling.minReplicas", 2, WHOLE, "pods at the least"),
        Value("autoscaling.maxReplicas", 10, WHOLE, "pods at the most"),
        Value("autoscaling.cpuPercent", 70, {"type": "integer", "minimum": 1, "maximum": 100}, "of the requested CPU, that is aimed at"),
        Value("token.secretName", f"{shipped.name}-token", NAME, "a Secret whose key `token` has a token a line"),
        Value("tls.secretName", "", TEXT, "a Secret of type kubernetes.io/tls; empty: TLS ends before the pods"),
        Value("ingress.namespaceSelector", {}, labels, "labels of namespaces that may send requests beside its own; {}: none"),
        Value("metrics.namespaceSelector", {"kubernetes.io/metadata.name": "monitoring"}, labels, "labels of the namespaces that may read metrics", required=False),
        Value("metrics.cidrs", [], {"type": "array", "items": NAME}, "addresses that may read metrics as well: those of the API server, for tenfold upgrade"),
        Value("nodeSelector", node_features(shipped.cpu_class), labels, "labels of nodes; node-feature-discovery gives those of CPU features; null: any", required=False),
    ]  # fmt: skip
    return {v.path: v for v in each}


def node_features(cpu_class: str) -> dict[str, str]:
    """Labels of nodes that have what a bundle was certified on."""
    machine, *features = cpu_class.split("+")
    arch = {"kubernetes.io/arch": ARCHITECTURES[machine].name, "kubernetes.io/os": "linux"}
    return arch | {f"feature.node.kubernetes.io/cpu-cpuid.{FEATURES[f]}": "true" for f in features if f in FEATURES}


def labels_of(name: str) -> dict[str, str]:
    """By which a bundle's pods are found, those of every track."""
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "serve"}


def objects(shipped: Shipped, *, in_chart: bool) -> dict[str, Any]:
    """All of them by file name, in the order in which they are applied.

    Args:
        in_chart: without the namespace, which whoever installs a chart names.
    """
    v, name = values(shipped), shipped.name
    chosen = labels_of(name)
    labels = chosen | {"app.kubernetes.io/managed-by": Computed("tenfold", "{{ .Release.Service | quote }}")}

    def meta() -> Object:
        return {"name": name, "namespace": Computed(shipped.namespace, "{{ .Release.Namespace | quote }}"), "labels": labels}

    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": shipped.namespace, "labels": {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
    }}}  # fmt: skip
    return ({} if in_chart else {"00-namespace.yaml": namespace}) | {
        "10-serviceaccount.yaml": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(), "automountServiceAccountToken": False},
        "20-networkpolicy.yaml": {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(), "spec": {
            "podSelector": {"matchLabels": chosen}, "policyTypes": ["Ingress", "Egress"], "egress": [],
            "ingress": [
                {"ports": [{"port": "http", "protocol": "TCP"}], "from": [
                    {"podSelector": {}}, When(v["ingress.namespaceSelector"], {"namespaceSelector": {"matchLabels": v["ingress.namespaceSelector"]}}),
                ]},
                {"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [
                    {"podSelector": {"matchLabels": chosen}}, When(v["metrics.namespaceSelector"], {"namespaceSelector": {"matchLabels": v["metrics.namespaceSelector"]}}),
                    Each(v["metrics.cidrs"], {"ipBlock": {"cidr": "{{ . }}"}}),
                ]},
            ],
        }},
        "30-deployment.yaml": deployment(shipped, v, meta()),
        "40-service.yaml": {"apiVersion": "v1", "kind": "Service", "metadata": meta(), "spec": {
            "type": "ClusterIP", "selector": chosen,
            "ports": [{"name": "http", "port": Computed(SERVICE_PORT, f"{{{{ ternary {SERVICE_PORT} {TLS_PORT} (empty .Values.tls.secretName) }}}}"), "targetPort": "http", "protocol": "TCP"}],
        }},
        "50-poddisruptionbudget.yaml": {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta(), "spec": {
            "maxUnavailable": 1, "selector": {"matchLabels": chosen},
        }},
        "60-horizontalpodautoscaler.yaml": When(v["autoscaling.enabled"], {
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta(), "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": v["autoscaling.minReplicas"], "maxReplicas": v["autoscaling.maxReplicas"],
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": v["autoscaling.cpuPercent"]}}}],
            },
        }),
    }  # fmt: skip


def deployment(shipped: Shipped, v: Mapping[str, Value], meta: Object, track: str = STABLE) -> Object:
    """Pods that serve: of a track, as a canary has a deployment of its own behind the same service."""
    chosen = labels_of(shipped.name) | {TRACK: track}
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
        "replicas": When(v["autoscaling.enabled"], v["replicas"], otherwise=True),
        "revisionHistoryLimit": 5, "minReadySeconds": 5, "progressDeadlineSeconds": 300,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": chosen},
        "template": {"metadata": {"labels": chosen, "annotations": annotations}, "spec": pod(shipped, v)},
    }}  # fmt: skip


def pod(shipped: Shipped, v: Mapping[str, Value]) -> Object:
    """A pod that serves."""
    secret = v["tls.secretName"]

    def probe(path: str, **more: int) -> Object:
        return {"httpGet": {"path": path, "port": "http", "scheme": When(secret, "HTTPS")}, **more}

    image = Computed(f"{shipped.repository}@{shipped.digest}", '{{ printf "%s@%s" .Values.image.repository .Values.image.digest | quote }}')
    rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "capabilities": {"drop": ["ALL"]}}
    grace = GRACE - DRAIN - 2
    container = {
        "name": CONTAINER, "image": image, "imagePullPolicy": v["image.pullPolicy"],
        "args": [
            "--host=0.0.0.0", f"--port={PORT}", f"--metrics-port={METRICS_PORT}", "--token-file=/run/tenfold/token", f"--drain={DRAIN}",
            f"--timeout={min(grace, int(Settings().answer_seconds))}", When(secret, "--tls-cert=/run/tls/tls.crt"), When(secret, "--tls-key=/run/tls/tls.key"), f"/{BUNDLE}",
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}, {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "resources": {"requests": v["resources.requests"], "limits": v["resources.limits"]},
        "securityContext": rights,
        "startupProbe": probe("/v2/health/ready", periodSeconds=1, timeoutSeconds=2, failureThreshold=60),
        "readinessProbe": probe("/v2/health/ready", periodSeconds=5, timeoutSeconds=2, failureThreshold=2),
        "livenessProbe": probe("/v2/health/live", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "volumeMounts": [
            {"name": "token", "mountPath": "/run/tenfold", "readOnly": True}, When(secret, {"name": "tls", "mountPath": "/run/tls", "readOnly": True}),
        ],
    }  # fmt: skip
    return {
        "serviceAccountName": shipped.name, "automountServiceAccountToken": False, "enableServiceLinks": False, "terminationGracePeriodSeconds": GRACE,
        "securityContext": {"runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": When(v["nodeSelector"], v["nodeSelector"]), "imagePullSecrets": v["image.pullSecrets"],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": labels_of(shipped.name)}}
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "containers": [container],
        "volumes": [
            {"name": "token", "secret": {"secretName": v["token.secretName"], "defaultMode": 0o440, "optional": False}},
            When(secret, {"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o440, "optional": False}}),
        ],
    }  # fmt: skip
