"""Everything that is measured about a trained model on one split, in one pass over its rows.

Shape suffixes: B rows of a batch, R rows of the split, M experts, H units of the alignment layer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dmoe.config.data import SPLITS
from dmoe.decorrelation import LinearCKA
from dmoe.disk.files import only_writer, write_json
from dmoe.distributed.world import World
from dmoe.errors import DataError, UserError
from dmoe.evaluation.correlations import Correlations, CorrelationsApart
from dmoe.evaluation.gate_usage import GateUsage
from dmoe.evaluation.tasks import SplitRows, group_column, quick_scores
from dmoe.machine.device import on_device
from dmoe.metrics.scores import auc, logloss, scores_of_split
from dmoe.metrics.unseen_rows import UnseenRows
from dmoe.nn.aligned import AlignedExpert
from dmoe.nn.mixture import mix, mix_units
from dmoe.nn.model import DMoE
from dmoe.nn.output import DMoEOutput, Location
from dmoe.shards.batch import SCORING_ROWS, Batch
from dmoe.shards.files import values_of
from dmoe.shards.reader import SplitReader, read_once
from dmoe.weights.run import Run, choose_device

# What the unbiased estimate of CKA needs.
_LEAST_ROWS = 4

LOCATIONS: tuple[Location, ...] = ("output", "pre-activation", "intermediate", "input")


def scored_batches(model: DMoE, batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, DMoEOutput]]:
    """Each batch with what the model says of it, in evaluation mode and without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), on_device(device):
            for batch in batches:
                moved = batch.to(device)
                yield batch, model(moved.ids_BC, moved.numeric_BN)
    finally:
        model.train(was_training)


def quick_metrics(model: DMoE, reader: SplitReader, device: torch.device, world: World | None = None) -> dict[str, Any]:
    """AUC and logloss alone, of each task: what the training loop watches. Each process scores its share."""
    world = world or World()
    rows = scored_rows(model, reader, device).of_all(world)
    found: dict[str, Any] = world.gather(None if rows is None else quick_scores(rows))[0]
    return found


def scored_rows(
    model: DMoE, reader: SplitReader, device: torch.device, at_batch: Callable[[], None] = lambda: None
) -> SplitRows:
    """Labels and logits of all rows of a split; what `at_batch`, called at each batch, raises ends the work."""
    rows = SplitRows(reader.schema)
    for batch, output in scored_batches(model, reader.batches(), device):
        at_batch()
        rows.update(batch, output)
    return rows


