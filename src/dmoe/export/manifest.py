"""`manifest.json` of a model folder: what goes in and out, how it compares with the run, and every file's checksum."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dmoe.disk.files import check_links, read_json
from dmoe.disk.replaced import check_in_place
from dmoe.errors import DataError
from dmoe.schema import Task
from dmoe.validation import check_version, validate_stored
from dmoe.values.spelling import Kind

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 3

# The ids of a row's values, (rows, id columns) int64, in which a missing one is 0 and an unseen one 1, whatever ids
# the model takes for them. No field has such a name: those of the graph's own nodes begin so.
VALUES = "fields/values"

TableType = Literal["float32", "float16", "int8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(_Strict):
    """One input of the graph, of shape (rows, 1), named after its field.

    `text`: strings; `missing` is the text that stands for no value. `number`: float64, NaN is missing.
    `id`: int64 ids of the field's vocabulary, which is looked up outside the graph.
    """

    name: str
    kind: Literal["text", "number", "id"]
    column: str  # the raw column that the field is read from
    missing: str = ""
    example: str | float | None = None  # a frequent value
    values: Kind | None = None  # the type of the raw values, which the graph takes as their canonical texts


class Parity(_Strict):
    """The exported model beside the torch model on the same rows of the data set.

    Differences are of all `rows`; of a label that is not known on all of them the scores are of the `known_rows`. A
    joint probability has no logit of its own.
    """

    split: str
    rows: int
    known_rows: int | None = None
    max_abs_probability: float
    max_abs_logit: float | None = None
    auc_torch: float
    auc_export: float
    logloss_torch: float
    logloss_export: float


class ScoreBin(_Strict):
    """The share of training rows whose probability is at most `upper` and above that of the bin before."""

    upper: float
    share: float


class OutputProof(_Strict):
    """One probability of a model of several labels."""

    parity: Parity
    reference_scores: tuple[ScoreBin, ...]


class DomainNames(_Strict):
    """The field that says the domain, and the domains by their numbers; an id that is of none goes to `unseen`."""

    field: str
    names: tuple[str, ...]
    unseen: str


class FileSum(_Strict):
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(_Strict):
    """`parity` and `reference_scores` are the main label's. With several, `labels` and `outputs` (by the names of the
    probabilities) have all of them.
    """

    format_version: int = MANIFEST_FORMAT
    tables: TableType
    inputs: tuple[Input, ...]
    experts: tuple[str, ...]
    parity: Parity
    reference_scores: tuple[ScoreBin, ...]
    labels: tuple[Task, ...] = ()
    domain: DomainNames | None = None
    outputs: dict[str, OutputProof] = Field(default_factory=dict)
    versions: dict[str, str]
    files: dict[str, FileSum]

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """The manifest of a model folder, its checksums not yet compared.

        Raises: DataError if the folder or manifest is absent, damaged, or of another format version.
        """
        path = folder / MANIFEST
        check_in_place(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such model folder; `dmoe export RUN -o {folder}` makes one")
        check_links(folder)
        if not path.is_file():
            raise DataError(f"{folder}: has no {MANIFEST}, so it is not a model folder of `dmoe export`")
        values = read_json(path)
        check_version(values, MANIFEST_FORMAT, str(path), "export the run again")
        return validate_stored(Manifest, values, str(path))

    def verify(self, folder: Path) -> None:
        """Compares every file of the folder with its recorded size and SHA-256.

        Raises: DataError naming the first file that is absent, changed or not recorded.
        """
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - {MANIFEST}
        for name, recorded in self.files.items():
            path = folder / name
            if name not in present:
                raise DataError(f"{path}: no such file, but {MANIFEST} lists it; export the run again")
            if path.stat().st_size != recorded.bytes or sha256(path) != recorded.sha256:
                raise DataError(f"{path}: is not the file that was exported (checksum); export the run again")
        extra = sorted(present - set(self.files))
        if extra:
            raise DataError(f"{folder / extra[0]}: is not listed in {MANIFEST}; remove it or export the run again")

    @property
    def version(self) -> str:
        """A short name of exactly these files."""
        names = "".join(f"{name}:{one.sha256}\n" for name, one in sorted(self.files.items()))
        return hashlib.sha256(names.encode()).hexdigest()[:12]


def is_model_folder(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
