"""What Prometheus reads: requests, rows, latency, batches, queue, and how scores have drifted."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dmoe.export.extra import require
from dmoe.export.manifest import ScoreBin
from dmoe.tokens.unseen import ValueCounts

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ScoreDrift:
    """Scores counted in the bins of the training scores; see `stability_index`."""

    def __init__(self, reference: Sequence[ScoreBin]) -> None:
        self._uppers = np.array([one.upper for one in reference])
        self._expected = np.array([one.share for one in reference])
        self.counts = np.zeros(len(reference), np.int64)

    def add(self, probabilities: npt.NDArray[np.float32]) -> None:
        bins = np.searchsorted(self._uppers, probabilities.ravel())
        self.counts += np.bincount(np.minimum(bins, len(self.counts) - 1), minlength=len(self.counts))

    def bins(self) -> list[tuple[float, int]]:
        """Upper bound and count of each bin."""
        return list(zip(self._uppers.tolist(), self.counts.tolist(), strict=True))

    def stability_index(self) -> float:
        """Σ (a - e) ln(a / e) over bins, a and e the served and training shares; 0 is no drift, NaN without rows.

        Half a row is added to every bin, so that an empty one does not make it infinite.
        """
        if not self.counts.any():
            return math.nan
        smoothed = self.counts + 0.5
        actual = smoothed / smoothed.sum()
        expected = np.maximum(self._expected, 1e-6)
        return float(((actual - expected) * np.log(actual / expected)).sum())


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        client = require("prometheus_client", "serve")
        self._client = client
        self._registry = client.CollectorRegistry()
        self.requests = self._make(client.Counter, "dmoe_requests", "Answered requests", ["route", "code"])
        self.rows = self._make(client.Counter, "dmoe_rows", "Rows scored")
        self.seconds = self._make(
            client.Histogram, "dmoe_request_seconds", "From a whole request to its answer", buckets=_SECONDS
        )
        self.batch_rows = self._make(client.Histogram, "dmoe_batch_rows", "Rows of a call of the graph", buckets=_ROWS)
        self.queue_rows = self._make(client.Gauge, "dmoe_queue_rows", "Rows waiting or being scored")
        self.inflight_bytes = self._make(client.Gauge, "dmoe_inflight_bytes", "Request bodies in memory")
        self.swaps = self._make(client.Counter, "dmoe_model_swaps", "Models exchanged since the start", ["result"])
        self._model = self._make(client.Gauge, "dmoe_model_info", "1 for the version that is served", ["version"])
        self._scores = self._make(client.Gauge, "dmoe_scores", "Scores of this version by bin", ["version", "upper"])
        self._values = self._make(
            client.Gauge,
            "dmoe_field_values",
            "Values of served rows by field: seen in training, unseen, and rows without a value (missing)",
            ["version", "field", "kind"],
        )
        self._expected = self._make(
            client.Gauge,
            "dmoe_field_expected_share",
            "Share of unseen values, and of rows without a value (missing), that training's own rows had",
            ["version", "field", "kind"],
        )
        self._drift = self._make(
            client.Gauge, "dmoe_score_stability_index", "Drift of scores from those of training rows", ["version"]
        )

    def _make(self, kind: Any, name: str, text: str, labels: Sequence[str] = (), **options: Any) -> Any:
        return kind(name, text, labels, registry=self._registry, **options)

    def render(self, version: str, drift: ScoreDrift, counts: ValueCounts) -> bytes:
        """The exposition text; only the present version is shown."""
        for gauge in (self._model, self._scores, self._drift, self._values, self._expected):
            gauge.clear()
        self._model.labels(version).set(1)
        for upper, count in drift.bins():
            self._scores.labels(version, f"{upper:.6g}").set(count)
        self._drift.labels(version).set(drift.stability_index())
        for one in counts.values():
            kinds = {"missing": one["missing"]}
            if "unseen" in one:
                kinds |= {"seen": one["values"] - one["unseen"], "unseen": one["unseen"]}
            for kind, count in kinds.items():
                self._values.labels(version, one["field"], kind).set(count)
            for kind in ("unseen", "missing"):
                if one.get(f"expected_{kind}") is not None:
                    self._expected.labels(version, one["field"], kind).set(one[f"expected_{kind}"])
        text: bytes = self._client.generate_latest(self._registry)
        return text
