"""What run.yaml says of several labels and domains, and what is said of what does not fit the data."""

import pytest
import torch
import yaml

from dmoe.config.run import load_config
from dmoe.config.tasks import Owner, TaskConfig, tasks_of
from dmoe.errors import ConfigError
from dmoe.nn.build import build_model
from dmoe.schema import CategoricalField, Domain, Schema, Task

FIELDS = tuple(CategoricalField(name=name, vocabulary_size=4) for name in ("a", "tab"))
ONE = Schema(label="click", fields=FIELDS)
TWO = Schema(
    label="click",
    fields=FIELDS,
    labels=(Task(name="click"), Task(name="watch", given="click")),
    domain=Domain(field="tab", names=("home", "search", "other"), of_id=(0, 2, 0, 1)),
)
SMALL = ["model.expert_units=4", "model.tower_units=[3]", "model.embedding_dim=2"]


def test_one_label_writes_no_key_of_several():
    values = yaml.safe_load(load_config("paper").to_yaml())
    assert not {"heads", "gates", "foreign", "tasks"} & set(values["model"])
    kept = yaml.safe_load(load_config("paper", ["model.foreign=open"]).to_yaml())
    assert kept["model"]["foreign"] == "open"


def test_entries_stand_for_copies_and_for_experts_of_each_owner():
    experts = "model.experts=[{kind: dnn, hidden_units: [3], count: 2}, {kind: fm, per: task}]"
    config = load_config(None, [experts, "model.tables=per-owner", "model.gate.table=owner+shared", *SMALL])
    assert config.model.owned(2) == [(0, None), (0, None), (1, Owner("task", 0)), (1, Owner("task", 1))]
    assert config.model.table_of_expert(2) == [0, 0, 1, 2]
    model = build_model(config.model, TWO, seed=0)
    assert model.num_experts == 4
    assert model.table_of_expert == [0, 0, 1, 2]
    assert model.gate_reads[:2] == [(1, 0), (2, 0)]


def test_a_task_has_its_own_tower_and_the_star_the_rest():
    config = load_config("d-moe-tasks", [*SMALL, "model.tasks={watch: {tower_units: [5, 2]}, '*': {weight: 2}}"])
    model = build_model(config.model, TWO, seed=0)
    assert [tower.out_features for tower in model.towers] == [3, 2]
    said = tasks_of(config.model.tasks, ["click", "watch"])
    assert said == (TaskConfig(weight=2), TaskConfig(tower_units=[5, 2]))


def test_the_preset_of_tasks_is_d_moe_for_one_label():
    plain, tasks = (build_model(load_config(name, SMALL).model, ONE, seed=1) for name in ("d-moe", "d-moe-tasks"))
    assert list(plain.state_dict()) == list(tasks.state_dict())
    assert all(one.equal(other) for one, other in zip(plain.parameters(), tasks.parameters(), strict=True))


@pytest.mark.parametrize(
    ("preset", "experts", "heads", "parts"),
    [
        ("shared-bottom", 1, 2, {"experts": 1, "gates": 0}),
        ("mmoe", 8, 2, {"experts": 8, "gates": 2}),
        ("ple", 4, 2, {"experts": 4, "gates": 3, "levels": 1}),
        ("stem", 10, 2, {"experts": 10, "gates": 2}),
        ("esmm", 2, 2, {"experts": 2, "gates": 0}),
        ("d-moe-tasks", 2, 2, {"experts": 2, "gates": 2}),
    ],
)
def test_presets_are_the_models_they_are_named_after(preset, experts, heads, parts):
    model = build_model(load_config(preset, SMALL).model, TWO, seed=0)
    assert (model.num_experts, len(model.heads())) == (experts, heads)
    assert {name: len(getattr(model, name)) for name in parts} == parts
    if preset == "stem":
        assert model.table_of_expert == [0] * 8 + [1, 2]
        assert all(len(mixed.experts) == 10 and len(mixed.stopped) == 1 for mixed in model.mixed)


