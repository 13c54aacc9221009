"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tenfold.data.split import Array
from tenfold.serve.drift import Drift
from tenfold.serve.model import Model

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NAMES = ("model", "version")


class Metrics:
    """Counters of one server. A model's are found by its name and version."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotations there
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("tenfold_requests", "Requests of a model that were answered, by HTTP status.", (*NAMES, "code"), registry=self.registry)
        self.others = Counter("tenfold_other_requests", "Requests that came to no model, by HTTP status.", ("code",), registry=self.registry)
        self.seconds = Histogram("tenfold_request_seconds", "From a request's arrival to its answer.", NAMES, buckets=SECONDS, registry=self.registry)
        self.examples = Histogram("tenfold_call_examples", "Examples of a call of the model.", NAMES, buckets=EXAMPLES, registry=self.registry)
        self.predictions = Counter("tenfold_predictions", "Examples that were answered, by class.", (*NAMES, "class"), registry=self.registry)
        self.handed_on = Counter("tenfold_handed_on", "Examples that the first part of a cascade was not sure of.", NAMES, registry=self.registry)
        self.waiting = Gauge("tenfold_waiting_requests", "Requests that wait to be computed.", NAMES, registry=self.registry)
        self.ready = Gauge("tenfold_ready", "1 where requests are taken.", registry=self.registry)
        self._drifts: dict[tuple[str, str], Drift] = {}
        self.registry.register(_Drifts(self._drifts))

    def of(self, model: Model) -> ModelMetrics:
        drift = self._drifts[model.name, model.version] = Drift(model.bundle.manifest.get("statistics") or {}, classes=len(model.class_names) if model.classifies else None)
        return ModelMetrics(self, model, drift)

    def keep(self, names: set[tuple[str, str]]) -> None:
        """Forget the drift of models that are not among these any more; what was counted stays."""
        for gone in self._drifts.keys() - names:
            del self._drifts[gone]


class ModelMetrics:
    """Those of one model, found once."""

    def __init__(self, metrics: Metrics, model: Model, drift: Drift) -> None:
        self._names = (model.name, model.version)
        self._metrics = metrics
        self._codes: dict[int, Any] = {}
        self.seconds = metrics.seconds.labels(*self._names)
        self.examples = metrics.examples.labels(*self._names)
        self.waiting = metrics.waiting.labels(*self._names)
        self.threshold = model.bundle.threshold
        self.handed_on = metrics.handed_on.labels(*self._names) if self.threshold is not None else None
        self.classes = [metrics.predictions.labels(*self._names, label) for label in model.class_names] if model.classifies else []
        self.drift = drift

    def answered(self, code: int, seconds: float) -> None:
        if code not in self._codes:
            self._codes[code] = self._metrics.requests.labels(*self._names, str(code))
        self._codes[code].inc()
        self.seconds.observe(seconds)

    def predicted(self, inputs: Sequence[Array], answers: Sequence[Array]) -> None:
        """Count what was answered.

        Args:
            answers: the output, and of a cascade how sure its first part was.
        """
        classes = answers[0].argmax(axis=1) if self.classes else None
        if classes is not None and len(classes) == 1:
            self.classes[int(classes[0])].inc()
        elif classes is not None:
            for i, n in enumerate(np.bincount(classes).tolist()):
                if n:
                    self.classes[i].inc(n)
        if self.handed_on is not None and len(answers) > 1:
            self.handed_on.inc(int((answers[1] < self.threshold).sum()))
        self.drift.see(inputs, classes)


class _Drifts(Collector):
    """Reckoned when it is asked for."""

    def __init__(self, drifts: Mapping[tuple[str, str], Drift]) -> None:
        self._drifts = drifts

    def collect(self) -> Iterator[Metric]:
        inputs = GaugeMetricFamily("tenfold_input_drift", "Population stability index of what comes in against the training data.", labels=(*NAMES, "input", "feature"))
        answers = GaugeMetricFamily("tenfold_prediction_drift", "Population stability index of predicted classes against those on valid.", labels=NAMES)
        for names, drift in [*self._drifts.items()]:
            for name, feature, index in drift.of_inputs():
                inputs.add_metric([*names, name, feature], index)
            if (of_answers := drift.of_answers()) is not None:
                answers.add_metric(names, of_answers)
        yield inputs
        yield answers
