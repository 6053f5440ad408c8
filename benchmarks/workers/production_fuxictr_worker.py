"""FuxiCTR: the production mixture from its layers, in its `BaseModel`, trained by that model's own `train_step`.

It has no GwPFM and no de-correlation loss: those are plain torch, as a user would add them.
Shape suffixes: B rows, F fields, D embedding width, M experts, H expert width.
"""

import logging
from itertools import combinations, cycle
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.workers.plain_gwpfm import PlainGwPFM
from benchmarks.workers.production_form import Job, Rows, chosen_names, field_names, load_rows
from benchmarks.workers.serve import Step, count_parameters, serve

CLIP_NORM = 10.0
LEARNING_RATE = 1e-3
Columns = dict[str, Tensor]


def feature_map(job: Job) -> FeatureMap:
    """What FuxiCTR's preprocessing would have written for these fields."""
    made = FeatureMap("benchmark", ".")
    for index, size in enumerate(job["vocabulary_sizes"]):
        made.features[f"c{index}"] = {"source": "", "type": "categorical", "vocab_size": size}
    for index, one in enumerate(job["lists"]):
        made.features[f"l{index}"] = {
            "source": "",
            "type": "sequence",
            "vocab_size": one["rows"],
            "max_len": one["length"],
            "padding_idx": 0,
            "feature_encoder": "layers.MaskedAveragePooling()",
        }
    for index in range(job["num_numeric"]):
        made.features[f"n{index}"] = {"source": "", "type": "numeric"}
    made.labels = ["label"]
    made.num_fields = len(made.features)
    made.total_features = sum(job["vocabulary_sizes"]) + sum(one["rows"] for one in job["lists"])
    made.set_column_index()
    return made


class IPNN(nn.Module):
    """As in FuxiCTR's PNN: embeddings and inner products into an MLP."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.products = InnerProductInteraction(num_fields, output="inner_product")
        self.mlp = MLP_Block(num_fields * dim + num_fields * (num_fields - 1) // 2, hidden)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        joined = torch.cat([embeddings_BFD.flatten(1), self.products(embeddings_BFD)], dim=1)
        return self.mlp(joined)


class Production(BaseModel):
    """A `FeatureEmbedding` a table and one for the gate; experts, alignment layers, gate and tower."""

    def __init__(self, job: Job) -> None:
        super().__init__(feature_map(job), metrics=["AUC"], verbose=0, model_root=".")
        self._max_gradient_norm = CLIP_NORM
        names, chosen, units = field_names(job), chosen_names(job), job["units"]
        self.kinds, self.tables, self.alpha = job["experts"], job["tables"], job["alpha"]
        self.chosen = [names.index(name) for name in chosen]
        # A table holds what its experts read.
        self.whole = [
            any(kind != "ipnn" for kind, of in zip(self.kinds, self.tables, strict=True) if of == table)
            for table in range(max(self.tables) + 1)
        ]
        self.embeddings = nn.ModuleList(
            FeatureEmbedding(self.feature_map, dim, required_feature_columns=None if whole else chosen)
            for dim, whole in zip(job["widths"], self.whole, strict=True)
        )
        self.experts, self.align = nn.ModuleList(), nn.ModuleList()
        for kind, table in zip(self.kinds, self.tables, strict=True):
            dim = job["widths"][table]
            expert: nn.Module
            if kind == "gwpfm":
                expert, width = PlainGwPFM(len(names), dim, groups=2), dim // 2
            elif kind == "flatdnn":
                expert, width = nn.Sequential(nn.Flatten(), MLP_Block(len(names) * dim, [units] * 4)), units
            else:
                expert, width = IPNN(len(chosen), dim, [units, units // 2]), units // 2
            self.experts.append(expert)
            self.align.append(MLP_Block(width, [units]))
        if len(self.kinds) > 1:
            dim = job["widths"][0]
            self.gate_embedding = FeatureEmbedding(self.feature_map, dim, required_feature_columns=chosen)
            self.gate = MLP_Block(
                len(chosen) * dim, [job["gate_units"]], output_dim=len(self.kinds), output_activation="softmax"
            )
        self.tower = MLP_Block(units, [units], output_dim=1)
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()

    def forward(self, inputs: Columns) -> dict[str, Any]:
        columns = self.get_inputs(inputs)
        tables = [embedding(columns) for embedding in self.embeddings]
        outputs = []
        for kind, table, expert, align in zip(self.kinds, self.tables, self.experts, self.align, strict=True):
            embeddings_BFD = tables[table]
            if kind == "ipnn" and self.whole[table]:
                embeddings_BFD = embeddings_BFD[:, self.chosen]
            outputs.append(align(expert(embeddings_BFD)))
        mixed_BH = outputs[0]
        if len(outputs) > 1:
            gate_BM = self.gate(self.gate_embedding(columns, flatten_emb=True))
            mixed_BH = (torch.stack(outputs, dim=1) * gate_BM.unsqueeze(-1)).sum(dim=1)
        return {"y_pred": self.output_activation(self.tower(mixed_BH)), "outputs": outputs}

    def compute_loss(self, return_dict: dict[str, Any], y_true: Tensor) -> Tensor:
        loss = super().compute_loss(return_dict, y_true)
        return loss + self.alpha / (len(y_true) - 1) * correlation_loss(return_dict["outputs"])


def correlation_loss(outputs: list[Tensor]) -> Tensor:
    """Eq. 8 of arXiv 2505.17925: `Σ_{m<n} ‖Z_mᵀ Z_n‖ / d²`, Z the columns in standard units of the batch."""
    standard = [(one - one.mean(dim=0)) / (one.std(dim=0) + 1e-6) for one in outputs]
    pairs = [torch.linalg.norm(first.t() @ second) / first.shape[1] ** 2 for first, second in combinations(standard, 2)]
    return torch.stack(pairs).sum() if pairs else outputs[0].new_zeros(())


def as_columns(rows: Rows, job: Job) -> Columns:
    """The dictionary that FuxiCTR's loaders give; made before anything is timed."""
    columns: Columns = {}
    first = len(job["vocabulary_sizes"])
    for index in range(first):
        columns[f"c{index}"] = torch.from_numpy(rows.ids[:, index].copy()).long()
    for index, one in enumerate(job["lists"]):
        columns[f"l{index}"] = torch.from_numpy(rows.ids[:, first : first + one["length"]].copy()).long()
        first += one["length"]
    for index in range(job["num_numeric"]):
        columns[f"n{index}"] = torch.from_numpy(rows.numeric[:, index].copy())
    return columns | {"label": torch.from_numpy(rows.labels)}


def prepare(job: Job) -> tuple[dict[str, Step], int]:
    torch.manual_seed(job["seed"])
    model = Production(job)
    batches = cycle([as_columns(rows, job) for rows in load_rows(job)])
    model.train()

    def train() -> int:
        model.train_step(next(batches)).item()
        return 1

    return {"train": train}, count_parameters(model)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    serve(prepare, ("fuxictr", "numpy", "polars"))
