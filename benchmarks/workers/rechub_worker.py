"""torch-rechub: its own DCNv2, DeepFM and PLE, trained by its `CTRTrainer` and `MTLTrainer`.

Its MLP always has batch normalisation, so these models do a little more than the others of the same name; its
DeepFM weighs the embeddings themselves for the first order, in place of a table of width 1.
"""

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import PLE
from torch_rechub.models.ranking import DCNv2, DeepFM
from torch_rechub.trainers import CTRTrainer, MTLTrainer

from benchmarks.workers.serve import Job, Step, count_parameters, labels_of_tasks, load_batches, serve

LEARNING_RATE = 1e-3


def make_model(job: Job) -> nn.Module:
    fields = [
        SparseFeature(f"f{index}", size, embed_dim=job["embedding_dim"])
        for index, size in enumerate(job["vocabulary_sizes"])
    ]
    deep = {"dims": list(job["hidden_units"]), "activation": "relu"}
    name = job["experts"][0]
    if job["head"] == "ple":
        types, tower = ["classification"] * job["tasks"], {"dims": [job["expert_units"]]}
        shared = len(job["experts"]) - job["tasks"]
        return PLE(fields, types, 2, 1, shared, {"dims": list(job["hidden_units"])}, [tower] * job["tasks"])
    if name == "dcnv2":
        return DCNv2(fields, job["cross_layers"], deep, use_low_rank_mixture=False)
    if name == "deepfm":
        return DeepFM(fields, fields, deep)
    raise ValueError(f"no model '{name}' here")


def prepare(job: Job) -> tuple[dict[str, Step], int]:
    torch.manual_seed(job["seed"])
    model = make_model(job)
    # Its penalty is l2 * ||W||^2, without the half.
    options = {"lr": LEARNING_RATE}, {"embedding_l2": job["embedding_l2"] / 2}
    several = job["tasks"] > 1
    if several:
        types = ["classification"] * job["tasks"]
        trainer = MTLTrainer(model, types, optimizer_params=options[0], regularization_params=options[1])
    else:
        trainer = CTRTrainer(model, optimizer_params=options[0], regularization_params=options[1])
    batches = cycle(
        [
            (_as_columns(ids), torch.from_numpy(labels_of_tasks(labels, job) if several else labels))
            for ids, labels in load_batches(job)
        ]
    )

    def train(batch: Any) -> int:
        one: Iterable[Any] = [batch]
        trainer.train_one_epoch(one)
        return 1

    def score(columns: dict[str, Tensor]) -> int:
        if model.training:
            model.eval()
        with torch.no_grad():
            model(columns).numpy()
        return 1

    steps: dict[str, Step] = {"train": lambda: train(next(batches)), "score": lambda: score(next(batches)[0])}
    return steps, count_parameters(model)


def _as_columns(ids_BF: Any) -> dict[str, Tensor]:
    return {f"f{index}": torch.from_numpy(ids_BF[:, index].copy()) for index in range(ids_BF.shape[1])}


if __name__ == "__main__":
    serve(prepare, ("torch-rechub", "numpy"))
