"""A data.yaml that prepares the log that was inspected, with its reasons as comments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dmoe.config.data import DataConfig
from dmoe.config.fields import check_field_name
from dmoe.errors import DataError
from dmoe.inspection.columns import TextColumn
from dmoe.inspection.kinds import MIN_COUNTS, MISSING_WORDS, ColumnFacts, Found
from dmoe.inspection.log_labels import LogLabel, said_of
from dmoe.inspection.splitting import split_of, too_rare
from dmoe.inspection.times import parts_of
from dmoe.validation import validate

_FEW_UNSEEN = 0.01
_LEAST_DAYS = 14  # of which each weekday comes twice: with fewer the later rows have weekdays that train has not


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`comments` by field, by the keys label, split and min_count, and by column that is left out. `rare`: labels of
    which a held-out split may lack a class."""

    config: dict[str, Any]
    comments: dict[str, str]
    rare: Sequence[str] = ()

    def text(self) -> str:
        """YAML, comments at the end of the line that they are about or, of columns left out, at the end."""
        config, fields = self.config, self.config["fields"]
        lines = [self._line("label", {"label": config["label"]})] if "label" in config else ["labels:"]
        named = {name: f"label {name}" for name in config.get("labels", {})}
        lines += ["  " + self._line(about, {name: config["labels"][name]}, flow=True) for name, about in named.items()]
        lines.append(self._line("split", {"split": config["split"]}, flow=True))
        lines += ["fields:", "  " + self._line("min_count", {"min_count": fields["min_count"]})]
        used = {"label", "split", "min_count", *named.values()}
        for kind in ("categorical", "numeric", "multi_valued"):
            if not fields.get(kind):
                continue
            lines.append(f"  {kind}:")
            plain = isinstance(fields[kind], list)
            for name in fields[kind]:
                entry = [name] if plain else {name: fields[kind][name]}
                lines.append("  " + ("" if plain else "  ") + self._line(name, entry, flow=not plain))
                used.add(name)
        for key in ("derive", "format"):
            if key in config:
                lines += [
                    f"{key}:",
                    *("  " + self._line("", {name: one}, flow=True) for name, one in config[key].items()),
                ]
        rest = [(name, why) for name, why in self.comments.items() if name not in used]
        if rest:
            lines.append("# columns that are no field:")
            lines += [f"#   {_plain(name)}: {_plain(why)}" for name, why in rest]
        return "\n".join(lines) + "\n"

    def _line(self, about: str, value: Any, *, flow: bool = False) -> str:
        """One line of YAML; mappings inside in braces if `flow`."""
        if flow:
            ((name, inner),) = value.items()
            text = f"{_scalar(name)}: {yaml.safe_dump(inner, default_flow_style=True, **_DUMP)}"
        else:
            text = yaml.safe_dump(value, default_flow_style=False, **_DUMP)
        text = text.removesuffix("...\n").rstrip("\n").removesuffix("\n...")
        why = self.comments.get(about)
        return text if why is None else f"{text}  # {_plain(why)}"


_DUMP: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 1 << 30}


def _scalar(name: str) -> str:
    text = yaml.safe_dump([name], default_flow_style=True, **_DUMP)
    return str(text).rstrip("\n")[1:-1]


def _plain(text: str) -> str:
    """On one line, whatever the log holds."""
    return "".join(one if one.isprintable() else "?" for one in text)


def suggest(
    columns: Mapping[str, TextColumn],
    found: Sequence[Found],
    labels: Sequence[LogLabel],
    form: dict[str, Any],
    *,
    asked: bool = False,
) -> Suggestion:
    """What to prepare the log with. Labels that are too rare for the splits are left out, unless they were `asked` for.

    Raises: DataError if no column can be a field.
    """
    facts = [one.facts for one in found]
    comments = {one.name: one.note or one.kind for one in facts if one.note or one.kind in ("constant", "row id")}
    categorical = [one.name for one in facts if one.kind == "categorical" or one.also_categorical]
    missing, numeric = _missing(facts, columns, categorical, comments)
    several = {
        one.name: {**({} if one.format is None else {"separator": one.format}), "max_length": one.length}
        for one in facts
        if one.kind == "multi-valued"
    }
    derive = _derived(found, [name for one in labels for name in (one.name, one.column)], comments)
    if not (categorical or numeric or several or derive):
        raise DataError("no column can be a field: all are constant or the number of the row")
    split, why = split_of(columns, found, labels[0].labels_N)
    comments["split"] = why
    rare = too_rare(labels, split, columns, found)
    for one in labels:
        if one.name in rare and not asked:
            comments[one.column] = "a label with too few rows of a class for the splits"
    said = [one for one in labels if asked or one.name not in rare]
    kinds: dict[str, dict[str, Any]] = {
        "categorical": {name: {} for name in [*categorical, *derive]},
        "numeric": numeric,
        "multi_valued": several,
    }
    _rename(kinds, comments)
    fields: dict[str, Any] = {"min_count": _min_count(facts, comments)}
    fields |= {kind: options for kind, options in kinds.items() if options}
    if not any(fields.get("categorical", {}).values()):
        fields["categorical"] = list(kinds["categorical"])
    values: dict[str, Any] = {**said_of(said), "split": split, "fields": fields}
    if derive:
        values["derive"] = derive
    values["format"] = {**form, "missing": missing}
    validate(DataConfig, values, "suggested data.yaml")
    return Suggestion(values, comments, rare)


