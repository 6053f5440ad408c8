"""A run.yaml to start from: what a preset says, and as comments what its recipe would choose for so many rows."""

from typing import Any

import yaml

from dmoe.config.run import load_config
from dmoe.training.recipe import sized

# Section, then keys with what they are; those that the recipe chooses come with its choice.
_CHOSEN: dict[str, dict[str, str]] = {
    "model": {
        "embedding_dim": "width of the embedding tables",
        "expert_units": "width of each expert's output",
        "tower_units": "hidden layers after the mixture",
    },
    "optimiser": {"lr": "learning rate"},
    "training": {
        "batch_size": "rows a step",
        "evaluations_per_epoch": "how often the valid split is looked at",
        "patience": "so many evaluations without gain end the training",
        "epochs": "at most so many",
        "monitor": "or auc, logloss",
        "device": "or cpu, cuda, cuda:1",
        "seed": "the same seed gives the same weights",
    },
}
_TABLES = "a table of embeddings for each expert; shared: one for all"
_EXPERTS = "`dmoe experts` lists all kinds and their options"
_LOSS = "keeps the experts' outputs from being correlated; [] for none"
_RECIPE = "what is left out is chosen by the log"
_AT = 40


def preset_for(labels: int) -> str:
    """The preset to start with, by how many labels the log has."""
    return "d-moe" if labels == 1 else "d-moe-tasks"


def first_config(labels: int, rows: int) -> str:
    """A run.yaml for a log of so many labels and training rows: `preset_for` it, key by key, with comments.

    A line `#   key: value  # what` shows what is chosen if it stays a comment; without its `# ` it says so.
    """
    name = preset_for(labels)
    said = load_config(name)
    chosen = sized(said, rows).model_dump(mode="json")
    values = said.values()
    lines = [f"# What is trained, and how: the preset {name}; `dmoe config --preset {name}` prints every key."]
    lines += [f"# Lines that are comments show what is chosen for {rows:,} rows of train: uncomment one to change it."]
    lines += ["model:", _line(f"  tables: {values['model']['tables']}", _TABLES), _line("  experts:", _EXPERTS)]
    for expert, full in zip(values["model"]["experts"], chosen["model"]["experts"], strict=True):
        more = {key: value for key, value in full.items() if key not in expert}
        lines.append(_line(f"    - {_flow(expert)}", f"chosen: {_flow(more)[1:-1]}" if more else None))
    if "tasks" in values["model"]:
        lines.append(_line(f"  tasks: {_flow(values['model']['tasks'])}", "of each label, say: {sale: {weight: 2}}"))
    lines += _comments(chosen, "model")
    lines.append(_line("decorrelation:", _LOSS))
    for term, full in zip(values["decorrelation"], chosen["decorrelation"], strict=True):
        lines.append(_line(f"  - {_flow(term)}", f"chosen: alpha: {full['alpha']}"))
    lines += ["training:", _line(f"  recipe: {values['training']['recipe']}", _RECIPE), *_comments(chosen, "training")]
    lines += ["# optimiser:", *_comments(chosen, "optimiser")]
    return "\n".join(lines) + "\n"


def _comments(chosen: dict[str, Any], section: str) -> list[str]:
    return [_line(f"#   {key}: {_flow(chosen[section][key])}", what) for key, what in _CHOSEN[section].items()]


def _line(text: str, what: str | None) -> str:
    return text if what is None else f"{text:{_AT}}  # {what}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 30)
    return text.removesuffix("...\n").strip()
