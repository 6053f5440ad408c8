"""Cross-expert correlation (eq. 14) of a split: at each location, at each level, and in each domain by itself."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dmoe.decorrelation import CrossExpertCorrelation
from dmoe.errors import DmoeError
from dmoe.nn.output import DMoEOutput, Location


class Correlations:
    """CEC at several locations; one with several layers (intermediate) is measured layer by layer."""

    def __init__(self, locations: Sequence[Location], num_experts: int) -> None:
        self.locations = locations
        self.num_experts = num_experts
        self.streams: dict[str, CrossExpertCorrelation] = {}

    def update(self, output: DMoEOutput) -> None:
        for location in self.locations:
            groups = output.layers(location)
            for layer, group in enumerate(groups):
                # A group without all experts has no place in the M × M matrix of the report.
                if len(group) != self.num_experts:
                    continue
                name = location if len(groups) == 1 else f"{location} {layer + 1}"
                try:
                    self.streams.setdefault(name, CrossExpertCorrelation(self.num_experts)).update(group)
                except ValueError as error:
                    raise DmoeError(f"correlation at {name}: {error}; the model has diverged") from None

    def result(self) -> dict[str, Any]:
        return {name: correlation_json(stream) for name, stream in self.streams.items()}


def correlation_json(stream: CrossExpertCorrelation) -> dict[str, Any]:
    """What a report shows of one streamed correlation; entries on and above the diagonal are null."""
    found = stream.compute()
    # Experts without a live column have no correlation; a sum of 0 would pass for perfect de-correlation.
    pairs = [value for row in found.matrix for value in row if value is not None]
    return {
        "matrix": [list(row) for row in found.matrix],
        "rms": [list(row) for row in found.rms],
        "total": found.total if pairs else None,
        "noise_floor": found.noise_floor,
        "total_noise_floor": found.noise_floor * len(pairs),
        "rows": found.rows,
        "columns": list(found.columns),
        "dead_columns": list(found.dead_columns),
    }


class CorrelationsApart:
    """CEC of the outputs of each level, of a model with levels, and of the last level's within each domain.

    Args:
        domains: names of the domains, in the order of their numbers; none where they are not told apart.
    """

    def __init__(self, num_levels: int, domains: Sequence[str] = ()) -> None:
        self.domains = list(domains)
        self.levels: list[CrossExpertCorrelation | None] = [None] * (num_levels if num_levels > 1 else 0)
        self.streams: dict[int, CrossExpertCorrelation] = {}

    def update(self, output: DMoEOutput) -> None:
        """Adds one batch. Outputs that are no numbers were told of by `Correlations`."""
        for level in range(len(self.levels)):
            self.levels[level] = _added(self.levels[level], output.levels[level])
        if output.domain is not None:
            for number in range(len(self.domains)):
                own = (output.domain == number).nonzero().squeeze(1)
                if len(own):
                    rows = [one.index_select(0, own) for one in output.expert_outputs]
                    found = _added(self.streams.get(number), rows)
                    if found is not None:
                        self.streams[number] = found

    def result(self) -> dict[str, Any]:
        """`correlation_by_level`, None for a level of one expert, and `correlation_by_domain`, None for a domain of
        fewer than two rows; neither key where there is nothing to tell apart."""
        found: dict[str, Any] = {}
        if self.levels:
            found["correlation_by_level"] = [one and correlation_json(one) for one in self.levels]
        if self.domains:
            found["correlation_by_domain"] = {
                name: _of_two_rows(self.streams.get(number)) for number, name in enumerate(self.domains)
            }
        return found


def _added(stream: CrossExpertCorrelation | None, outputs: Sequence[Tensor]) -> CrossExpertCorrelation | None:
    if len(outputs) < 2:
        return None
    stream = stream or CrossExpertCorrelation(len(outputs))
    stream.update(outputs)
    return stream


def _of_two_rows(stream: CrossExpertCorrelation | None) -> dict[str, Any] | None:
    return None if stream is None or stream.rows < 2 else correlation_json(stream)
