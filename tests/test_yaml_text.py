"""What a name is that YAML would read as something else, and what is refused with its line."""

import json
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dmoe.config.data import DataConfig, read_data_config
from dmoe.config.run import load_config
from dmoe.errors import ConfigError
from dmoe.validation import validate
from dmoe.yaml_text import parse_yaml, read_yaml, settled

TRAPS = ["no", "on", "off", "yes", "y", "N", "null", "~", "true", "False", "01", "007", "1e3", ".5", "5.", "1_000"]
TRAPS += ["0x1F", "0o17", "12:30:45", "2014-10-21", ".nan", ".inf", "-1", "=", "1"]


class Inner(BaseModel):
    name: str | None = None
    rate: float = 0.0
    on: bool = False


class Model(BaseModel):
    names: tuple[str, ...] = ()
    choice: Literal["no", "yes"] | None = None
    inner: dict[str, Inner] = {}
    number: int | Literal["auto"] = 0
    anything: dict[str, object] = {}


def read(text: str) -> Model:
    return validate(Model, parse_yaml(text, "m.yaml"), "m.yaml")


@pytest.mark.parametrize("name", TRAPS)
def test_names_stand_as_they_are_written_in_every_place_of_a_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(
        f"label: {name}x\nsplit: {{kind: random}}\nfields:\n  categorical:\n    {name}: {{missing_values: [{name}]}}\n"
        f"  numeric: [a, {name}b]\n"
        f"format: {{header: false, columns: [{name}x, {name}, a, {name}b], missing: [{name}]}}\n"
    )
    config = read_data_config(tmp_path / "data.yaml")
    assert list(config.fields.categorical) == [name]
    assert config.fields.categorical[name].missing_values == config.format.missing == (name,)
    assert list(config.fields.numeric) == ["a", f"{name}b"]
    listed = validate(DataConfig, parse_yaml(f"label: x\nfields: {{categorical: [{name}]}}", ""), "")
    assert list(listed.fields.categorical) == [name]


@given(st.lists(st.text("noyeNull~0123456789_:.-+eTtrFas ", min_size=1).map(str.strip).filter(bool), min_size=1))
def test_a_plain_list_of_names_is_its_source_text(names: list[str]) -> None:
    text = "names: [" + ", ".join(names) + "]"
    try:
        nodes = yaml.compose(text)
    except yaml.YAMLError:
        return
    assert nodes is not None
    entries = nodes.value[0][1].value
    if all(isinstance(node, yaml.ScalarNode) for node in entries):
        assert read(text).names == tuple(node.value for node in entries)


def test_where_no_name_is_expected_numbers_truth_values_and_null_are_read() -> None:
    text = (
        "inner: {a: {name: null, rate: 1e-3, on: yes}, b: {name: 'null', rate: .5, on: false}}\nchoice: no\nnumber: 3"
    )
    found = read(text)
    assert found.inner["a"] == Inner(name=None, rate=1e-3, on=True)
    assert found.inner["b"] == Inner(name="null", rate=0.5, on=False)
    assert (found.choice, found.number) == ("no", 3)
    assert read("choice: null\nnumber: auto").choice is None
    loose = settled(parse_yaml("a: [1, 1.5, true, ~, no, 01, 2014-10-21, '1', .inf, -.inf]", ""))
    assert loose == {"a": [1, 1.5, True, None, "no", "01", "2014-10-21", "1", float("inf"), float("-inf")]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"m\.yaml:3: not valid YAML: key 'a' appears twice"),
        ("inner:\n  no: {}\n  'no': {}\n", r"m\.yaml:3: .*key 'no' appears twice"),
        ("inner: {a: {rate: 1, rate: 2}}", r"m\.yaml:1: .*key 'rate' appears twice"),
        ("names:\n\t- a\n", r"m\.yaml:2: not valid YAML: a tab where spaces are expected"),
        ("- a\n- b\n", r"m\.yaml: expected a mapping of keys to values \(key: value\), got a list"),
        ("word", r"got a single value"),
        ("? [a, b]\n: 1\n", r"m\.yaml:1: .*a key must be a text"),
        ("a: !!python/name:os.system x", r"m\.yaml:1: .*tag"),
        ("a: !!binary aGk=", r"m\.yaml:1: .*tag .*binary"),
        ("a: &a [*a]", r"m\.yaml:1: .*anchor holds itself"),
        ("a: 1\n---\nb: 2\n", r"m\.yaml:2: .*another document"),
        ("names: [a", r"m\.yaml:\d: not valid YAML"),
        ("a: " + "[" * 5000, r"m\.yaml: not valid YAML: nested too deeply"),
        ("a: &a 1\nb: {<<: *a}", r"m\.yaml:2: .*'<<' takes mappings only"),
    ],
)
def test_what_is_refused_names_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "m.yaml")
    assert "\n" not in str(caught.value)


def test_aliases_are_bounded_and_merge_keys_work() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40)
    )
    with pytest.raises(ConfigError, match="more than 1,000,000 values once its aliases are written out"):
        parse_yaml(bomb, "m.yaml")
    merged = read("inner:\n  a: &base {name: x, rate: 2}\n  b: {<<: *base, name: y}\n  c: {name: z, <<: [*base]}\n")
    assert merged.inner["b"] == Inner(name="y", rate=2)
    assert merged.inner["c"] == Inner(name="z", rate=2)


def test_files_that_are_no_text_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_bytes(b"label: caf\xe9\n")
    with pytest.raises(ConfigError, match="byte 10 is not UTF-8"):
        read_yaml(path)
    path.write_bytes(b"\xef\xbb\xbflabel: y\n")
    assert settled(read_yaml(path)) == {"label": "y"}
    for empty in ("", "# nothing\n", "~\n"):
        path.write_text(empty)
        with pytest.raises(ConfigError, match=r"data\.yaml: is empty"):
            read_data_config(path)


def test_what_is_no_readable_file_is_told(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as stream:
        stream.truncate(1 << 29)  # a hole, which takes no room on the disk
    (tmp_path / "folder.yaml").mkdir()
    for name, said in (("huge", "larger than 256 MiB"), ("folder", "is a folder; expected a"), ("no", "no such file")):
        with pytest.raises(ConfigError, match=rf"{name}\.yaml: {said}"):
            read_yaml(tmp_path / f"{name}.yaml")


def test_overrides_keep_names_and_read_numbers() -> None:
    assert load_config("d-moe", ["training.seed=1_000"]).training.seed == 1000
    with pytest.raises(ConfigError, match="seed"):
        load_config("d-moe", ["training.seed=12:30"])
    with pytest.raises(ConfigError, match="seed"):
        load_config("d-moe", ["training.seed=no"])


def test_json_is_read_with_its_escapes() -> None:
    text = '{"a": "\\ud83d\\ude00", "\\ud83d\\ude00": ["\\u00e9\\uD834\\uDD1E"]}'
    assert parse_yaml(text, "x") == json.loads(text)
    assert parse_yaml(r'a: "\ud83d b"', "x") == {"a": "\ud83d b"}  # half of one is no character
