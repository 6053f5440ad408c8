"""`data.yaml`: what is accepted, and what a mistake is told."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from dmoe.config.data import DataConfig, parse_split, read_data_config
from dmoe.errors import ConfigError

DESIGN = """
label: click
split: {kind: ordered, train: 0.8, valid: 0.1, test: 0.1}
fields:
  categorical: [site_id, device_ip, user]
  numeric: [price]
  min_count: 2
"""


def read(folder: Path, text: str) -> DataConfig:
    path = folder / "data.yaml"
    path.write_text(text)
    return read_data_config(path)


def test_lists_and_mappings_say_the_same(tmp_path: Path) -> None:
    config = read(tmp_path, DESIGN)
    mapping = DESIGN.replace("[site_id, device_ip, user]", "{site_id: {}, device_ip: , user: {}}").replace(
        "[price]", "{price: {transform: value}}"
    )
    assert read(tmp_path, mapping) == config
    assert list(config.fields.categorical) == ["site_id", "device_ip", "user"]
    assert config.min_count("user") == 2
    assert config.columns() == ["click", "price", "site_id", "device_ip", "user"]


def test_min_count_of_a_field_goes_first(tmp_path: Path) -> None:
    config = read(tmp_path, DESIGN.replace("[site_id, device_ip, user]", "{site_id: {min_count: 10}, user: {}}"))
    assert [config.min_count(name) for name in ("site_id", "user")] == [10, 2]


def test_dump_reads_back(tmp_path: Path) -> None:
    config = read(tmp_path, DESIGN)
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labl": "y"}, "unknown key 'labl'; did you mean 'label'?"),
        ({"fields": {"categorcal": ["a"]}}, "unknown key 'fields.categorcal'; did you mean 'categorical'?"),
        ({"fields": {"categorical": {"a": {"min_cont": 2}}}}, "categorical.a.min_cont'; did you mean 'min_count'?"),
        ({"fields": {"numeric": {"a": {"transfrm": "log"}}}}, "'fields.numeric.a.transfrm'; did you mean 'transform'?"),
        ({"fields": {"numeric": {"a": {"transform": "sqrt"}}}}, "fields.numeric.a.transform"),
        ({"fields": {"numeric": {"a": {"min_count": 2}}}}, "'min_count' goes with 'transform: bucket or"),
        ({"fields": {"numeric": {"a": {"standardise": True}}}}, "'standardise: true' goes with 'transform: log'"),
        ({"fields": {}}, "name at least one field"),
        ({"fields": {"categorical": ["a", "a"]}}, "appear twice: a"),
        ({"fields": {"categorical": ["a"], "numeric": ["a"]}}, "appear twice: a"),
        ({"fields": {"categorical": ["click"]}}, "'click' is the label and cannot be a field too"),
        ({"split": {"kind": "ordered", "seed": 3}}, "'seed' has no meaning for split kind 'ordered'"),
        ({"split": {"kind": "given", "train": 0.5}}, "'train' has no meaning for split kind 'given'"),
        ({"split": {"kind": "time"}}, "split kind 'time' needs 'column'"),
        ({"split": {"train": 0.7}}, "must sum to 1, got train 0.7, valid 0.1, test 0.1; say all three"),
        ({"format": {"header": False}}, "a file without a header needs 'columns'"),
        ({"format": {"columns": ["a"]}}, "set 'header: false' too"),
        ({"format": {"delimiter": "ab"}}, "must be 'auto' or one ASCII character"),
        ({"derive": {"w": {"column": "t", "take": "weekday", "format": "iso"}}}, "'w' is used by no field"),
        ({"derive": {"a": {"column": "t", "take": "sql", "format": "iso"}}}, "derive.a.take"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_file_and_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import yaml

    values = {"label": "click", "fields": {"categorical": ["a"]}} | change
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, yaml.safe_dump(values))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "data.yaml"))


TASKS: dict[str, Any] = {
    "labels": {"click": {"column": "is_click"}, "buy": {"given": "click"}},
    "fields": {"categorical": ["a", "tab"], "numeric": ["price"]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "click"}, "'label' and 'labels' are both given; say 'labels' alone, the main one first"),
        ({"labels": {}}, "key 'label' is missing"),
        ({"labels": {"click": {"colum": "x"}}}, "unknown key 'labels.click.colum'; did you mean 'column'?"),
        ({"labels": {"click": {}, "a": {}}}, "'a' is the label and cannot be a field too"),
        ({"labels": {"click": "a", "b": {}}}, "'a' is the label 'click' and cannot be a field too"),
        ({"labels": {"click": "x", "a": "y"}}, "'a' is the name of a label and of a field; name one of them"),
        ({"labels": {"click": {"given": "buy"}, "buy": {"given": "click"}}}, "'click' given 'buy' given 'click' is a"),
        ({"labels": {"click": {}, "buy": {"given": "buy"}}}, "'buy' given 'buy' is a cycle"),
        ({"labels": {"click": {}, "buy": {"given": "clik"}}}, "buy: given 'clik', which is no label; did you mean"),
        ({"labels": {"click": {"given": "view"}}}, "labels.click: given 'view', which is no label"),
        ({"labels": {"my.click": {}, "b": {}}}, "'my.click' holds '.', which joins the names of outputs"),
        ({"labels": {"a+b": {}, "b": {}}}, "'a+b' holds '+', which joins the names of outputs"),
        ({"labels": {" ": {}, "b": {}}}, "the name ' ' is empty or holds a control character"),
        ({"labels": ["click", "click"]}, "labels: these names appear twice: click"),
        ({"labels": {"click": {"missing": "skip"}}}, "'labels.click.missing'"),
        ({"labels": ["b", "c"], "contradictions": "reject"}, "'contradictions: reject' is about labels that are"),
        ({"contradictions": "raise"}, "'contradictions': Input should be 'keep', 'reject' or 'raise-parent'"),
        ({"domain": "tabs"}, "domain: 'tabs' is no categorical field; did you mean 'tab'?"),
        ({"domain": "price"}, "domain: 'price' is no categorical field"),
        ({"domain": {"column": "tab", "min_count": 0}}, "'domain.min_count'"),
        ({"weight": "a"}, "'a' is the weight and cannot be a field too"),
        ({"weight": "buy"}, "'buy' is the weight and cannot be a label too"),
        ({"weight": "is_click"}, "'is_click' is the weight and cannot be a label too"),
        ({"split": {"kind": "stratified", "label": "bye"}}, "split.label: no label 'bye'; did you mean 'buy'?"),
    ],
)  # fmt: skip
def test_mistakes_about_several_labels_are_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import yaml

    with pytest.raises(ConfigError) as caught:
        read(tmp_path, yaml.safe_dump(TASKS | change, sort_keys=False))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "data.yaml"))


def test_labels_are_said_in_several_ways(tmp_path: Path) -> None:
    rest = "domain: t\nweight: {column: w}\nfields: {categorical: {a: {}, tab: {column: t}}}\n"
    long = read(tmp_path, "labels:\n  click: {column: click}\n  no: {column: no, given: click}\n" + rest)
    assert read(tmp_path, "labels: {click: , no: {given: click}}\n" + rest) == long
    assert list(long.tasks) == ["click", "no"]
    assert [label.missing for label in long.tasks.values()] == ["unknown", "unknown"]
    assert long.domain_field() == "tab"
    assert long.columns() == ["click", "no", "w", "a", "t"]
    assert DataConfig.model_validate(long.model_dump(mode="json")) == long
    assert read(tmp_path, "labels: [click, no]\n" + rest).label_columns() == ["click", "no"]
    twice = "fields: {categorical: {a: {column: t}, b: {column: t}}}\n"
    with pytest.raises(ConfigError, match="the column 't' has several fields; name one of a, b"):
        read(tmp_path, "label: y\ndomain: t\n" + twice)
    assert read(tmp_path, "label: y\ndomain: b\n" + twice).domain_field() == "b"


def test_one_label_is_written_as_it_always_was(tmp_path: Path) -> None:
    plain = read(tmp_path, DESIGN).model_dump(mode="json")
    assert list(plain) == ["description", "checks", "label", "split", "fields", "derive", "format"]
    assert list(plain["split"]) == ["kind", "train", "valid", "test", "seed", "column", "format"]
    assert read(tmp_path, DESIGN.replace("label: click", "labels: [click]")).model_dump(mode="json") == plain


def test_split_on_the_command_line() -> None:
    split = parse_split("random,train=0.7,valid=0.1,test=0.2,seed=3")
    assert (split.kind, split.seed) == ("random", 3)
    assert split.shares() == {"train": Fraction(7, 10), "valid": Fraction(1, 10), "test": Fraction(2, 10)}
    assert parse_split("time,column=hour").column == "hour"
    for text, message in (
        ("random,0.7", "'0.7' is not key=value"),
        ("random,seed=1,seed=2", "key 'seed' appears twice"),
        ("random,sed=1", "unknown key 'sed'; did you mean 'seed'?"),
        ("random,seed=x", "'seed': Input should be a valid integer"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_split(text)
        assert message in str(caught.value)
