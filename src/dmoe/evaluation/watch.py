"""Cross-expert correlation while a model trains."""

from pathlib import Path
from typing import Any

from dmoe.decorrelation import CrossExpertCorrelation
from dmoe.evaluation.evaluate import scored_batches
from dmoe.nn.model import DMoE
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.reader import read_once


class CorrelationWatch:
    """CEC of the expert outputs over the validation split, to be noted at every evaluation of a training run."""

    def __init__(self, data: Path) -> None:
        self.reader = read_once(data, "valid", batch_size=SCORING_ROWS)

    def __call__(self, model: DMoE) -> dict[str, Any]:
        """`cec` and `dead_columns` as further keys of the evaluation's line; nothing for a single expert."""
        if model.num_experts < 2:
            return {}
        metric = CrossExpertCorrelation(model.num_experts)
        device = next(model.parameters()).device
        for _, output in scored_batches(model, self.reader.batches(), device):
            metric.update(output.expert_outputs)
        found = metric.compute()
        return {"cec": found.total, "dead_columns": list(found.dead_columns)}
