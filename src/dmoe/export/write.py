"""`dmoe export`: a run folder becomes a model folder, proven on the rows of its data set."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from dmoe.config.stored import stored_config
from dmoe.disk.files import write_json, written_aside
from dmoe.disk.replaced import put_back
from dmoe.errors import DataError, DmoeError, UserError
from dmoe.evaluation.evaluate import expert_names
from dmoe.export.card import CARD, model_card
from dmoe.export.check import Decoder, check_tokens
from dmoe.export.external import write_tables
from dmoe.export.extra import require
from dmoe.export.fields import FieldInput, field_inputs
from dmoe.export.graph import OPSET, front_graph, joined
from dmoe.export.manifest import MANIFEST, MANIFEST_FORMAT, Manifest, TableType, checksums
from dmoe.export.onnx_model import Graph, token_tables
from dmoe.export.proof import compare, reference_scores
from dmoe.export.tables import ScoringModel
from dmoe.outputs import all_outputs, probabilities, task_outputs
from dmoe.schema import OOV_ID, Schema, vocabulary_path
from dmoe.tokens.fields import raw_valued
from dmoe.tokens.lookup import LARGE_TOKENS, tokens_path, write_tokens
from dmoe.tokens.vocabulary import read_vocabulary
from dmoe.weights.run import Run

# Largest difference from the torch model's probabilities that an export with float32 tables may show.
_TOLERANCE = 1e-5


def export(
    run: Run,
    output: Path,
    *,
    tables: TableType = "float32",
    max_graph_tokens: int = LARGE_TOKENS,
    data: Path | None = None,
    overwrite: bool = False,
    card: str | None = None,
) -> Manifest:
    """Writes the model folder `output` and returns its manifest.

    Args:
        tables: how embedding weights are stored; anything but float32 changes the scores a little.
        max_graph_tokens: a field with more tokens is looked up outside the graph.
        data: the data set folder, if it has moved; its held-out split proves the export.
        card: a licence's identifier, to write a model card (`dmoe.export.card`) with it; by default none is written.
    Raises: DataError if the run or its data set is not whole, or something is at `output` already; DmoeError if
    the export does not give the run's scores; MissingExtraError.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    put_back(output)
    if output.exists() and not (overwrite and (output / MANIFEST).is_file()):
        raise DataError(f"{output}: exists already; pass --overwrite to replace a model folder, or choose another")
    if tables not in get_args(TableType):
        raise UserError(f"tables must be one of {', '.join(get_args(TableType))}, got {tables!r}")
    if max_graph_tokens < 0:
        raise UserError(f"--max-graph-tokens must be at least 0, got {max_graph_tokens}")
    folder = run.data_folder(data)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(output, replace=True) as aside:
        aside.mkdir()
        run.schema.write(aside)
        inputs = _write_model(run, aside, tables, max_graph_tokens)
        _prove(run, aside, folder, tables, inputs)
        if card is not None:  # no part of the model: it may be edited
            (aside / CARD).write_text(model_card(run, folder, output.resolve().name, card), encoding="utf-8")
    return Manifest.read(output)


def _write_model(run: Run, folder: Path, tables: TableType, max_graph_tokens: int) -> list[FieldInput]:
    schema, config = run.schema, stored_config(run.schema, run.path)
    tasks = task_outputs(schema)
    scoring = ScoringModel(run.load_model(), tables, tasks)
    large = {field.name for field in schema.categorical if field.vocabulary_size > max_graph_tokens}
    inputs = field_inputs(schema, config, large)
    clash = [one.name for one in inputs if one.name in all_outputs(tasks)]
    if clash:
        raise DataError(f"field '{clash[0]}' has the name of an output of the graph; rename it in the data and train")
    tokens: dict[str, dict[str, int]] = {}
    for one, field in zip(inputs, schema.categorical, strict=False):
        if one.kind != "id":
            tokens[one.name] = read_vocabulary(run.path, field)
        elif not tokens_path(folder, one.vocabulary).exists():
            write_tokens(vocabulary_path(run.path, one.vocabulary), tokens_path(folder, one.vocabulary))
    front = front_graph(schema, inputs, tokens)
    check_tokens(front, schema, inputs, tokens)
    graph = joined(front, _model_graph(scoring, schema, folder))
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return inputs


