"""What the paper states, its contradictions, and what it does not say; read from `paper.yaml`."""

from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from dmoe.validation import validate
from dmoe.yaml_text import parse_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperTable(_Strict):
    """Numbers of the paper; `columns` are the variants of our grid of the same name."""

    title: str
    columns: list[str]
    rows: dict[str, list[float | None]]
    digits: int


class Paper(_Strict):
    """By experiment: numbers, sentences, and slips."""

    tables: dict[str, PaperTable]
    statements: dict[str, list[str]]
    slips: dict[str, list[str]]
    not_given: list[str]


@cache
def paper() -> Paper:
    text = (files("dmoe.experiments") / "paper.yaml").read_text(encoding="utf-8")
    return validate(Paper, parse_yaml(text, "paper.yaml"), "paper.yaml")
