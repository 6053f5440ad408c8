"""FuxiCTR's models, trained to their end by its own `BaseModel.fit`.

FuxiCTR's: the embedding layers, first-order weights, MLP, cross network, CIN, inner and bilinear products, squeeze and
excitation, scaled dot-product attention; initialisation, loss, embedding regulariser, clipping, Adam, the loop with its
early stopping, learning-rate decay and checkpoint, and the loader (`NpzDataLoader`). The wheel has no model zoo. Ours:
how those layers are put together, after the zoo's models of the same names with the zoo's defaults
(https://github.com/reczoo/FuxiCTR, model_zoo), and what these models have beside them: the projections around
AutoInt's attention (Song et al. 2019), the mask block of MaskNet (Wang et al. 2021, parallel, three blocks), and
feature selection and bilinear fusion of FinalMLP (Mao et al. 2023).

Shape suffixes: B rows, F fields, D embedding width.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    CompressedInteractionNet,
    CrossNetV2,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
    ScaledDotProductAttention,
    SqueezeExcitation,
)
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.workers.fitting import Fitted, Floats, Split, run
from benchmarks.workers.fuxictr_worker import Flattened, SideBySide, feature_map
from benchmarks.workers.serve import Job, count_parameters

ATTENTION_LAYERS, ATTENTION_DIM = 2, 8
MASK_BLOCKS, MASK_BLOCK_DIM = 3, 64
SELECTION_UNITS = 64


class Attention(nn.Module):
    """One self-attention layer of AutoInt: one head, a residual, ReLU; (B, F, D) to (B, F, width)."""

    def __init__(self, embedding_dim: int, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(embedding_dim, width, bias=False) for _ in range(3))
        self.residual = nn.Identity() if embedding_dim == width else nn.Linear(embedding_dim, width, bias=False)
        self.attend = ScaledDotProductAttention()

    def forward(self, x_BFD: Tensor) -> Tensor:
        attended, _ = self.attend(self.query(x_BFD), self.key(x_BFD), self.value(x_BFD))
        return torch.relu(attended + self.residual(x_BFD))


class Bilinear(nn.Module):
    """FiBiNET: bilinear products of the embeddings and of the re-weighted embeddings."""

    def __init__(self, fields: int, embedding_dim: int) -> None:
        super().__init__()
        self.reweighted = SqueezeExcitation(fields)
        self.products = BilinearInteractionV2(fields, embedding_dim)
        self.reweighted_products = BilinearInteractionV2(fields, embedding_dim)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        both = (self.products(embeddings_BFD), self.reweighted_products(self.reweighted(embeddings_BFD)))
        return torch.cat(both, dim=1)


class MaskBlocks(nn.Module):
    """MaskNet's parallel blocks: ReLU(LayerNorm(W (mask(embeddings) ∘ normalised embeddings))), side by side."""

    def __init__(self, fields: int, embedding_dim: int) -> None:
        super().__init__()
        width = fields * embedding_dim
        self.norms = nn.ModuleList(nn.LayerNorm(embedding_dim) for _ in range(fields))
        self.masks = nn.ModuleList(MLP_Block(width, [width], output_dim=width) for _ in range(MASK_BLOCKS))
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(width, MASK_BLOCK_DIM, bias=False), nn.LayerNorm(MASK_BLOCK_DIM), nn.ReLU())
            for _ in range(MASK_BLOCKS)
        )

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        normed = [norm(field) for norm, field in zip(self.norms, embeddings_BFD.unbind(1), strict=True)]
        flat, normed_flat = embeddings_BFD.flatten(1), torch.cat(normed, dim=1)
        return torch.cat([h(mask(flat) * normed_flat) for mask, h in zip(self.masks, self.hidden, strict=True)], dim=1)


class TwoStreams(nn.Module):
    """FinalMLP: two MLPs on two gated copies of the embeddings, joined by wᵀx + vᵀy + xᵀWy (one head).

    The gates have no context field, as in the zoo's default: each is a function of one learned vector.
    """

    def __init__(self, fields: int, embedding_dim: int, hidden: list[int]) -> None:
        super().__init__()
        width = fields * embedding_dim
        self.contexts = nn.ParameterList(torch.zeros(embedding_dim) for _ in range(2))
        self.gates = nn.ModuleList(
            MLP_Block(embedding_dim, [SELECTION_UNITS], output_dim=width, output_activation="Sigmoid") for _ in range(2)
        )
        self.streams = nn.ModuleList(MLP_Block(width, hidden) for _ in range(2))
        self.linears = nn.ModuleList(nn.Linear(hidden[-1], 1) for _ in range(2))
        self.product = nn.Bilinear(hidden[-1], hidden[-1], 1, bias=False)

    def init_weights(self) -> None:
        # Xavier of the zoo's form of W, a column of all its entries.
        nn.init.normal_(self.product.weight, std=(2 / (self.product.weight.numel() + 1)) ** 0.5)

    def forward(self, embeddings_BFD: Tensor) -> Tensor:
        flat = embeddings_BFD.flatten(1)
        parts = zip(self.streams, self.gates, self.contexts, strict=True)
        x, y = (stream(flat * 2 * gate(context)) for stream, gate, context in parts)
        return self.linears[0](x) + self.linears[1](y) + self.product(x, y)


