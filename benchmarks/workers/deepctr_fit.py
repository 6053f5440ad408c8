"""DeepCTR-Torch's models, trained to their end by its own `fit`.

All of the model and of the loop is DeepCTR-Torch's: loader, loss, regulariser, Adam, validation after each epoch, and
its `EarlyStopping` and `ModelCheckpoint`. `Schedule` adds through its callback interface what it has no callback for:
the decay of the learning rate after an epoch without gain; and it puts the model back into training mode, in which
`fit` leaves it only until its first validation (this matters to AFN's batch normalisation). What is monitored, AUC -
logloss, is one more entry of its table of metrics.

Numeric fields are its `DenseFeat`: they go into its MLP and first-order part as they are, not into products.
AutoInt and DIFM get as many heads as their default and the embedding width have as greatest common divisor. DCN,
DCN-Mix and AutoInt get no first-order part, since they have no argument for its L2.
"""

from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepctr_torch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import AFN, DCN, DIFM, IFM, NFM, ONN, PNN, WDL, AutoInt, DCNMix, DeepFM, FiBiNET, xDeepFM
from deepctr_torch.models.basemodel import BaseModel
from sklearn.metrics import log_loss, roc_auc_score

from benchmarks.workers.fitting import Fitted, Split, run, summed_l2
from benchmarks.workers.serve import Job, count_parameters

MONITORED = "auc_minus_logloss"
LEAST_GAIN = 1e-6


def make_model(job: Job) -> BaseModel:
    """Raises: ValueError for a model that is not here."""
    dim = job["embedding_dim"]
    fields = [SparseFeat(f"f{index}", size, embedding_dim=dim) for index, size in enumerate(job["vocabulary_sizes"])]
    fields += [DenseFeat(f"n{index}", 1) for index in range(job["num_numeric"])]
    l2, hidden = summed_l2(job["embedding_l2"], job["batch_size"]), tuple(job["hidden_units"])
    both: dict[str, Any] = {"l2_reg_linear": l2, "l2_reg_embedding": l2, "seed": job["seed"]}
    deep: dict[str, Any] = {"l2_reg_embedding": l2, "seed": job["seed"], "dnn_hidden_units": hidden}
    cross: dict[str, Any] = {**deep, "cross_num": job["cross_layers"], "l2_reg_linear": 0, "l2_reg_cross": 0}
    makers: dict[str, Callable[[], BaseModel]] = {
        "wdl": lambda: WDL(fields, fields, **both, dnn_hidden_units=hidden),
        "deepfm": lambda: DeepFM(fields, fields, **both, dnn_hidden_units=hidden),
        "dcnv2": lambda: DCN([], fields, **cross, cross_parameterization="matrix"),
        "dcnmix": lambda: DCNMix([], fields, **cross),
        "xdeepfm": lambda: xDeepFM(
            fields,
            fields,
            **both,
            dnn_hidden_units=hidden,
            cin_layer_size=tuple(job["cin_units"]),
            cin_split_half=False,
            cin_activation="linear",
        ),
        "nfm": lambda: NFM(fields, fields, **both, dnn_hidden_units=hidden),
        "pnn": lambda: PNN(fields, **deep),
        "autoint": lambda: AutoInt([], fields, **deep, att_head_num=gcd(2, dim)),
        "afn": lambda: AFN(fields, fields, **both, afn_dnn_hidden_units=hidden),
        "ifm": lambda: IFM(fields, fields, **both, dnn_hidden_units=hidden),
        "difm": lambda: DIFM(fields, fields, **both, dnn_hidden_units=hidden, att_head_num=gcd(4, dim)),
        "fibinet": lambda: FiBiNET(fields, fields, **both, dnn_hidden_units=hidden),
        "onn": lambda: ONN(fields, fields, **both, dnn_hidden_units=hidden),
    }
    if job["model"] not in makers:
        raise ValueError(f"no model '{job['model']}' here")
    return makers[job["model"]]()


class Schedule(Callback):  # type: ignore[misc]
    """Multiplies the learning rate by `decay` after an epoch without gain, and keeps the model in training mode."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self._best = -np.inf

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        del epoch, logs
        self.model.train()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        del epoch
        assert logs is not None
        found = logs[f"val_{MONITORED}"]
        if found > self._best + LEAST_GAIN:
            self._best = found
            return
        for group in self.model.optim.param_groups:
            group["lr"] *= self._decay


def fit(job: Job, splits: dict[str, Split], scratch: Path) -> Fitted:
    model = make_model(job)
    model.compile(torch.optim.Adam(model.parameters(), lr=job["learning_rate"]), "binary_crossentropy")
    model.metrics[MONITORED] = lambda labels, scores: (
        roc_auc_score(labels, scores) - log_loss(labels, np.clip(scores, 1e-7, 1 - 1e-7))
    )
    monitor = {"monitor": f"val_{MONITORED}", "mode": "max"}
    kept = ModelCheckpoint(str(scratch / "best.pt"), **monitor, save_best_only=True, save_weights_only=True)
    # It takes ids and numbers alike as one float matrix.
    inputs = {name: np.hstack([one.ids_RC, one.numeric_RN]).astype(np.float32) for name, one in splits.items()}
    history = model.fit(
        [inputs["train"]],
        splits["train"].labels_R,
        batch_size=job["batch_size"],
        epochs=job["epochs"],
        verbose=0,
        validation_data=([inputs["valid"]], splits["valid"].labels_R),
        callbacks=[
            kept,
            EarlyStopping(**monitor, min_delta=LEAST_GAIN, patience=job["patience"]),
            Schedule(job["lr_decay"]),
        ],
    )
    model.load_state_dict(torch.load(kept.filepath, weights_only=True))
    model.out.task = "regression"  # leaves the sigmoid out
    scores = [model.predict([inputs[name]], batch_size=1000)[:, 0] for name in ("valid", "test")]
    return Fitted(len(history.epoch), float(kept.best), count_parameters(model), *scores)


if __name__ == "__main__":
    run(fit, ("deepctr-torch", "numpy"))