def _rename(kinds: dict[str, dict[str, Any]], comments: dict[str, str]) -> None:
    """Gives columns whose names no field can bear, such as `probability`, fields of other names."""
    taken = {name for options in kinds.values() for name in options}
    for kind, options in kinds.items():
        renamed: dict[str, Any] = {}
        for column, keys in options.items():
            try:
                check_field_name(column)
                name = column
            except ValueError:
                name = f"column_{_plain(column)}"
                while name in taken:
                    name += "_"
                taken.add(name)
                if column in comments:
                    comments[name] = comments.pop(column)
                keys = {"column": column, **keys}
            renamed[name] = keys
        kinds[kind] = renamed


def _missing(
    facts: Sequence[ColumnFacts],
    columns: Mapping[str, TextColumn],
    categorical: list[str],
    comments: dict[str, str],
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The texts that mean a missing value everywhere, and the numeric fields: a word that some numeric column has for
    it may be a value of another (NA is a country), and then it is missing in the number alone."""
    texts = {word for name in categorical for word in _words_of(columns[name])}
    missing, numeric = [""], {}
    for one in facts:
        if one.kind != "numeric":
            continue
        numeric[one.name] = {"transform": "log", "standardise": True}
        clash = sorted(set(one.missing_words) & texts)
        if clash:
            numeric[one.name]["missing_values"] = clash
            comments[one.name] = f"'{clash[0]}' is missing here only: another column may have it as a value"
        missing += [word for word in one.missing_words if word not in (*missing, *clash)]
    return missing, numeric


def _words_of(column: TextColumn) -> set[str]:
    there = set(column.texts.to_pylist()) if len(column.texts) < 1 << 20 else set()
    return {word for word in MISSING_WORDS if word in there}


def _derived(found: Sequence[Found], labels: Sequence[str], comments: dict[str, str]) -> dict[str, Any]:
    derive: dict[str, Any] = {}
    taken = {one.facts.name for one in found} | {*labels}
    for facts, times in ((one.facts, one.times) for one in found if one.times is not None and one.facts.kind == "time"):
        free = set() if facts.also_categorical else {facts.name}
        takes = parts_of(times.format)
        days = len(set(times.days_V))
        if days < _LEAST_DAYS:
            takes = tuple(take for take in takes if take == "hour")
            why = f"{days} {'day is' if days == 1 else 'days are'} too few to learn weekdays from"
            comments.setdefault(facts.name, why)
        for take in takes:
            name = next(name for name in _names(take, facts.name) if name not in taken - free)
            taken.add(name)
            derive[name] = {"column": facts.name, "take": take, "format": times.format}
    return derive


def _names(take: str, column: str) -> list[str]:
    return [take, *(f"{_plain(column)}_{take}{'_' * more}" for more in range(10))]


def _min_count(facts: Sequence[ColumnFacts], comments: dict[str, str]) -> int:
    """The least that tells later rows as much as any other; above 1 where they bring unseen tokens, whose id must be
    trained."""
    known = [one for one in facts if one.unseen]
    if not known:
        return 1
    total = {least: sum(max(one.gains[least], 0.0) for one in known) for least in MIN_COUNTS}
    # A field that is always new says nothing of the others.
    most = max(known, key=lambda one: (one.unseen[1] < 0.995, one.unseen[1]))
    fits = [least for least in MIN_COUNTS if total[least] >= 0.99 * max(total.values())]
    if most.unseen[1] > _FEW_UNSEEN:
        fits = [least for least in fits if least > 1] or [2]
        shares = ", ".join(f"{most.unseen[least]:.0%} at {least}" for least in MIN_COUNTS)
        comments["min_count"] = f"later rows without a token of '{most.name}', the worst: {shares}"
    return fits[0]
