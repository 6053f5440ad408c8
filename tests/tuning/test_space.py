"""The search space: what a file may say, what it comes to, and what is refused before anything runs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.config.run import load_config, presets
from dmoe.errors import ConfigError
from dmoe.tuning.space import Space, load_space, make_space, spaces
from dmoe.yaml_text import parse_yaml

BASE = load_config("d-moe")


def space_of(text: str, base=BASE) -> Space:
    indented = "\n".join(f"  {line}" for line in text.strip().splitlines())
    return make_space(parse_yaml(f"parameters:\n{indented}", "space.yaml"), "space.yaml", base)


def first_of(parameter):
    return parameter.ends()[0]


def test_each_kind_of_parameter():
    space = space_of("""
optimiser.lr: {low: 1e-4, high: 1, log: true}
model.tower_dropout: {low: 0, high: 1e-1}
training.batch_size: {low: 256, high: 1024, step: 256}
model.experts.1.layers: {low: 1, high: 4}
model.tower_units: {choices: [[64], [64, 32]]}
training.calibration: {choices: [none, auto]}
method:
  changes:
    shared: {model.tables: shared, decorrelation: []}
    apart: {model.tables: per-expert}
alpha: {key: decorrelation.0.alpha, low: 0.1, high: 10, when: {method: apart}}
""")
    kinds = {one.name: one.kind for one in space.parameters}
    assert kinds == {
        "optimiser.lr": "float",
        "model.tower_dropout": "float",
        "training.batch_size": "int",
        "model.experts.1.layers": "int",
        "model.tower_units": "choice",
        "training.calibration": "choice",
        "method": "choice",
        "alpha": "float",
    }
    assert "alpha" not in space.draw(first_of)
    drawn = space.draw(lambda one: one.ends()[-1])
    config = space.config(BASE, drawn)
    assert (config.optimiser.lr, config.model.tower_dropout, config.training.batch_size) == (1.0, 0.1, 1024)
    assert config.model.experts[1]["layers"] == 4
    assert (config.model.tower_units, config.model.tables) == ([64, 32], "per-expert")
    assert config.decorrelation[0].alpha == 10
    shared = space.config(BASE, space.draw(first_of))
    assert (shared.model.tables, shared.decorrelation, shared.training.calibration) == ("shared", [], "none")
    assert shared.training.batch_size == 256
    assert Space.of_facts("space.yaml", space.facts()) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser.lrr: {low: 1e-4, high: 1e-2}", "space.yaml: unknown key 'optimiser.lrr'; did you mean 'lr'?"),
        ("optimizer: {choices: [{lr: 1}]}", "unknown key 'optimizer'; did you mean 'optimiser'?"),
        ("model.experts.1.layer: {low: 1, high: 3}", "no option 'layer'; did you mean 'layers'?"),
        ("model.experts.7.layers: {low: 1, high: 3}", "'model.experts.7' must number an entry of a list of 2"),
        ("x: {changes: {a: {model.table: shared}}}", "unknown key 'model.table'; did you mean 'tables'?"),
        ("optimiser.lr: {low: 0, high: 1e-2}", "'optimiser.lr': Input should be greater than 0"),
        ("optimiser.embedding: {choices: [dense, lasy]}", "'optimiser.embedding': Input should be 'deferred', 'dense'"),
        ("training.batch_size: {low: 1.5, high: 8.5}", "'training.batch_size': Input should be a valid integer"),
        ("optimiser.lr: {low: 1e-2, high: 1e-4}", "low must be below high, got 0.01 and 0.0001"),
        ("optimiser.lr: {low: 0, high: 1, log: true}", "starts above 0, got low 0"),
        ("optimiser.lr: {low: 1e-4}", "a range needs both low and high"),
        ("optimiser.lr: {low: 1e-4, high: 1e-2, choices: [1]}", "needs either low and high, or choices, or changes"),
        ("optimiser.lr: {}", "needs either low and high, or choices, or changes"),
        ("optimiser.lr: {choices: [1], log: true}", "'log' and 'step' are for a range"),
        ("optimiser.lr: {choices: []}", "has nothing to choose from"),
        ("optimiser.lr: {choices: [1, 1]}", "choice 1 appears twice"),
        ("optimiser.lr: {low: 1, high: 2, stepp: 1}", "unknown key 'parameters.optimiser.lr.stepp'; did you mean"),
        ("training.seed: {low: 1, high: 9}", "'training.seed' cannot be searched: a seed that is chosen is luck"),
        ("training: {choices: [{seed: 1}, {seed: 2}]}", "'training.seed' cannot be searched"),
        ("training.monitor: {choices: [auc, logloss]}", "'training.monitor' cannot be searched"),
        ("a: {key: optimiser.lr, low: 1, high: 2, when: {b: 1}}", "no parameter 'b' comes before it"),
        (
            "model.tables: {choices: [shared]}\noptimiser.lr: {low: 1, high: 2, when: {model.tables: share}}",
            "'model.tables' has no choice 'share'; did you mean 'shared'?",
        ),
        (
            "optimiser.lr: {low: 1, high: 2}\nmodel.tower_dropout: {low: 0, high: 0.5, when: {optimiser.lr: 1}}",
            "'optimiser.lr' is a range; a condition is on a parameter with choices",
        ),
        (
            "optimiser.lr: {low: 1, high: 2}\nagain: {key: optimiser.lr, low: 1, high: 2}",
            "'again' sets the same key as 'optimiser.lr' before it",
        ),
        (
            "model.experts.1.layers: {low: 1, high: 3}\nmodel.experts: {choices: [[{kind: cin}]]}",
            "'model.experts' sets model.experts as a whole, and with it 'model.experts.1.layers'",
        ),
    ],
)
def test_a_bad_space_is_one_sentence_that_names_the_key(text, message):
    with pytest.raises(ConfigError) as caught:
        space_of(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("space.yaml: ")
    assert "\n" not in str(caught.value)


def test_conditions_that_exclude_each_other_may_set_one_key():
    space = space_of("""
