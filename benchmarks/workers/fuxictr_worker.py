"""FuxiCTR: its layers, its `BaseModel` and that model's own `train_step`; the wheel has no model zoo.

Shape suffixes: B rows, F fields, D embedding width, M experts.
"""

import logging
from itertools import cycle
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.layers import (
    CompressedInteractionNet,
    CrossNetV2,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.workers.serve import Job, Step, count_parameters, endless, load_batches, serve

CLIP_NORM = 10.0
LEARNING_RATE = 1e-3
Columns = dict[str, Tensor]


def feature_map(sizes: list[int], num_numeric: int = 0) -> FeatureMap:
    """What FuxiCTR's preprocessing would have written for these vocabularies, and so many numeric fields."""
    made = FeatureMap("benchmark", ".")
    for index, size in enumerate(sizes):
        made.features[f"f{index}"] = {"source": "", "type": "categorical", "vocab_size": size}
    for index in range(num_numeric):
        made.features[f"n{index}"] = {"source": "", "type": "numeric"}
    made.labels = ["label"]
    made.num_fields = len(made.features)
    made.total_features = sum(sizes) + num_numeric
    made.input_length = len(made.features)
    made.set_column_index()
    return made


class Flattened(nn.Module):
    """`inner` on (B, F * D)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        return self.inner(embeddings_BFD.flatten(1))


class SideBySide(nn.Module):
    """The outputs of several interactions, concatenated."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        return torch.cat([part(embeddings_BFD) for part in self.parts], dim=-1)


def interaction(name: str, job: Job) -> tuple[nn.Module, int]:
    """An expert from FuxiCTR's layers, and its width."""
    fields, dim, hidden = len(job["vocabulary_sizes"]), job["embedding_dim"], job["hidden_units"]
    cross = Flattened(CrossNetV2(fields * dim, job["cross_layers"]))
    deep = Flattened(MLP_Block(fields * dim, list(hidden)))
    if name == "crossnet":
        return cross, fields * dim
    if name == "dnn":
        return deep, hidden[-1]
    if name == "dcnv2":
        return SideBySide(cross, deep), fields * dim + hidden[-1]
    # The net's last layer, made for a scalar logit, would narrow an expert: its maps are what the expert gives.
    cin = CompressedInteractionNet(fields, [job["cin_units"]])
    cin.fc = nn.Identity()
    if name == "cin":
        return cin, job["cin_units"]
    if name == "xdeepfm":
        return SideBySide(cin, deep), job["cin_units"] + hidden[-1]
    raise ValueError(f"no expert '{name}' here")


class Model(BaseModel):
    """What all have in common: FuxiCTR's training step, regulariser and initialisation."""

    def __init__(self, job: Job) -> None:
        features = feature_map(job["vocabulary_sizes"])
        super().__init__(
            features,
            embedding_regularizer=job["embedding_l2"] or None,
            metrics=["AUC"],
            verbose=0,
            model_root=".",
        )
        self._max_gradient_norm = CLIP_NORM

    def finish(self, job: Job) -> None:
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()
        if job["optimiser"] == "fused":
            self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)


