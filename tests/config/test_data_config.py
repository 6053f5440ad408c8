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
