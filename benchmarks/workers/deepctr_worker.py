"""DeepCTR-Torch: its own models, and for each batch what its `fit` does with it (metrics off)."""

from itertools import cycle

import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DCN, DeepFM, xDeepFM
from deepctr_torch.models.basemodel import BaseModel
from torch import Tensor

from benchmarks.workers.fitting import summed_l2
from benchmarks.workers.serve import Job, Step, count_parameters, load_batches, serve


def make_model(job: Job) -> BaseModel:
    """The model closest to the job's: no first-order part in DNN and DCNv2, CIN without activation and split."""
    name, hidden = job["experts"][0], tuple(job["hidden_units"])
    fields = [
        SparseFeat(f"f{index}", size, embedding_dim=job["embedding_dim"])
        for index, size in enumerate(job["vocabulary_sizes"])
    ]
    l2 = summed_l2(job["embedding_l2"], job["batch_size"])
    if name in ("dnn", "dcnv2"):
        # DCN without cross layers is its only plain DNN.
        return DCN(
            [],
            fields,
            cross_num=job["cross_layers"] if name == "dcnv2" else 0,
            cross_parameterization="matrix",
            dnn_hidden_units=hidden,
            l2_reg_linear=0,
            l2_reg_embedding=l2,
            l2_reg_cross=0,
        )
    if name == "deepfm":
        return DeepFM(fields, fields, dnn_hidden_units=hidden, l2_reg_linear=l2, l2_reg_embedding=l2)
    if name == "xdeepfm":
        return xDeepFM(
            fields,
            fields,
            dnn_hidden_units=hidden,
            cin_layer_size=(job["cin_units"],),
            cin_split_half=False,
            cin_activation="linear",
            l2_reg_linear=l2,
            l2_reg_embedding=l2,
        )
    raise ValueError(f"no model '{name}' here")


def prepare(job: Job) -> tuple[dict[str, Step], int]:
    model = make_model(job)
    model.compile("adam", "binary_crossentropy")
    # It takes ids and numbers alike as one float matrix.
    batches = cycle([(torch.from_numpy(ids).float(), torch.from_numpy(labels)) for ids, labels in load_batches(job)])

    def train(x_BF: Tensor, labels_B: Tensor) -> int:
        if not model.training:
            model.train()
        predicted_B = model(x_BF).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(predicted_B, labels_B, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        loss.item()
        total.item()
        total.backward()
        model.optim.step()
        return 1

    def score(x_BF: Tensor) -> int:
        if model.training:
            model.eval()
        with torch.no_grad():
            model(x_BF).numpy()
        return 1

    steps: dict[str, Step] = {"train": lambda: train(*next(batches)), "score": lambda: score(next(batches)[0])}
    return steps, count_parameters(model)


if __name__ == "__main__":
    serve(prepare, ("deepctr-torch", "numpy"))
