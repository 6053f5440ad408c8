"""The drawing of a model has a box for each part that its configuration names."""

from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from dmoe.cli.main import build_app
from dmoe.config.run import load_config, presets
from dmoe.report.drawing import model_drawing

SVG = "{http://www.w3.org/2000/svg}"


def boxes(text: str, kind: str) -> int:
    return sum(one.get("class") == kind for one in ElementTree.fromstring(text).iter(f"{SVG}rect"))


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_drawn_with_all_its_parts(preset):
    model = load_config(preset, []).model
    text = model_drawing(load_config(preset, []))
    assert boxes(text, "expert") == len(model.experts) + sum(len(level.experts) for level in model.levels)
    assert boxes(text, "tower") == 1
    alone = len(model.experts) == 1 and "per" not in model.experts[0] and model.experts[0].get("count", 1) == 1
    assert boxes(text, "gate") == (0 if alone else 2)
    view = [float(one) for one in ElementTree.fromstring(text).get("viewBox", "").split()]
    for one in ElementTree.fromstring(text).iter(f"{SVG}rect"):
        assert float(one.get("x", -1)) + float(one.get("width", -1)) <= view[2]
        assert float(one.get("y", -1)) + float(one.get("height", -1)) <= view[3]


@pytest.mark.parametrize(
    ("overrides", "tables"),
    [
        (["model.tables=shared"], 2),
        (["model.tables=per-expert"], 4),
        (["model.tables=[0,1,0]"], 3),
        (["model.tables=[0,0,0]"], 2),
        (["model.tables=shared", "model.gate.table=0"], 2),
    ],
)
def test_the_tables_are_those_that_experts_and_gate_read(overrides, tables):
    experts = "model.experts=[{kind: cin}, {kind: dcnv2}, {kind: fm}]"
    assert boxes(model_drawing(load_config("d-moe", [experts, *overrides])), "table") == tables


def test_the_loss_is_named_where_there_is_one():
    assert "corr of the outputs" in model_drawing(load_config("d-moe", []))
    assert "corr of the outputs" not in model_drawing(load_config("me-moe", []))


def test_the_benchmark_form_has_neither_gate_nor_mixture():
    text = model_drawing(load_config("single", ["model.form=benchmark", "model.experts=[{kind: deepfm}]"]))
    assert (boxes(text, "gate"), boxes(text, "table"), boxes(text, "expert")) == (0, 1, 1)


def test_the_command_writes_it_beside_the_configuration(tmp_path):
    path = tmp_path / "model.svg"
    done = CliRunner().invoke(build_app("config"), ["config", "--preset", "ple", "--drawing", str(path)])
    assert done.exit_code == 0, done.output
    assert path.read_text(encoding="utf-8") == model_drawing(load_config("ple", []))
    assert done.output.startswith("model:")


def test_another_ending_is_refused(tmp_path):
    done = CliRunner().invoke(build_app("config"), ["config", "--preset", "ple", "--drawing", str(tmp_path / "a.png")])
    assert "written as .svg" in str(done.exception)
