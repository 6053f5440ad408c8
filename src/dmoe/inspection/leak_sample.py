"""Suspicions about a data set folder, from a sample of its encoded rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dmoe.config.data import SPLITS
from dmoe.errors import DataError
from dmoe.inspection.contents import row_values
from dmoe.inspection.information import Floats
from dmoe.inspection.leaks import (
    SampleColumn,
    Suspicion,
    copies_suspicion,
    label_suspicions,
    order_suspicions,
    telling_suspicions,
    unseen_suspicion,
)
from dmoe.inspection.trial import ReadingTrial
from dmoe.schema import (
    FIRST_TOKEN_ID,
    MISSING_ID,
    UNKNOWN,
    AnyField,
    CategoricalField,
    MultiValuedField,
    vocabulary_path,
)
from dmoe.shards.folder import DataFolder
from dmoe.values.coded_columns import Column, pc

# Row groups of 65,536 rows of each split that are looked at, evenly spread over it.
_GROUPS = {"train": 8, "valid": 4, "test": 4}


def suspicions(data: DataFolder) -> list[Suspicion]:
    """What is suspicious about the data set, about its rows first, then field by field.

    Raises: DataError if a file is damaged.
    """
    try:
        return list(_suspicions(data))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{data.folder}: damaged ({str(error).splitlines()[0]}); prepare the data again") from None


def _suspicions(data: DataFolder) -> Iterator[Suspicion]:
    sample = _Sample(data)
    several = len(data.schema.tasks) > 1
    tasks = [_judged(sample, task.name) for task in data.schema.tasks]
    for one in tasks:
        known = ((split, one.labels_N[(sample.split_N == code) & one.known_N]) for code, split in enumerate(SPLITS))
        yield from (found.of_label(one.name if several else None) for found in label_suspicions(known))
    yield from _domain_suspicions(data)
    hashes_N = np.zeros(len(sample.split_N), dtype=np.uint64)
    found: list[Suspicion] = []
    for field in data.schema.fields:
        column = sample.column(field.name)
        hashes_N = _mixed(hashes_N * np.uint64(0x9E3779B97F4A7C15) + _hashes(column))
        told: list[Suspicion] = []
        for one in tasks:
            values = _sample_column(data, field, column.filter(pa.array(one.rows_N)))
            new = order_suspicions(values, one.judge.fit_N) if one is tasks[0] else []
            told += [
                *new,
                *(found.of_label(one.name if several else None) for found in telling_suspicions(values, one.judge)),
            ]
        found += told or _unseen(data, field)
    main, held_N = tasks[0], sample.split_N > 0
    if (held_N & main.known_N).any():
        copies = copies_suspicion(hashes_N[main.known_N], main.labels_N[main.known_N], held_N[main.known_N])
        if copies is not None:
            yield copies
    yield from found


@dataclass(frozen=True, slots=True)
class _Judged:
    """A label in all rows of a sample, and the judge of the chosen ones."""

    name: str
    labels_N: npt.NDArray[np.int64]
    known_N: npt.NDArray[np.bool_]
    rows_N: npt.NDArray[np.bool_]
    judge: ReadingTrial


def _judged(sample: "_Sample", name: str) -> _Judged:
    labels_N = sample.column(name).fill_null(UNKNOWN).to_numpy().astype(np.int64)
    known_N = labels_N != UNKNOWN
    # One held-out split judges: test, or else valid.
    judging = max(set(sample.split_N[known_N].tolist()), default=0)
    rows_N = ((sample.split_N == 0) | (sample.split_N == judging)) & known_N
    judge = ReadingTrial(labels_N[rows_N], sample.split_N[rows_N] == 0)
    if not judge.able:
        judge = ReadingTrial.of_rows(labels_N[rows_N])
    return _Judged(name, labels_N, known_N, rows_N, judge)


def _domain_suspicions(data: DataFolder) -> Iterator[Suspicion]:
    """Labels of which a domain has one class only in train, or no known row."""
    domain = data.schema.domain
    for name, counts in data.summary.get("labels", {}).items() if domain is not None else ():
        train = {one: splits["train"] for one, splits in counts["domains"].items() if "train" in splits}
        poor = {one: (of["known"], of["positives"]) for one, of in train.items() if of["positives"] in (0, of["known"])}
        if domain is None or not poor:
            continue
        shown = [f"'{one}' ({positives:,} of {known:,} rows)" for one, (known, positives) in list(poor.items())[:5]]
        more = ", …" if len(poor) > 5 else ""
        yield Suspicion(
            "one class in a domain",
            domain.field,
            len(poor),
            f"label '{name}' has one class only in the training rows of {len(poor)} of {len(train)} domains of "
            f"'{domain.field}': {', '.join(shown)}{more}; a larger domain.min_count makes them one domain",
        )


class _Sample:
    """Row groups of every split, read column by column."""

    def __init__(self, data: DataFolder) -> None:
        self._groups: list[tuple[pq.ParquetFile, int]] = []
        codes = []
        for code, split in enumerate(SPLITS):
            files = [pq.ParquetFile(path) for path in sorted((data.folder / split).glob("part-*.parquet"))]
            groups = [(file, group) for file in files for group in range(file.metadata.num_row_groups)]
            count = min(_GROUPS[split], len(groups))
            chosen = [groups[index * len(groups) // count] for index in range(count)]
            self._groups += chosen
            codes += [np.full(file.metadata.row_group(group).num_rows, code, np.int8) for file, group in chosen]
        self.split_N: npt.NDArray[np.int8] = np.concatenate(codes)

    def column(self, name: str) -> Column:
        chunks = [file.read_row_group(group, columns=[name]).column(0) for file, group in self._groups]
        return pa.chunked_array([chunk for one in chunks for chunk in one.chunks]).combine_chunks()


def _sample_column(data: DataFolder, field: AnyField, column: Column) -> SampleColumn:
    if isinstance(field, MultiValuedField):
        values, row_of_E = row_values(column)
        return SampleColumn(field.name, values.astype(np.int64), field.vocabulary_size, row_of_E=row_of_E)
    if isinstance(field, CategoricalField):
        codes = column.to_numpy().astype(np.int64)
        numbers = _numbers_of_tokens(data, field, codes)
        words = partial(_token, data, field)
        return SampleColumn(field.name, codes, field.vocabulary_size, MISSING_ID, words, numbers)
    numbers = column.to_numpy().astype(np.float64)
    values, codes = np.unique(numbers, return_inverse=True)
    missing = None
    spot = int(np.searchsorted(values, 0.0))
    lacking = data.summary["fields"][field.name]["missing"].get("train", 0.0)
    # A missing number is encoded as 0: that is it if there are about as many.
    if spot < len(values) and values[spot] == 0.0 and lacking > 0.5 * float((codes == spot).mean()):
        missing = spot
    words = partial(_number, field.mean, field.scale, field.transform == "log", values)
    return SampleColumn(field.name, codes.astype(np.int64), len(values), missing, words, numbers, is_number=True)


def _number(mean: float, scale: float, log: bool, values: Floats, code: int) -> str:
    """The raw number of an encoded one, in the digits that float32 keeps."""
    value = values[code] * scale + mean
    return f"{np.sign(value) * np.expm1(abs(value)) if log else value:.6g}"


def _values(data: DataFolder, field: CategoricalField) -> Column:
    table = pq.read_table(vocabulary_path(data.folder, field.vocabulary_name), columns=["value", "id"])
    return table.column("value").take(pc.sort_indices(table.column("id"))).combine_chunks()


def _token(data: DataFolder, field: CategoricalField, code: int) -> str:
    if code < FIRST_TOKEN_ID:
        return "those out of vocabulary"
    return repr(_values(data, field)[code - FIRST_TOKEN_ID].as_py())


def _numbers_of_tokens(data: DataFolder, field: CategoricalField, codes_N: npt.NDArray[np.int64]) -> Floats | None:
    """The numbers that the tokens of an almost unique field are, NaN for no token; None if it is none."""
    known = codes_N[codes_N >= FIRST_TOKEN_ID]
    if len(known) < 100 or len(np.unique(known)) < 0.5 * len(known) or field.edges is not None:
        return None
    try:
        numbers = pc.cast(_values(data, field), pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    by_code = np.concatenate([[np.nan, np.nan], numbers])
    found: Floats = by_code[np.minimum(codes_N, len(by_code) - 1)]
    return found


def _unseen(data: DataFolder, field: AnyField) -> list[Suspicion]:
    if not isinstance(field, CategoricalField):
        return []
    entry: dict[str, Any] = data.summary["fields"][field.name]
    unseen, values = entry["unseen"], entry["values"]
    train_rows, train = data.summary["splits"]["train"]["rows"], unseen.get("train", 0.0)
    in_order = data.schema.source.get("split", {}).get("kind") in ("time", "ordered")
    found = [
        unseen_suspicion(field.name, split, unseen.get(split, 0.0), values.get(split, 0), train, in_order=in_order)
        for split in ("test", "valid")
    ]
    distinct = entry.get("distinct_in_train")
    known = [one for one in found if one is not None][:1]
    if distinct is not None and train > 0.9 and distinct > 0.9 * train_rows * (1 - entry["missing"].get("train", 0.0)):
        text = f"'{field.name}' has {distinct:,} values in {train_rows:,} training rows: an id of the row; leave it out"
        return [Suspicion("differs in each row", field.name, round(distinct / train_rows, 4), text)]
    return known


def _hashes(column: Column) -> npt.NDArray[np.uint64]:
    """One of each row; -0.0 is 0.0."""
    if not pa.types.is_list(column.type):
        values: npt.NDArray[Any] = column.to_numpy()
        numbers = (values + 0.0).astype(np.float64)
        return numbers.view(np.uint64)
    several, row_of_E = row_values(column)
    counts = np.bincount(row_of_E, minlength=len(column))
    order = np.argsort(row_of_E, kind="stable")
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    mixed = _mixed(several[order].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + place.astype(np.uint64))
    found = np.zeros(len(column), dtype=np.uint64)
    np.add.at(found, row_of_E[order], mixed)
    return found


def _mixed(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