def _example(schema: Schema) -> tuple[torch.Tensor, torch.Tensor]:
    # Two rows: a traced size of 1 would be taken for a constant.
    return torch.zeros(2, schema.num_ids, dtype=torch.int64), torch.zeros(2, len(schema.numeric))


def _model_graph(scoring: ScoringModel, schema: Schema, folder: Path) -> Any:
    """The model's graph, its weights left in `folder`/model.onnx.data."""
    onnx = require("onnx", "export")
    with _quiet_exporter():
        batch = {0: torch.export.Dim("batch", min=1, max=1 << 20)}
        with torch.no_grad():
            program = torch.onnx.export(
                scoring,
                _example(schema),
                dynamo=True,
                opset_version=OPSET,
                input_names=["ids", "numeric"],
                output_names=list(all_outputs(scoring.tasks)),
                dynamic_shapes=(batch, batch),
                verbose=False,
            )
    assert program is not None
    program.save(folder / "model.onnx", external_data=True)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    write_tables(scoring, model, folder / "model.onnx.data")
    if any(node.op_type == "Einsum" for node in model.graph.node):
        raise DmoeError("an expert uses torch.einsum, with which ONNX Runtime dies on an empty batch; use matmul")
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps back what torch's exporter says of itself: its own deprecations, and that torchvision is absent."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _prove(run: Run, folder: Path, data: Path, tables: TableType, inputs: list[FieldInput]) -> None:
    """Writes the manifest, after scoring rows of the data set with the export and with the run."""
    model = run.load_model()
    decoder = Decoder(run.schema, inputs, run.path, token_tables(folder, inputs))
    tasks = task_outputs(run.schema)
    named = probabilities(tasks)
    scorer = decoder.scorer(Graph(folder), (*named, *(task.logit for task in tasks)))
    parities = compare(model, scorer, data, tasks)
    for name, parity in parities.items():
        if tables == "float32" and parity["max_abs_probability"] > _TOLERANCE:
            raise DmoeError(
                f"{run.path}: the export differs from the run by {parity['max_abs_probability']:.1e} in {name} "
                f"on the {parity['split']} split, more than {_TOLERANCE:g}; nothing was written"
            )
    references = reference_scores(scorer, data, named, int(run.config.training.memory_gb * 2**30))
    kinds = {name: run.schema.field(name).values.kind for name in raw_valued(stored_config(run.schema, run.path))}
    write_json(
        folder / MANIFEST,
        {
            "format_version": MANIFEST_FORMAT,
            "tables": tables,
            "inputs": [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "column": one.column,
                    "missing": one.null if one.kind == "text" else "",
                    "example": decoder.example(one),
                    "values": kinds.get(one.name),
                }
                for one in inputs
            ],
            "experts": expert_names(model),
            "parity": parities[named[0]],
            "reference_scores": references[named[0]],
            **_tasks_and_domains(run.schema, parities, references),
            "versions": {
                **{name: version(name) for name in ("dmoe", "onnx", "onnxruntime")},
                "torch": torch.__version__,
            },
            "files": checksums(folder),
        },
    )


def _tasks_and_domains(schema: Schema, parities: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest of a model of one label in one domain leaves out."""
    found: dict[str, Any] = {}
    if schema.labels:
        found["labels"] = [task.model_dump() for task in schema.labels]
        found["outputs"] = {
            name: {"parity": parity, "reference_scores": references[name]} for name, parity in parities.items()
        }
    if schema.domain is not None:
        names = schema.domain.names
        unseen = names[schema.domain.of_id[OOV_ID]]
        found["domain"] = {"field": schema.domain.field, "names": list(names), "unseen": unseen}
    return found
