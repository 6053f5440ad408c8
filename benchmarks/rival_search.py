"""Which models of the peers are trained, how much effort each gets, and how its setting is chosen."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmoe.config.run import OptimiserConfig, TrainingConfig
from dmoe.experiments.grid import size

MODELS: dict[str, tuple[str, ...]] = {
    "fuxictr": (
        *("dcnv2", "deepfm", "xdeepfm", "ipnn", "finalmlp", "masknet", "autoint+", "dnn", "fm", "lr", "fibinet"),
    ),
    "deepctr": (
        *("dcnv2", "deepfm", "xdeepfm", "pnn", "dcnmix", "autoint", "wdl", "nfm", "ifm", "difm", "afn"),
        *("fibinet", "onn"),
    ),
}
WITHOUT_HIDDEN_LAYERS = ("lr", "fm")

EMBEDDING_L2 = (1e-1, 1e-2, 1e-3)
WIDE = (400, 400)


@dataclass(frozen=True, slots=True)
class Budget:
    """What every model gets, taken from a size of dmoe's own experiments so that ours and theirs are trained alike."""

    embedding_dim: int
    hidden_units: tuple[int, ...]
    cin_units: tuple[int, ...]
    cross_layers: int
    batch_size: int
    epochs: int
    evaluations_per_epoch: int
    patience: int
    learning_rate: float
    lr_decay: float

    @staticmethod
    def of_size(name: str) -> "Budget":
        """Raises: ConfigError for an unknown name."""
        chosen = size(name)
        optimiser = OptimiserConfig(**chosen.run["optimiser"])
        training = TrainingConfig(**chosen.run["training"])
        return Budget(
            embedding_dim=chosen.run["model"]["embedding_dim"],
            hidden_units=tuple(chosen.experts["dnn"]["hidden_units"]),
            cin_units=tuple(chosen.experts["cin"]["units"]),
            cross_layers=chosen.experts["crossnet"]["layers"],
            batch_size=training.batch_size,
            epochs=training.epochs,
            evaluations_per_epoch=training.evaluations_per_epoch,
            patience=training.patience,
            learning_rate=optimiser.lr,
            lr_decay=optimiser.lr_decay,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """What is chosen on the validation split. `embedding_l2` is λ of (λ/2)‖W‖² beside the mean loss."""

    embedding_l2: float
    hidden_units: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what names its folder and what its worker is told, files and threads apart."""

    peer: str
    model: str
    setting: Setting
    seed: int
    budget: Budget

    def job(self) -> dict[str, Any]:
        return {**asdict(self.budget), **asdict(self.setting), "model": self.model, "seed": self.seed}


Result = dict[str, Any]
Train = Callable[[Run], Result]


def goodness(result: Result) -> float:
    """What settings are chosen by, and what stops a training: AUC - logloss of the validation split."""
    return float(result["valid"]["auc"] - result["valid"]["logloss"])


def search(
    peer: str,
    model: str,
    budget: Budget,
    seeds: Sequence[int],
    embedding_l2: Iterable[float],
    wide: tuple[int, ...],
    train: Train,
) -> dict[str, Any]:
    """The setting of a model, and its runs with all seeds.

    The embedding L2 is chosen with the first seed and the budget's hidden units; at that L2 the wide hidden layers are
    tried, unless there are none to try. Test figures play no part. Of equals the first one tried is chosen.
    """
    choices: list[tuple[Setting, Result]] = []

    def attempt(setting: Setting) -> None:
        choices.append((setting, train(Run(peer, model, setting, seeds[0], budget))))

    def best() -> Setting:
        return max(choices, key=lambda choice: goodness(choice[1]))[0]

    for one in embedding_l2:
        attempt(Setting(one, budget.hidden_units))
    if wide and wide != budget.hidden_units and model not in WITHOUT_HIDDEN_LAYERS:
        attempt(Setting(best().embedding_l2, wide))
    chosen = best()
    results = [train(Run(peer, model, chosen, seed, budget)) for seed in seeds]
    return {
        "peer": peer,
        "model": model,
        "choices": [
            {**asdict(setting), "valid": result["valid"], "folder": result["folder"]} for setting, result in choices
        ],
        "chosen": asdict(chosen),
        "seeds": results,
        "summary": {
            split: {metric: spread([result[split][metric] for result in results]) for metric in ("auc", "logloss")}
            for split in ("valid", "test")
        },
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value does not have."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
