"""Kinds and options of experts as a configuration says them, checked before anything is built."""

import pytest

from dmoe.cli.main import main
from dmoe.errors import ConfigError
from dmoe.nn.experts.options import check_experts


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ({"kind": "crosnet"}, r"\[1\]: no expert 'crosnet'; did you mean 'crossnet'"),
        ({"kind": "crossnet", "layer": 3}, r"\[1\]: expert 'crossnet' has no option 'layer'; did you mean 'layers'"),
        ({"kind": "crossnet", "layers": "three"}, r"\[1\]\.layers must be int, got 'three'"),
        ({"kind": "crossnet", "layers": True}, r"\[1\]\.layers must be int, got True"),
        ({"kind": "dnn", "dropout": float("nan")}, r"\[1\]\.dropout must be float, got nan"),
        ({"kind": "cin", "units": [8, 1.5]}, r"\[1\]\.units must be Sequence\[int\], got \[8, 1.5\]"),
        ({"kind": "cin", "num_fields": 3}, r"\[1\]: expert 'cin' has no option 'num_fields'"),
    ],
)
def test_a_fault_is_named_with_its_place(expert: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml: 'model\.experts': experts" + message):
        check_experts([{"kind": "fm"}, expert], "run.yaml")


def test_what_every_expert_may_say_is_no_option() -> None:
    check_experts([{"kind": "cin", "units": [8], "fields": ["ads"]}, {"kind": "crossnet"}], "run.yaml")


@pytest.mark.parametrize("command", [["config"], ["train", "--data", "absent", "--output", "run"]])
def test_commands_say_so_before_they_read_data(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "model.experts=[{kind: crossnet, layer: 3}]"])
    assert end.value.code == 2
    said = "dmoe: configuration: 'model.experts': experts[0]: expert 'crossnet' has no option 'layer'; did you mean"
    assert capsys.readouterr().err.strip() == f"{said} 'layers'?"