class Single(Model):
    """DNN, DCNv2, DeepFM and xDeepFM as in FuxiCTR's model zoo."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        name = job["experts"][0]
        self.embedding = FeatureEmbedding(self.feature_map, job["embedding_dim"])
        self.inner, width = interaction("dnn" if name == "deepfm" else name, job)
        self.fm = InnerProductInteraction(self.feature_map.num_fields) if name == "deepfm" else None
        self.first_order = LogisticRegression(self.feature_map) if name in ("deepfm", "xdeepfm") else None
        self.fc = nn.Linear(width, 1)
        self.finish(job)

    def forward(self, inputs: Columns) -> dict[str, Tensor]:
        columns = self.get_inputs(inputs)
        embeddings_BFD = self.embedding(columns)
        logit_B1 = self.fc(self.inner(embeddings_BFD))
        if self.fm is not None:
            logit_B1 = logit_B1 + self.fm(embeddings_BFD)
        if self.first_order is not None:
            logit_B1 = logit_B1 + self.first_order(columns)
        return {"y_pred": self.output_activation(logit_B1)}


class MixtureOfExperts(Model):
    """ME-MoE: an embedding layer for each expert and one for the gate, as a user would write it."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        fields, dim, units = len(job["vocabulary_sizes"]), job["embedding_dim"], job["expert_units"]
        names = job["experts"]
        self.embeddings = nn.ModuleList(FeatureEmbedding(self.feature_map, dim) for _ in names)
        parts = [interaction(name, job) for name in names]
        self.inner = nn.ModuleList(part for part, _ in parts)
        self.align = nn.ModuleList(MLP_Block(width, [units]) for _, width in parts)
        if len(names) > 1:
            self.gate_embedding = FeatureEmbedding(self.feature_map, dim)
            self.gate = MLP_Block(fields * dim, [job["gate_units"]], output_dim=len(names), output_activation="softmax")
        self.tower = MLP_Block(units, [units], output_dim=1)
        self.finish(job)

    def forward(self, inputs: Columns) -> dict[str, Tensor]:
        columns = self.get_inputs(inputs)
        outputs = [
            align(inner(embedding(columns)))
            for embedding, inner, align in zip(self.embeddings, self.inner, self.align, strict=True)
        ]
        mixed_BH = outputs[0]
        if len(outputs) > 1:
            gate_BM = self.gate(self.gate_embedding(columns, flatten_emb=True))
            mixed_BH = (torch.stack(outputs, dim=1) * gate_BM.unsqueeze(-1)).sum(dim=1)
        return {"y_pred": self.output_activation(self.tower(mixed_BH))}


class SparseTraining:
    """The same model with sparse gradients: SparseAdam for the tables, Adam for the rest.

    FuxiCTR's `train_step` with its two calls that cannot take sparse gradients, clip and step, replaced.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        tables = []
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = True
                tables.append(module.weight)
        known = {id(table) for table in tables}
        dense = [value for value in model.parameters() if id(value) not in known]
        self.optimisers = [
            torch.optim.SparseAdam(tables, lr=LEARNING_RATE),
            torch.optim.Adam(dense, lr=LEARNING_RATE),
        ]

    def step(self, batch: Columns) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss = self.model.compute_loss(self.model(batch), self.model.get_labels(batch))
        loss.backward()
        self._clip()
        for optimiser in self.optimisers:
            optimiser.step()
        loss.item()

    def _clip(self) -> None:
        gradients = []
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()
                gradients.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
        nn.utils.clip_grads_with_norm_(
            [_Holder(gradient) for gradient in gradients], CLIP_NORM, nn.utils.get_total_norm(gradients)
        )


class _Holder:
    """`clip_grads_with_norm_` looks at `.grad` only."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = grad


def prepare(job: Job) -> tuple[dict[str, Step], int]:
    torch.manual_seed(job["seed"])
    model = Single(job) if job["head"] == "linear" else MixtureOfExperts(job)
    sparse = SparseTraining(model) if job["optimiser"] == "sparse" else None
    prebuilt = cycle([_as_columns(ids, labels) for ids, labels in load_batches(job)])

    def train(batch: Any) -> int:
        if not model.training:
            model.train()
        if sparse:
            sparse.step(batch)
        else:
            # Its training loop adds up loss.item().
            model.train_step(batch).item()
        return 1

    def score(batch: Any) -> int:
        if model.training:
            model.eval()
        with torch.no_grad():
            model(batch)["y_pred"].numpy()
        return 1

    def loader(*, shuffle: bool) -> NpzDataLoader:
        return NpzDataLoader(model.feature_map, job["columns"], batch_size=job["batch_size"], shuffle=shuffle)

    steps = {"train": lambda: train(next(prebuilt)), "score": lambda: score(next(prebuilt))}
    if job["columns"]:
        trained, read = (endless(loader(shuffle=True).__iter__) for _ in range(2))
        steps |= {
            "train-files": lambda: train(next(trained)),
            "read-files": lambda: len([next(read)]),
            "score-files": lambda: sum(score(batch) for batch in loader(shuffle=False)),
        }
    return steps, count_parameters(model)


def _as_columns(ids_BF: np.ndarray, labels_B: np.ndarray) -> Columns:
    columns = {f"f{index}": torch.from_numpy(ids_BF[:, index].copy()).long() for index in range(ids_BF.shape[1])}
    return columns | {"label": torch.from_numpy(labels_B)}


if __name__ == "__main__":
    logging.disable(logging.INFO)
    serve(prepare, ("fuxictr", "numpy", "polars"))
