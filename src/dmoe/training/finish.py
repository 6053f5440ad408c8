"""What follows the last step: linear part and calibration, the final evaluation, and the figures of the run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dmoe.disk.files import write_json
from dmoe.errors import Interrupted
from dmoe.evaluation.evaluate import SCORING_ROWS, evaluate_split, labels_and_both_logits
from dmoe.machine.limits import peak_memory_bytes
from dmoe.machine.stopping import StopRequest
from dmoe.nn.model import DMoE
from dmoe.shards.reader import read_once
from dmoe.training.calibrate import calibrate
from dmoe.training.checkpoint import remove_checkpoint
from dmoe.training.linear import add_share, fit_linear, mixed
from dmoe.training.position import Position
from dmoe.weights.run import Run, environment_facts


def finish(run: Run, model: DMoE, data: Path, device: torch.device, at: Position, requests: StopRequest) -> None:
    """Ends a run whose best weights `model`, in evaluation mode, holds.

    Raises: Interrupted if a stop is asked for; what is missing is then done by resuming.
    """

    def stop_if_asked() -> None:
        if requests.made:
            raise Interrupted(
                f"interrupted in the final evaluation; `dmoe train … --output {run.path} --resume` does only that"
            )

    fit_on_valid(run, model, data, device, requests, stop_if_asked)
    (run.path / "evaluation").mkdir(exist_ok=True)
    final: dict[str, Any] = {}
    for split in ("valid", "test"):
        if not (data / split).is_dir():
            continue
        found = evaluate_split(model, run.path, data, split, device=device, at_batch=stop_if_asked)
        write_json(run.path / "evaluation" / f"{split}.json", found)
        final[split] = summary_of(found)
    final |= {
        "best_epoch": at.best_epoch,
        "best_step": at.best_step,
        "steps": at.step,
        "seconds": at.seconds,
        "rows_per_second": at.all_rows / max(at.all_training_seconds, 1e-9),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    run.update_environment(**environment_facts(), wall_seconds=at.seconds, peak_memory_bytes=peak_memory_bytes())
    write_json(run.path / "metrics.json", final)
    run.first_weights.unlink(missing_ok=True)
    remove_checkpoint(run.path)


def fit_on_valid(
    run: Run, model: DMoE, data: Path, device: torch.device, requests: StopRequest, at_batch: Callable[[], None]
) -> None:
    """The linear part's share of the logit, then the map from logits to calibrated ones; kept with the weights."""
    recipe = run.config.training
    how, rate = recipe.calibration, recipe.negative_sampling_rate
    if how == "none" and rate == 1 and model.linear is None:
        return
    # A kill may have come after the map of an earlier attempt was saved.
    model.calibration.set(0.0, 1.0)
    model.calibration.offset.fill_(math.log(rate))
    facts = None
    if model.linear is not None:
        with requests.at_once(at_batch):
            facts = fit_linear(model.linear, data, recipe.memory_gb)
    if how != "none" or facts is not None:
        held_out = {
            split: labels_and_both_logits(model, read_once(data, split, batch_size=SCORING_ROWS), device, at_batch)
            for split in ("valid", "test")
            if (data / split).is_dir()
        }
        share = 0.0
        if facts is not None and model.linear is not None:
            found = add_share(model.linear, held_out) if facts["used"] else {"share": 0.0}
            share = found["share"]
            write_json(run.path / "linear.json", {**facts, **found})
        together = {
            split: (labels_R, logits_R if linear_R is None else mixed(logits_R, linear_R, share))
            for split, (labels_R, logits_R, linear_R) in held_out.items()
        }
        if how != "none":
            write_json(run.path / "calibration.json", calibrate(model, how, together))
    run.save_weights(model.state_dict())


def summary_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The few figures of an evaluation that `metrics.json` keeps."""
    output = evaluation["correlation"].get("output")
    return {
        "rows": evaluation["rows"],
        "auc": evaluation["auc"],
        "logloss": evaluation["logloss"],
        "relative_information_gain": evaluation["relative_information_gain"],
        "cec": output["total"] if output else None,
        "cec_noise_floor": output["total_noise_floor"] if output else None,
        "dead_columns": output["dead_columns"] if output else None,
    }
