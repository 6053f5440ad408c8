"""What Prometheus reads: requests, rows, latency, batches, queue, and how scores have drifted."""

import math
from collections.abc import Mapping, Sequence
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
        self._sum = 0.0

    def add(self, probabilities: npt.NDArray[np.float32]) -> None:
        bins = np.searchsorted(self._uppers, probabilities.ravel())
        self.counts += np.bincount(np.minimum(bins, len(self.counts) - 1), minlength=len(self.counts))
        self._sum += float(probabilities.sum(dtype=np.float64))

    def mean(self) -> float:
        """The mean probability, NaN without rows."""
        rows = int(self.counts.sum())
        return self._sum / rows if rows else math.nan

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


class Drift:
    """`ScoreDrift` of every probability of a model, by its name; the main label's comes first."""

    def __init__(self, references: Mapping[str, Sequence[ScoreBin]]) -> None:
        self.outputs = {name: ScoreDrift(reference) for name, reference in references.items()}

    def add(self, found: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Counts the answered probabilities of a request, (R, 1) each; other outputs are passed over."""
        for name, drift in self.outputs.items():
            if name in found:
                drift.add(found[name])

    @property
    def main(self) -> ScoreDrift:
        return next(iter(self.outputs.values()))


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

        self._by_output: tuple[Any, ...] = ()

    def _make(self, kind: Any, name: str, text: str, labels: Sequence[str] = (), **options: Any) -> Any:
        return kind(name, text, labels, registry=self._registry, **options)

    def render(self, version: str, drift: Drift, counts: ValueCounts) -> bytes:
        """The exposition text; only the present version is shown."""
        for gauge in (self._model, self._scores, self._drift, self._values, self._expected):
            gauge.clear()
        self._model.labels(version).set(1)
        for upper, count in drift.main.bins():
            self._scores.labels(version, f"{upper:.6g}").set(count)
        self._drift.labels(version).set(drift.main.stability_index())
        self._render_outputs(version, drift)
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

    def _render_outputs(self, version: str, drift: Drift) -> None:
        """Each probability of a model of several labels, in gauges that models of one do not show."""
        for gauge in self._by_output:
            gauge.clear()
        if len(drift.outputs) == 1:
            return
        if not self._by_output:
            gauge_kind, labels = self._client.Gauge, ["version", "output"]
            self._by_output = (
                self._make(gauge_kind, "dmoe_output_mean", "Mean probability", labels),
                self._make(gauge_kind, "dmoe_output_scores", "Scores by output and bin", [*labels, "upper"]),
                self._make(
                    gauge_kind,
                    "dmoe_output_stability_index",
                    "Drift of an output's scores from those of training rows",
                    labels,
                ),
            )
        mean, scores, index = self._by_output
        for name, one in drift.outputs.items():
            mean.labels(version, name).set(one.mean())
            index.labels(version, name).set(one.stability_index())
            for upper, count in one.bins():
                scores.labels(version, name, f"{upper:.6g}").set(count)
