"""What run.yaml may say, and what is said of what it may not."""

import pytest
import yaml

from dmoe.config.run import RunConfig, load_config, preset_summary, presets
from dmoe.errors import ConfigError
from dmoe.schema import CategoricalField, Domain, NumericField, Schema


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_every_preset_loads_builds_and_says_what_it_is():
    from dmoe.nn.build import build_model, build_terms

    schema = Schema(
        label="click",
        fields=(
            CategoricalField(name="a", vocabulary_size=4, table_group="ad"),
            *(CategoricalField(name=f"c{i}", vocabulary_size=4, table_group="context") for i in range(2)),
            NumericField(name="n"),
        ),
    )
    assert {"single", "se-moe", "me-moe", "d-moe", "production", "d-moe-tasks"} <= set(presets())
    assert {"shared-bottom", "mmoe", "ple", "stem", "crocodile", "esmm"} <= set(presets())
    in_domains = schema.model_copy(update={"domain": Domain(field="a", names=("x", "y"), of_id=(0, 0, 0, 1))})
    for name in presets():
        config = load_config(name)
        model = build_model(config.model, schema if config.model.heads == "task" else in_domains, seed=0)
        assert len(build_terms(config.decorrelation, model)) == sum(term.alpha > 0 for term in config.decorrelation)
        assert len(preset_summary(name)) > 20


def test_the_resolved_yaml_loads_to_the_same_configuration(tmp_path):
    config = load_config("d-moe", ["training.epochs=3", "model.gate.table=1"])
    assert load_config(write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainning: {epochs: 3}", "unknown key 'trainning'; did you mean 'training'"),
        ("training: {epoch: 3}", "unknown key 'training.epoch'; did you mean 'epochs'"),
        ("decorrelation: [{alhpa: 1}]", r"unknown key 'decorrelation\[0\].alhpa'; did you mean 'alpha'"),
        ("model: {gate: {unit: 3}}", "unknown key 'model.gate.unit'; did you mean 'units'"),
        ("training: {epochs: 0}", "'training.epochs': .*greater than or equal to 1, got 0"),
        ("training: {epochs: many}", "'training.epochs': .*integer.*got 'many'"),
        ("model: {experts: [{layers: 3}]}", "key 'kind' is missing"),
        ("model: {experts: []}", "'model.experts'"),
        ("model: {tables: [0]}", "names 1 tables for 2 experts"),
        ("model: {tables: [0, 2]}", "number the tables 0, 1, 2"),
        ("model: {embedding_dim: [4]}", "lists 1 widths for 2 tables"),
        ("model: {gate: {table: 2}}", "gate.table"),
        ("decorrelation: [{loss: cov, norm: spectral}]", "must be l1 or l2, got 'spectral'"),
        ("model: {gate: {kind: top-k}}", "a top-k gate needs 'gate.k'"),
        ("model: {gate: {k: 1}}", "'gate.k' is for top-k and noisy-top-k, not softmax"),
        ("model: {gate: {kind: top-k, k: 1}}", "k 1 gives every row the weight 1, so nothing would train the gate"),
        ("model: {gate: {kind: top-k, k: 3}}", "'gate.k' must be at most 2 of 2 experts here, got 3"),
        ("model: {gate: {balance: switch}}", "'gate.balance' of a softmax gate must be importance, got 'switch'"),
        ("model: {gate: {balance_weight: 0.1}}", "needs gate.balance"),
        ("decorrelation: [{loss: vicreg, norm: l2}]", "must be left out: it is a mean of squares, got 'l2'"),
        ("decorrelation: [{loss: barlow-twins, scale: dimension-free}]", "is free of the width already"),
        ("decorrelation: [{loss: corr, variance_weight: 1}]", "is for loss vicreg, not 'corr'"),
        ("decorrelation: [{alpha: 1}]\nmodel: {experts: [{kind: fm}]}", "needs at least two experts"),
        ("decorrelation: [{alpha: 1}]\ntraining: {batch_size: 1}", "needs batches of at least two rows"),
        ("optimiser: {lr: 1.0e+38}", "less than or equal to 1000000"),
        ("decorrelation: [{alpha: 1, location: input}]\nmodel: {tables: shared}", "share a table"),
        ("optimiser: {embedding: lazy, embedding_l2: 1e-3}", "set embedding: deferred"),
        (
            "model: {embedding_storage: bfloat16}\noptimiser: {embedding: dense}",
            "'model.embedding_storage' bfloat16 needs optimiser.embedding: deferred.*got dense",
        ),
        ("model: {embedding_storage: int8}", "'model.embedding_storage'.*'float32', 'bfloat16' or 'float16'"),
        ("training: {device: gpu}", "must be auto, cpu, cuda"),
        ("training: {epochs: 3}\ntraining: {epochs: 4}", r"run\.yaml:2: .*'training' appears twice"),
        ("training: [", r"run\.yaml:\d+: not valid YAML"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_fault_is_named_with_its_key_and_the_nearest_known_one(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_all_faults_come_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "training: {epochs: 0, batch_size: 0}\nmodle: {}"))
    assert len(str(caught.value).splitlines()) == 3


def test_overrides_reach_into_lists_and_append():
    config = load_config(
        None,
        [
            "decorrelation.0.alpha=3",
            "decorrelation.0.loss=cov",
            "model.experts.0.units=[8]",
            "model.experts.1={kind: dnn}",
        ],
    )
    assert config.decorrelation[0].alpha == 3
    assert config.model.experts == [{"kind": "cin", "units": [8]}, {"kind": "dnn"}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "written key.path=value"),
        ("training.epochs=3=4", "integer"),
        ("decorrelation.3.alpha=1", "must number an entry"),
        ("training.epochs.x=1", "is a value, not a section"),
        ("training.epoks=3", "did you mean 'epochs'"),
    ],
)
def test_a_wrong_override_is_explained(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["training.epochs=2", override])


def test_an_absent_file_or_preset_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config("nowhere.yaml")
    with pytest.raises(ConfigError, match="neither a file nor a preset; did you mean 'd-moe'"):
        load_config("dmoe")


def test_the_default_is_the_paper_pair():
    values = yaml.safe_load(RunConfig().to_yaml())
    assert values["model"]["experts"] == [{"kind": "cin", "units": [276]}, {"kind": "crossnet", "layers": 3}]
    assert (values["model"]["expert_units"], values["model"]["gate"]["units"], values["model"]["tower_units"]) == (
        500,
        64,
        [500],
    )