def terms(job: Job) -> tuple[list[nn.Module], bool]:
    """The parts of the logit, each (B, F, D) to (B, 1), and whether first-order weights are one more.

    Raises: ValueError for a model that is not here.
    """
    fields, dim, hidden = len(job["vocabulary_sizes"]) + job["num_numeric"], job["embedding_dim"], job["hidden_units"]
    width, pairs = fields * dim, fields * (fields - 1) // 2

    def mlp(inputs: int) -> nn.Module:
        return MLP_Block(inputs, hidden, output_dim=1)

    deep = Flattened(mlp(width))
    match job["model"]:
        case "lr":
            return [], True
        case "fm":
            return [InnerProductInteraction(fields)], True
        case "dnn":
            return [deep], False
        case "deepfm":
            return [InnerProductInteraction(fields), deep], True
        case "dcnv2":
            parts = SideBySide(Flattened(CrossNetV2(width, job["cross_layers"])), Flattened(MLP_Block(width, hidden)))
            return [nn.Sequential(parts, nn.Linear(width + hidden[-1], 1))], False
        case "xdeepfm":
            return [CompressedInteractionNet(fields, job["cin_units"]), deep], True
        case "ipnn":
            products = InnerProductInteraction(fields, output="inner_product")
            return [nn.Sequential(SideBySide(nn.Flatten(), products), mlp(width + pairs))], False
        case "autoint+":
            layers = [Attention(ATTENTION_DIM if i else dim, ATTENTION_DIM) for i in range(ATTENTION_LAYERS)]
            return [nn.Sequential(*layers, nn.Flatten(), nn.Linear(fields * ATTENTION_DIM, 1)), deep], False
        case "fibinet":
            return [nn.Sequential(Bilinear(fields, dim), nn.Flatten(), mlp(2 * pairs * dim))], True
        case "masknet":
            return [nn.Sequential(MaskBlocks(fields, dim), mlp(MASK_BLOCKS * MASK_BLOCK_DIM))], False
        case "finalmlp":
            return [TwoStreams(fields, dim, hidden)], False
        case name:
            raise ValueError(f"no model '{name}' here")


class Rival(BaseModel):
    """The sum of a model's terms, in FuxiCTR's training loop."""

    def __init__(self, job: Job, features: FeatureMap, scratch: Path, eval_steps: int) -> None:
        super().__init__(
            features,
            monitor={"AUC": 1, "logloss": -1},
            metrics=["AUC", "logloss"],
            early_stop_patience=job["patience"],
            eval_steps=eval_steps,
            embedding_regularizer=float(job["embedding_l2"]),
            verbose=0,
            model_root=str(scratch),
        )
        self._decay = job["lr_decay"]
        parts, first_order = terms(job)
        self.terms = nn.ModuleList(parts)
        self.embedding = FeatureEmbedding(features, job["embedding_dim"]) if parts else None
        self.first_order = LogisticRegression(features) if first_order else None
        self.compile("adam", "binary_crossentropy", job["learning_rate"])
        self.reset_parameters()

    def lr_decay(self, factor: float = 0.1, min_lr: float = 1e-6) -> float:
        """FuxiCTR's decay with the job's factor: `fit` has no argument for it."""
        del factor
        reduced: float = super().lr_decay(self._decay, min_lr)
        return reduced

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        columns = self.get_inputs(inputs)
        logits = [] if self.first_order is None else [self.first_order(columns)]
        if self.embedding is not None:
            embeddings_BFD = self.embedding(columns)
            logits += [term(embeddings_BFD) for term in self.terms]
        return {"y_pred": self.output_activation(torch.stack(logits).sum(dim=0))}


def fit(job: Job, splits: dict[str, Split], scratch: Path) -> Fitted:
    features = feature_map(job["vocabulary_sizes"], job["num_numeric"])
    (scratch / features.dataset_id).mkdir()

    def loader(name: str, *, shuffle: bool = False) -> NpzDataLoader:
        path = scratch / f"{name}.npz"
        _write_columns(splits[name], path)
        size = job["batch_size"] if shuffle else max(job["batch_size"], 1000)
        return NpzDataLoader(features, str(path), batch_size=size, shuffle=shuffle, num_workers=0)

    train, valid = loader("train", shuffle=True), loader("valid")
    model = Rival(job, features, scratch, max(1, len(train) // job["evaluations_per_epoch"]))
    model.fit(train, epochs=job["epochs"], validation_data=valid)
    model.output_activation = nn.Identity()
    scores: list[Floats] = [model.predict(one) for one in (valid, loader("test"))]
    return Fitted(model._total_steps / len(train), model._best_metric, count_parameters(model), *scores)


def _write_columns(split: Split, path: Path) -> None:
    """One array a field and the label, as FuxiCTR's preprocessing leaves them."""
    columns: dict[str, Any] = {f"f{index}": column for index, column in enumerate(split.ids_RC.T)}
    columns |= {f"n{index}": column for index, column in enumerate(split.numeric_RN.T)}
    np.savez(path, **columns, label=split.labels_R)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    run(fit, ("fuxictr", "numpy", "polars"))
