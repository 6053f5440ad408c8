"""The latest rows of a data set's train split as a data set of their own, as if the log had begun there.

Shape suffixes: R rows of a chunk, C id columns, V rows of a vocabulary.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import SPLITS
from dmoe.disk.files import write_json, written_aside
from dmoe.errors import ConfigError
from dmoe.schema import (
    FIRST_TOKEN_ID,
    FORMAT_VERSION,
    MISSING_ID,
    OOV_ID,
    UNKNOWN,
    CategoricalField,
    Coverage,
    Domain,
    MultiValuedField,
    Schema,
    vocabulary_path,
)
from dmoe.shards.files import EncodedRows, count_rows, find_parts, read_chunks
from dmoe.shards.reader import CHUNK_ROWS
from dmoe.shards.writer import ShardWriter, arrow_schema
from dmoe.tokens.lists import as_lists

Counts = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]


def write_latest(data: Path, rows: int, output: Path) -> None:
    """Writes to `output` the data set `data` with the last `rows` rows of train alone; valid and test stay.

    Vocabularies are those of the part: a value that it holds fewer than `min_count` times reads id 1 in every split, as
    if only the part had been prepared. Of the whole log stay the edges of buckets, the scale of numeric fields, given
    vectors, and which values its `max_tokens` left out. Parts of a log are nested: a smaller one holds the last rows of
    a larger one. Nothing is at `output` until it is complete.

    Raises: ConfigError if train holds fewer rows; DataError if the data set is damaged.
    """
    schema = Schema.read(data)
    known = count_rows(find_parts(data, "train", schema))
    if not 1 <= rows <= known:
        raise ConfigError(f"{data}: the train split holds {known:,} rows, so its latest {rows:,} cannot be taken")
    with written_aside(output) as aside:
        (aside / "vocabulary").mkdir(parents=True)
        vocabularies = _renumbered(data, schema, _counts(data, schema, rows), aside)
        if (data / "pretrained").is_dir():
            shutil.copytree(data / "pretrained", aside / "pretrained")
        fields = tuple(
            field.model_copy(update={"vocabulary_size": int(vocabularies[field.vocabulary_name].max()) + 1})
            if isinstance(field, CategoricalField)
            else field
            for field in schema.fields
        )
        new = schema.model_copy(update={"fields": fields, "domain": _domain(schema, vocabularies)})
        splits: dict[str, dict[str, int]] = {}
        unseen: dict[str, dict[str, float]] = {field.name: {} for field in schema.categorical}
        missing: dict[str, dict[str, float]] = {field.name: {} for field in schema.categorical}
        for split in (split for split in SPLITS if (data / split).is_dir()):
            tally = np.zeros((len(schema.categorical), 3), np.int64)  # rows without a value, unseen values, tokens
            positives = written = 0
            writer = ShardWriter(aside / split, arrow_schema(new))
            for chunk in _chunks(data, split, schema, rows if split == "train" else None):
                _renumber(chunk, schema, vocabularies, tally)
                writer.append(_table(chunk, new))
                positives += int((chunk.labels_R == 1).sum())
                written += len(chunk)
            writer.close()
            splits[split] = {"rows": written, "positives": positives}
            for field, (none, unknown, tokens) in zip(schema.categorical, tally.tolist(), strict=True):
                missing[field.name][split] = none / written
                unseen[field.name][split] = unknown / max(unknown + tokens, 1)
        coverage = dict(schema.coverage)
        if coverage:
            coverage |= {name: Coverage(unseen=unseen[name], missing=missing[name]) for name in unseen}
        new.model_copy(update={"coverage": coverage}).write(aside)
        write_json(
            aside / "summary.json",
            {"format_version": FORMAT_VERSION, "splits": splits, "latest_rows": rows, "of": str(data.resolve())},
        )


def _chunks(data: Path, split: str, schema: Schema, latest: int | None) -> Iterator[EncodedRows]:
    parts = find_parts(data, split, schema)
    blocks = [(part, group) for part in parts for group in range(len(part.group_rows))]
    skipped = 0 if latest is None else count_rows(parts) - latest
    return read_chunks(blocks, schema, CHUNK_ROWS, skip_rows=skipped)


def _counts(data: Path, schema: Schema, rows: int) -> dict[str, Counts]:
    """By vocabulary, how often the latest rows hold each id of the whole log's."""
    found = {field.vocabulary_name: np.zeros(field.vocabulary_size, np.int64) for field in schema.categorical}
    for chunk in _chunks(data, "train", schema, rows):
        for field, columns in zip(schema.categorical, schema.id_columns, strict=True):
            counts_V = found[field.vocabulary_name]
            counts_V += np.bincount(chunk.ids_RC[:, columns].reshape(-1), minlength=len(counts_V))
    return found