optimiser.embedding: {choices: [deferred, lazy]}
fast: {key: optimiser.lr, low: 1e-3, high: 1e-2, when: {optimiser.embedding: lazy}}
slow: {key: optimiser.lr, low: 1e-5, high: 1e-4, when: {optimiser.embedding: deferred}}
""")
    assert space.config(BASE, {"optimiser.embedding": "lazy", "fast": 0.005}).optimiser.lr == 0.005


def test_a_value_that_needs_another_beside_it_is_no_fault():
    space = space_of("""
model.gate.kind: {choices: [softmax, top-k]}
model.gate.k: {choices: [2], when: {model.gate.kind: top-k}}
model.gate.balance: {choices: [importance], when: {model.gate.kind: top-k}}
""")
    config = space.config(BASE, {"model.gate.kind": "top-k", "model.gate.k": "2", "model.gate.balance": "importance"})
    assert config.model.gate.k == 2


@pytest.mark.parametrize("preset", presets())
def test_every_preset_has_a_space(preset):
    assert preset in spaces()
    load_space(preset, load_config(preset))


def test_no_space_is_named_by_its_likes():
    with pytest.raises(ConfigError, match="--space d-moee: neither a file nor a space; did you mean 'd-moe'"):
        load_space("d-moee", BASE)


SHIPPED = {name: load_space(name, load_config(name)) for name in spaces()}


@settings(max_examples=30)
@given(st.data())
def test_every_point_of_a_shipped_space_is_a_configuration(data):
    preset = data.draw(st.sampled_from(presets()))
    base = load_config(preset)
    space = SHIPPED[preset]

    def suggest(one):
        if one.kind == "choice":
            return data.draw(st.sampled_from(one.labels))
        if one.kind == "int":
            return data.draw(st.integers(one.low, one.high))
        return data.draw(st.floats(one.low, one.high))

    drawn = space.draw(suggest)
    config = space.config(base, drawn)
    for one in space.parameters:
        if one.kind == "int" and one.key == "model.experts.0.count":
            assert config.model.experts[0]["count"] == drawn[one.name]