def evaluate_run(
    run: Run,
    *,
    splits: Sequence[str] | None = None,
    data: Path | None = None,
    device: str = "auto",
    group: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluates the best weights of a run on the named splits (all that there are, by default).

    Writes and returns the contents of `evaluation/<split>.json`, by split. With `group`, a field, also AUC inside the
    groups of rows that its values make.

    Raises: DataError if `group` is no categorical field with one value a row.
    """
    folder = run.data_folder(data)
    if group is not None:
        group_column(run.schema, group)  # its error comes first
    chosen = choose_device(device)
    with only_writer(run.path):
        model = run.load_model().to(chosen)
        found = {}
        for split in splits or [name for name in SPLITS if (folder / name).is_dir()]:
            found[split] = evaluate_split(model, run.path, folder, split, device=chosen, group=group)
        (run.path / "evaluation").mkdir(exist_ok=True)
        for split, one in found.items():
            write_json(run.path / "evaluation" / f"{split}.json", one)
    return found


def correlate_run(run: Run, *, split: str, data: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """CEC of a run at every location, on one split.

    Raises: UserError for a run of one expert, which has nothing to correlate.
    """
    if len(run.config.model.mixed(run.schema)) < 2:
        raise UserError(f"{run.path}: has one expert; cross-expert correlation needs two")
    folder = run.data_folder(data)
    chosen = choose_device(device)
    model = run.load_model().to(chosen)
    correlations = Correlations(LOCATIONS, model.num_experts)
    similarity = LinearCKA(model.num_experts)
    check_split(folder, split, model.num_experts)
    reader = read_once(folder, split, batch_size=SCORING_ROWS)
    for _, output in scored_batches(model, reader.batches(), chosen):
        correlations.update(output)
        similarity.update(output.expert_outputs)
    found = correlations.result()
    return {
        "split": split,
        "rows": found["output"]["rows"],
        "noise_floor": found["output"]["noise_floor"],
        "experts": expert_names(model),
        "correlation": found,
        "similarity": {"output": similarity_json(similarity)},
    }


def check_split(data: Path, split: str, num_experts: int) -> None:
    """Whether a split can be evaluated: the figures of two rows, or of one class, are not defined.

    Raises: DataError saying what it lacks.
    """
    reader = read_once(data, split, batch_size=1)  # its errors come first
    least = _LEAST_ROWS if num_experts > 1 else 2
    if reader.num_rows < least:
        raise DataError(
            f"{data / split}: has {reader.num_rows} rows, too few to be evaluated; at least {least} are needed. "
            "Prepare the data with a larger share"
        )
    for task in reader.schema.tasks:
        label = task.name
        classes = values_of(reader.parts, label)
        if len(classes) < 2:
            what = f"every row has {label} {min(classes)}" if classes else f"no row says its {label}"
            raise DataError(f"{data / split}: {what}; AUC needs both classes. Prepare the data with another split")


def evaluate_split(
    model: DMoE,
    folder: Path,
    data: Path,
    split: str,
    *,
    device: torch.device,
    at_batch: Callable[[], None] = lambda: None,
    locations: Sequence[Location] = ("output", "pre-activation"),
    group: str | None = None,
) -> dict[str, Any]:
    """The contents of `evaluation/<split>.json`.

    Args:
        folder: the run folder, for its vocabularies; `data`: the data set folder.
        at_batch: is called at each batch; what it raises ends the evaluation.
        locations: where cross-expert correlation (eq. 14) is measured.
        group: a field whose values are groups, for AUC inside them.
    Raises: DataError if the split is absent, holds one class only or too few rows.
    """
    check_split(data, split, model.num_experts)
    reader = read_once(data, split, batch_size=SCORING_ROWS)
    num_experts = model.num_experts
    correlations = Correlations(locations, num_experts) if num_experts > 1 else None
    domains = reader.schema.domain
    apart = CorrelationsApart(model.num_levels, () if domains is None else domains.names)
    similarity = LinearCKA(num_experts) if num_experts > 1 else None
    gate = GateUsage(reader.schema, num_experts) if num_experts > 1 else None
    unseen = UnseenRows(reader.schema)
    rows = SplitRows(reader.schema, group)
    without: list[list[np.ndarray]] = [[] for _ in range(num_experts)]
    alone: list[list[np.ndarray]] = [[] for _ in range(num_experts)]

    for batch, output in scored_batches(model, reader.batches(), device):
        at_batch()
        rows.update(batch, output)
        unseen.update(batch)
        if correlations is None or gate is None or similarity is None:
            continue
        correlations.update(output)
        apart.update(output)
        similarity.update(output.expert_outputs)
        gate.update(batch, output.gate_weights)
        for expert in range(num_experts):
            rest_B = _logit_without(model, output, expert)
            alone_B = model.predict(output.expert_outputs[expert], output)
            without[expert].append(_numpy(model.calibrated(rest_B, output.linear)))
            alone[expert].append(_numpy(model.calibrated(alone_B, output.linear)))

    # The main task's: rows that do not know it are none of its.
    known_R, main = rows.known_R(), rows.of_task()
    several = num_experts > 1

    def scores(expert: int, logits: list[np.ndarray]) -> dict[str, Any]:
        logits_R = _joined(logits)[known_R]
        return {
            "expert": expert,
            "auc": auc(main.labels_R, logits_R, main.weights_R),
            "logloss": logloss(main.labels_R, logits_R, main.weights_R),
        }

    return {
        **scores_of_split(split, main.labels_R, main.logits_R, main.weights_R),
        "unseen": unseen.result(main.labels_R, main.logits_R, known_R, main.weights_R),
        "experts": _describe_experts(model),
        "correlation": correlations.result() if correlations else {},
        **(apart.result() if correlations else {}),
        "similarity": {"output": similarity_json(similarity)} if similarity else {},
        "gate": gate.result(folder) if gate else None,
        "removal": [scores(expert, without[expert]) for expert in range(num_experts)] if several else [],
        "alone": [scores(expert, alone[expert]) for expert in range(num_experts)] if several else [],
        **rows.result(),
        **({"grouped_auc": {"field": group, **rows.grouped()}} if group is not None else {}),
    }


def _numpy(logit_B: Tensor) -> np.ndarray:
    array: np.ndarray = logit_B.cpu().numpy()
    return array


def _joined(logits: list[np.ndarray]) -> np.ndarray:
    """Logits of all batches, for sums in float64."""
    return np.concatenate(logits).astype(np.float64)


def _logit_without(model: DMoE, output: DMoEOutput, expert: int) -> Tensor:
    """The prediction when one expert is removed and the gate's weights are renormalised over the others."""
    kept = [index for index in range(model.num_experts) if index != expert]
    outputs = [output.expert_outputs[index] for index in kept]
    by_unit = output.unit_weights is not None
    weights_BK = output.gate_weights[:, kept] if output.unit_weights is None else output.unit_weights[:, kept]
    # A gate wholly on the removed expert leaves nothing to renormalise: the others then share equally.
    total_B1 = weights_BK.sum(1, keepdim=True)
    weights_BK = torch.where(total_B1 > 0, weights_BK / total_B1, torch.full_like(weights_BK, 1 / len(kept)))
    mixed_BH = mix_units(outputs, weights_BK) if by_unit else mix(outputs, weights_BK)
    return model.predict(mixed_BH, output)


def expert_names(model: DMoE) -> list[str]:
    """What each expert is called: its kind, numbered where a kind comes twice."""
    return [str(expert["name"]) for expert in _describe_experts(model)]


def _describe_experts(model: DMoE) -> list[dict[str, Any]]:
    interactions = [cast(AlignedExpert, expert).interaction for expert in model.mixed_experts]
    kinds = [interaction.kind or type(interaction).__name__ for interaction in interactions]
    return [
        {
            "index": index,
            "name": kind if kinds.count(kind) == 1 else f"{kind} {kinds[: index + 1].count(kind)}",
            "table": model.table_of_mixed[index],
            "parameters": sum(parameter.numel() for parameter in expert.parameters()),
        }
        for index, (kind, expert) in enumerate(zip(kinds, model.mixed_experts, strict=True))
    ]


def similarity_json(stream: LinearCKA) -> dict[str, Any]:
    """Linear CKA of each pair at one location; entries on and above the diagonal are null."""
    found = stream.compute()
    values = [value for row in found.matrix for value in row if value is not None]
    return {
        "matrix": [list(row) for row in found.matrix],
        "mean": sum(values) / len(values) if values else None,
        "rows": found.rows,
    }