def test_levels_take_the_gate_and_the_units_of_the_model():
    first = "{experts: [{kind: mlp, hidden_units: [3], per: task}]}"
    config = load_config("ple", [*SMALL, f"model.levels=[{first}, {{experts: [{{kind: mlp}}], expert_units: 5}}]"])
    model = build_model(config.model, TWO, seed=0)
    assert [level.experts[0].align.out_features for level in model.levels] == [4, 5]
    assert model.levels[0].experts[0].interaction.out_features == 3
    assert yaml.safe_load(config.to_yaml())["model"]["levels"][1]["expert_units"] == 5
    assert [expert["kind"] for expert in config.model.mixed(TWO)] == ["mlp"]


@pytest.mark.parametrize(
    ("overrides", "schema", "message"),
    [
        (["model.tasks={watsch: {}}"], TWO, "model.tasks: no label 'watsch' in the data; did you mean 'watch'"),
        (["model.tasks={click: {wieght: 2}}"], TWO, "unknown key 'model.tasks.click.wieght'; did you mean 'weight'"),
        (["model.tasks={click: {weight: -1}}"], TWO, "'model.tasks.click.weight'.*greater than or equal to 0"),
        (["model.tasks={click: {tower_units: [0]}}"], TWO, "'tower_units' must be positive"),
        (["model.heads=domain"], ONE, "model.heads domain needs data whose domains are known"),
        (["model.heads=domain"], TWO, "are for one task; for 2 take 'task-and-domain'"),
        (["model.heads=domains"], TWO, "'model.heads'"),
        (["model.experts=[{kind: fm, count: 0}]"], TWO, r"'experts\[0\].count' must be a whole number of at least 1"),
        (["model.experts=[{kind: fm, per: user}]"], TWO, r"'experts\[0\].per' must be task or domain"),
        (["model.experts=[{kind: fm, per: domain}]"], TWO, "needs a head for each domain"),
        (["model.experts=[{kind: fm, per: task}]", "model.gates=one"], TWO, "set foreign: stopped or open"),
        (["model.gate.table=owner"], TWO, "'gate.table' owner needs tables: per-owner"),
        (["model.gate.table=owner", "model.tables=per-owner"], TWO, "one table of each head's owner, got 0"),
        (["model.levels=[{experts: [{kind: fm}]}]"], TWO, r"experts\[0\] of a level must be of kind mlp, got 'fm'"),
        (
            ["model.levels=[{experts: [{kind: mlp, units: 3}]}]"],
            TWO,
            r"levels\[0\].experts\[0\].*has no option 'units'",
        ),
        (["model.levels=[{experts: [{kind: mlp, hidden_units: [0]}]}]"], TWO, r"levels\[0\].experts\[0\].*at least 1"),
        (["model.levels=[{experts: [{kind: mlp, per: domain}]}]"], TWO, "needs a head for each domain"),
        (["model.levels=[{experts: [{kind: mlp}], gate: {table: 0}}]"], TWO, "leave out table and fields"),
        (
            ["model.heads=task-and-domain", "model.levels=[{experts: [{kind: mlp, per: task}]}]"],
            TWO,
            "task 0 owns needs one stream of it, got 3",
        ),
        (["model.gate.units=[]"], TWO, "'gate.units' must be 0, a width or a list of widths"),
        (["model.gate.units=-1"], TWO, "'gate.units' must be 0, a width or a list of widths"),
        (
            ["model.experts=[{kind: fm, per: task}]", "model.embedding_dim=[2, 2, 2]"],
            TWO,
            "'embedding_dim' lists 3 widths for 2 tables",
        ),
    ],
)
def test_what_does_not_fit_is_named(overrides, schema, message):
    with pytest.raises(ConfigError, match=message):
        build_model(load_config(None, overrides).model, schema, seed=0)


@pytest.mark.parametrize("preset", ["ple", "stem", "crocodile"])
def test_the_graph_of_several_tasks_can_be_exported(preset):
    config = load_config(preset, [*SMALL, *([] if preset != "crocodile" else ["model.heads=task-and-domain"])])
    model = build_model(config.model, TWO, seed=0).eval()

    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return tuple(part for task in self.model(ids).tasks for part in (task.logit, task.gate_weights))

    ids = torch.randint(0, 4, (6, 2))
    rows = torch.export.Dim("rows", min=1, max=64)
    graph = torch.export.export(Scores().eval(), (ids,), dynamic_shapes={"ids": {0: rows}}).module()
    for other in (ids, ids[:2]):
        torch.testing.assert_close(graph(other), Scores()(other))
