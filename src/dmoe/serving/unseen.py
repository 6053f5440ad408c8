"""What the server says of values that training never saw: per request, in the log and in metrics. Names of fields and
figures only, never a value.

R rows of a request, C id columns.
"""

from itertools import accumulate
from time import monotonic
from typing import Any
from urllib.parse import quote

import numpy.typing as npt

from dmoe.export.fields import Features
from dmoe.export.onnx_model import OnnxModel
from dmoe.tokens.unseen import LEAST_VALUES, Finding, ValueCounts

# A field is not named in the log again before.
QUIET_S = 60.0
# The rows looked at for the log are those of the last minute, or as many more as make these.
RECENT_ROWS = 1000
_LOOK_EVERY_S = 1.0
_HEADER_FIELDS = 20
# Clients and proxies refuse longer heads.
_HEADER_BYTES = 2000


class UnseenWatch:
    """The rows of one served version; used on one event loop."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.counts = ValueCounts(model.schema)
        self._recent = ValueCounts(model.schema)
        self._since = self._looked = monotonic()
        self._named: dict[tuple[str, str], float] = {}

    def add(self, features: Features, values_RC: npt.NDArray[Any] | None) -> dict[str, str]:
        """Counts the scored rows of a request; the response headers that name its fields far above training.

        Args:
            values_RC: the output `VALUES` of the graph, None for a model without categorical fields.
        """
        tallied = self._model.tallied(self.counts, features, values_RC)
        self.counts.add(tallied)
        self._recent.add(tallied)
        if tallied[0] < LEAST_VALUES and int(tallied[2].max()) < LEAST_VALUES:
            return {}
        found = self.counts.findings_of(tallied)
        return {
            f"x-dmoe-{kind}": _header(named)
            for kind in ("unseen", "missing")
            if (named := [finding for finding in found if finding.kind == kind])
        }

    def due(self) -> list[Finding]:
        """The fields to name in the log now: far above training in recent rows, and not named within a minute."""
        now = monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return []
        self._looked = now
        found = [
            finding
            for finding in self._recent.findings()
            if now - self._named.get((finding.field, finding.kind), -QUIET_S) >= QUIET_S
        ]
        self._named |= {(finding.field, finding.kind): now for finding in found}
        if now - self._since >= QUIET_S and self._recent.rows >= RECENT_ROWS:
            self._recent.clear()
            self._since = now
        return found


def _header(findings: list[Finding]) -> str:
    """`field;share` of the fields with the largest shares, names percent-encoded."""
    worst = sorted(findings, key=lambda finding: -finding.share)[:_HEADER_FIELDS]
    named = [f"{quote(finding.field, safe='')};{finding.share:.2f}" for finding in worst]
    ends = accumulate(len(one) + len(", ") for one in named)
    return ", ".join(one for one, end in zip(named, ends, strict=True) if end <= _HEADER_BYTES)