def _renumbered(data: Path, schema: Schema, counts: dict[str, Counts], output: Path) -> dict[str, Ids]:
    """Writes the part's vocabularies; by vocabulary, the part's id of each id of the whole log's."""
    ids: dict[str, Ids] = {}
    for field in schema.categorical:
        if field.vocabulary_name != field.name:
            continue  # its owner's, which is a field of the schema too
        table = pq.read_table(vocabulary_path(data, field.name))
        counts_T = counts[field.name][table["id"].to_numpy()]
        table = table.set_column(table.schema.get_field_index("count"), "count", pa.array(counts_T))
        if field.edges is None and field.vectors is None:
            kept = table.filter(pa.array(counts_T >= field.min_count))
            table = kept.sort_by([("count", "descending"), ("value", "ascending")])
        new_V = np.full(field.vocabulary_size, OOV_ID, np.int32)
        new_V[MISSING_ID] = MISSING_ID
        numbers_T = np.arange(FIRST_TOKEN_ID, FIRST_TOKEN_ID + len(table), dtype=np.int32)
        new_V[table["id"].to_numpy()] = numbers_T
        table = table.set_column(table.schema.get_field_index("id"), "id", pa.array(numbers_T))
        pq.write_table(table, vocabulary_path(output, field.name), compression="zstd")
        ids[field.name] = new_V
    return ids


def _domain(schema: Schema, vocabularies: dict[str, Ids]) -> Domain | None:
    """The same domains by the part's ids; a value that it lost is where unseen ones are."""
    domain = schema.domain
    if domain is None:
        return None
    new_V = vocabularies[domain.field]
    of_id = np.full(int(new_V.max()) + 1, domain.of_id[OOV_ID])
    of_id[MISSING_ID] = domain.of_id[MISSING_ID]
    kept_V = new_V >= FIRST_TOKEN_ID
    of_id[new_V[kept_V]] = np.array(domain.of_id)[kept_V]
    return domain.model_copy(update={"of_id": tuple(of_id.tolist())})


def _renumber(chunk: EncodedRows, schema: Schema, vocabularies: dict[str, Ids], tally: Counts) -> None:
    """Puts the part's ids into the chunk and counts what became of its values."""
    for number, (field, columns) in enumerate(zip(schema.categorical, schema.id_columns, strict=True)):
        ids_RL = vocabularies[field.vocabulary_name][chunk.ids_RC[:, columns]]
        chunk.ids_RC[:, columns] = ids_RL
        # The values of a row stand first: one without any begins with the padding.
        tally[number] += (
            int((ids_RL[:, 0] == MISSING_ID).sum()),
            int((ids_RL == OOV_ID).sum()),
            int((ids_RL >= FIRST_TOKEN_ID).sum()),
        )


def _table(chunk: EncodedRows, schema: Schema) -> pa.Table:
    columns: dict[str, Any] = {
        task.name: pa.array(labels_R, mask=labels_R == UNKNOWN)
        for task, labels_R in zip(schema.tasks, chunk.labels_RT.T, strict=True)
    }
    if schema.weight is not None and chunk.weights_R is not None:
        columns[schema.weight] = pa.array(chunk.weights_R)
    for field, ids in zip(schema.categorical, schema.id_columns, strict=True):
        ids_RL = np.ascontiguousarray(chunk.ids_RC[:, ids])
        columns[field.name] = as_lists(ids_RL) if isinstance(field, MultiValuedField) else pa.array(ids_RL[:, 0])
    for index, number in enumerate(schema.numeric):
        columns[number.name] = pa.array(chunk.numeric_RN[:, index])
    wanted = arrow_schema(schema)
    return pa.table([columns[name] for name in wanted.names], schema=wanted)
