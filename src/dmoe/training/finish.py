"""What follows the last step: linear part and calibration, the final evaluation, and the figures of the run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dmoe.config.data import HELD_OUT
from dmoe.disk.files import only_writer, read_json, read_json_lines, write_json
from dmoe.errors import Interrupted
from dmoe.evaluation.evaluate import evaluate_split, scored_rows
from dmoe.machine.limits import peak_memory_bytes
from dmoe.machine.stopping import StopRequest, stop_requests
from dmoe.nn.model import DMoE
from dmoe.shards.batch import SCORING_ROWS
from dmoe.shards.files import HeldData
from dmoe.shards.reader import read_once
from dmoe.training.calibrate import calibrate
from dmoe.training.checkpoint import remove_checkpoint
from dmoe.training.linear import add_share, fit_linear, mixed
from dmoe.training.objective import monitored_value
from dmoe.training.position import Position
from dmoe.training.task_gradients import task_gradients
from dmoe.weights.run import Run, choose_device, environment_facts


def finish(
    run: Run,
    model: DMoE,
    held: HeldData,
    splits: Sequence[str],
    device: torch.device,
    at: Position,
    requests: StopRequest,
    save: Callable[[], None],
) -> None:
    """Ends a run whose best weights `model`, in evaluation mode, holds; `save` writes them again.

    Of the held-out splits those in `splits` are read.

    Raises: Interrupted if a stop is asked for, DataError if the data set was replaced; what is missing is then done by
        resuming.
    """

    data = held.data

    def stop_if_asked() -> None:
        if requests.made:
            raise Interrupted(
                f"interrupted in the final evaluation; `dmoe train … --output {run.path} --resume` does only that"
            )

    held.check()
    splits = [split for split in splits if (data / split).is_dir()]
    fit_on_valid(run, model, data, splits, device, requests, stop_if_asked, save)
    final = _evaluated(run, model, held, splits, device, stop_if_asked)
    if len(run.schema.tasks) > 1:
        lines = read_json_lines(run.path / "metrics.jsonl")
        final["own_best"] = own_best(lines, at.best_step, run.config.training.monitor)
        final["task_gradients"] = task_gradients(model, data, run.schema, run.config.training.batch_size, device)
    final |= {
        "best_epoch": at.best_epoch,
        "best_step": at.best_step,
        "steps": at.step,
        "seconds": at.seconds,
        "rows_per_second": at.all_rows / max(at.all_training_seconds, 1e-9),
        "parameters": model.num_parameters,
    }
    run.update_environment(**environment_facts(), wall_seconds=at.seconds, peak_memory_bytes=peak_memory_bytes())
    write_json(run.path / "metrics.json", final)
    run.first_weights.unlink(missing_ok=True)
    remove_checkpoint(run.path)


def measure(run: Run, data: Path) -> None:
    """Adds the figures of the test split to a complete run that was trained without it; its weights stay.

    Raises: Interrupted if a stop is asked for, DataError if the data set is replaced or has no test split; the run is
        then as it was but for evaluation/test.json, and the same call does it all.
    """
    device = choose_device(run.config.training.device)
    held = HeldData.of(data)
    with only_writer(run.path), held.in_use(), stop_requests() as requests:

        def stop_if_asked() -> None:
            if requests.made:
                raise Interrupted(f"interrupted while {run.path} was measured on test; the same command does it")

        # Once more, for what linear.json and calibration.json say of test.
        again = run.load_model().to(device)
        fit_on_valid(run, again, data, HELD_OUT, device, requests, stop_if_asked, lambda: None)
        model = run.load_model().to(device)
        found = _evaluated(run, model, held, ("test",), device, stop_if_asked)
        final = read_json(run.path / "metrics.json")
        write_json(run.path / "metrics.json", {"valid": final.pop("valid"), **found, **final})


def _evaluated(
    run: Run, model: DMoE, held: HeldData, splits: Sequence[str], device: torch.device, at_batch: Callable[[], None]
) -> dict[str, Any]:
    """What metrics.json says of each split; evaluation/<split>.json is written."""
    (run.path / "evaluation").mkdir(exist_ok=True)
    final = {}
    for split in splits:
        found = evaluate_split(model, run.path, held.data, split, device=device, at_batch=at_batch)
        held.check()
        write_json(run.path / "evaluation" / f"{split}.json", found)
        final[split] = summary_of(found)
    return final


def fit_on_valid(
    run: Run,
    model: DMoE,
    data: Path,
    splits: Sequence[str],
    device: torch.device,
    requests: StopRequest,
    at_batch: Callable[[], None],
    save: Callable[[], None],
) -> None:
    """For each task the linear part's share of the logit, then the map from logits to calibrated ones; kept with the
    weights, and their figures on the held-out `splits` in files."""
    recipe = run.config.training
    how, rate = recipe.calibration, recipe.negative_sampling_rate
    names = [task.name for task in run.schema.tasks]
    parts = [model.linear_of(task) for task in range(len(names))]
    if how == "none" and rate == 1 and not any(parts):
        return
    for task in range(len(names)):
        # A kill may have come after the map of an earlier attempt was saved.
        model.calibration_of(task).set(0.0, 1.0)
    # Labels that are given the main one are defined on its clicks, of which the log kept all.
    model.calibration_of(0).offset.fill_(math.log(rate))
    facts: list[dict[str, Any] | None] = [None] * len(names)
    for task, part in enumerate(parts):
        if part is not None:
            with requests.at_once(at_batch):
                facts[task] = fit_linear(part, data, recipe.memory_gb, names[task])
    if how != "none" or any(facts):
        scored = {
            split: scored_rows(model, read_once(data, split, batch_size=SCORING_ROWS), device, at_batch)
            for split in splits
        }
        linear, maps = [], []
        for task, (part, found) in enumerate(zip(parts, facts, strict=True)):
            held_out = {split: rows.of_task(task) for split, rows in scored.items()}
            share = 0.0
            if part is not None and found is not None:
                added = add_share(part, held_out) if found["used"] else {"share": 0.0}
                share = added["share"]
                linear.append({**found, **added})
            held_out = {split: replace(rows, logits_R=mixed(rows, share)) for split, rows in held_out.items()}
            if how != "none":
                maps.append(calibrate(model.calibration_of(task), how, held_out))
        for name, of_tasks in (("linear", linear), ("calibration", maps)):
            if of_tasks:
                by_name = {"tasks": dict(zip(names, of_tasks, strict=True))} if len(names) > 1 else {}
                write_json(run.path / f"{name}.json", {**of_tasks[0], **by_name})
    save()


def own_best(lines: list[dict[str, Any]], kept_step: int, monitor: str) -> dict[str, dict[str, Any]]:
    """For each task the evaluation that was best for it alone, and what the kept one is short of: the price of one set
    of weights for all."""
    found = {}
    for name in lines[0]["valid"]["tasks"]:
        values = {line["step"]: monitored_value(line["valid"]["tasks"][name], monitor, {}) for line in lines}
        best = max(values, key=lambda step: values[step])
        found[name] = {"step": best, "monitored": values[best], "short": values[best] - values[kept_step]}
    return found


def summary_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The few figures of an evaluation that `metrics.json` keeps."""
    output = evaluation["correlation"].get("output")
    tasks = {
        name: {key: one[key] for key in ("rows", "auc", "logloss", "predicted_to_observed")}
        for name, one in evaluation.get("tasks", {}).items()
    }
    return {
        **({"tasks": tasks} if len(tasks) > 1 else {}),
        "rows": evaluation["rows"],
        "auc": evaluation["auc"],
        "logloss": evaluation["logloss"],
        "relative_information_gain": evaluation["relative_information_gain"],
        "cec": output["total"] if output else None,
        "cec_noise_floor": output["total_noise_floor"] if output else None,
        "dead_columns": output["dead_columns"] if output else None,
    }
