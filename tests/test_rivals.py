"""Peers trained on our splits: what is chosen, what is kept, and (slow, with the peers installed) their models."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from benchmarks import rival_runs, rivals
from benchmarks.__main__ import DEFAULT_ENVIRONMENTS
from benchmarks.environments import ROOT, python_of
from benchmarks.rival_runs import Rows, RunError, Trainer, check_fields, start_worker
from benchmarks.rival_search import MODELS, Budget, Run, Setting, goodness, search, spread
from benchmarks.workers.fitting import Split, summed_l2
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.errors import DataError
from dmoe.schema import AnyField, CategoricalField, MultiValuedField, NumericField, Schema, Vectors

SIZES = (7, 30, 5)
ROWS = {"train": 1200, "valid": 400, "test": 400}
TINY = Budget(
    embedding_dim=2,
    hidden_units=(6,),
    cin_units=(3,),
    cross_layers=2,
    batch_size=100,
    epochs=2,
    evaluations_per_epoch=2,
    patience=2,
    learning_rate=1e-2,
    lr_decay=0.3,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set folder whose label depends on every field; each split in two files."""
    random = np.random.default_rng(1)
    effects = [random.normal(size=size) for size in SIZES]
    fields: list[AnyField] = [CategoricalField(name=f"c{i}", vocabulary_size=size) for i, size in enumerate(SIZES)]
    folder = tmp_path / "data"
    for name, rows in ROWS.items():
        (folder / name).mkdir(parents=True)
        ids = [random.integers(0, size, rows).astype(np.int32) for size in SIZES]
        number = random.normal(size=rows).astype(np.float32)
        logit = sum(effect[column] for effect, column in zip(effects, ids, strict=True)) + number
        label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8)
        table = pa.table({**{f"c{i}": column for i, column in enumerate(ids)}, "price": number, "label": label})
        parquet.write_table(table.slice(0, 150), folder / name / "part-00000.parquet")
        parquet.write_table(table.slice(150), folder / name / "part-00001.parquet")
    Schema(label="label", fields=(*fields, NumericField(name="price"))).write(folder)
    return folder


def made_up(scores: dict[tuple[float, tuple[int, ...]], float], asked: list[Run]) -> Callable[[Run], dict[str, Any]]:
    """A trainer by rule: validation AUC as given, and test figures that say the opposite."""

    def train(run: Run) -> dict[str, Any]:
        asked.append(run)
        auc = scores[run.setting.embedding_l2, run.setting.hidden_units] + run.seed / 1e6
        return {
            "seed": run.seed,
            "valid": {"auc": auc, "logloss": 0.5},
            "test": {"auc": 1 - auc, "logloss": 0.5},
            "folder": str(len(asked)),
        }

    return train


def test_the_setting_is_chosen_on_validation_alone() -> None:
    scores = {(0.1, (6,)): 0.70, (0.01, (6,)): 0.73, (0.001, (6,)): 0.73, (0.01, (9, 9)): 0.72}
    asked: list[Run] = []
    found = search("fuxictr", "dnn", TINY, [5, 6, 7], [0.1, 0.01, 0.001], (9, 9), made_up(scores, asked))
    tried = [(run.setting.embedding_l2, run.setting.hidden_units) for run in asked]
    # The wide layers only at the best L2; of two equal ones the first.
    assert tried == [(0.1, (6,)), (0.01, (6,)), (0.001, (6,)), (0.01, (9, 9)), *[(0.01, (6,))] * 3]
    assert [run.seed for run in asked] == [5, 5, 5, 5, 5, 6, 7]
    assert found["chosen"] == {"embedding_l2": 0.01, "hidden_units": (6,)}
    assert [choice["valid"]["auc"] for choice in found["choices"]] == pytest.approx(
        [0.700005, 0.730005, 0.730005, 0.720005]
    )
    aucs = [0.730005, 0.730006, 0.730007]
    summary = found["summary"]
    assert summary["valid"]["auc"] == {"mean": pytest.approx(np.mean(aucs)), "std": pytest.approx(np.std(aucs, ddof=1))}
    assert summary["test"]["auc"]["mean"] == pytest.approx(1 - np.mean(aucs))


def test_wide_layers_win_where_they_are_better_and_are_not_tried_without_hidden_layers() -> None:
    scores = {(0.1, (6,)): 0.70, (0.1, (9, 9)): 0.71}
    asked: list[Run] = []
    found = search("deepctr", "nfm", TINY, [5], [0.1], (9, 9), made_up(scores, asked))
    assert found["chosen"]["hidden_units"] == (9, 9)
    assert found["summary"]["valid"]["auc"]["std"] is None
    asked.clear()
    for model, wide in (("fm", (9, 9)), ("lr", (9, 9)), ("dnn", ()), ("dnn", (6,))):
        search("fuxictr", model, TINY, [5], [0.1], wide, made_up(scores, asked))
    assert {run.setting.hidden_units for run in asked} == {(6,)}


def test_a_lower_logloss_counts_as_a_higher_auc() -> None:
    assert goodness({"valid": {"auc": 0.7, "logloss": 0.4}}) > goodness({"valid": {"auc": 0.75, "logloss": 0.46}})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_spread_is_the_sample_standard_deviation(values: list[float]) -> None:
    found = spread(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_the_budget_is_that_of_our_small_size() -> None:
    budget = Budget.of_size("small")
    assert (budget.embedding_dim, budget.hidden_units, budget.cin_units, budget.cross_layers) == (4, (64,), (32,), 3)
    assert (budget.batch_size, budget.epochs, budget.evaluations_per_epoch, budget.patience) == (500, 6, 2, 2)
    assert (budget.learning_rate, budget.lr_decay) == (1e-3, 0.3)


@given(st.floats(1e-8, 1.0), st.integers(1, 64))
def test_l2_of_a_summed_loss_pulls_as_hard_as_ours(embedding_l2: float, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(batch_size)
    x = torch.randn(batch_size, 3, generator=generator, dtype=torch.float64)
    labels = (torch.rand(batch_size, generator=generator, dtype=torch.float64) < 0.5).double()

    def gradient(reduction: str, l2: float) -> torch.Tensor:
        weight = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight, labels, reduction=reduction)
        (found,) = torch.autograd.grad(loss + l2 * weight.square().sum(), weight)
        return found

    ours = gradient("mean", embedding_l2 / 2)
    theirs = gradient("sum", summed_l2(embedding_l2, batch_size))
    torch.testing.assert_close(theirs, batch_size * ours)


def fake_worker(started: list[dict[str, Any]], harm: str = "") -> Callable[..., None]:
    """Scores rows by their first id: what a worker leaves, without a peer."""

    def start(python: Path, module: str, job: Path, threads: int, log: Path) -> None:
        del python, threads, log
        told = json.loads(job.read_text(encoding="utf-8"))
        started.append({**told, "module": module})
        if harm == "dies":
            raise RunError("it died")
        splits = {name: Split.read(told["splits"][name]) for name in ("valid", "test")}
        logits = {name: one.ids_RC[:, 0] / 10 - 0.3 for name, one in splits.items()}
        labels, scores = splits["valid"].labels_R, logits["valid"]
        best = roc_auc_score(labels, scores) - log_loss(labels, 1 / (1 + np.exp(-scores)))
        if harm == "nan":
            logits["test"][3] = np.nan
        if harm == "other rows":
            logits["valid"] = logits["valid"][::-1]
        np.savez(job.parent / "scores.npz", **logits)
        fit = {"seconds": 1.0, "epochs": 2, "best": best, "parameters": 9, "peak_bytes": 1, "versions": {}}
        (job.parent / "fit.json").write_text(json.dumps(fit), encoding="utf-8")

    return start


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The jobs of workers that were started; none trains."""
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr(rival_runs, "python_of", lambda *_: Path(sys.executable))
    monkeypatch.setattr(rivals, "python_of", lambda *_: Path(sys.executable))
    monkeypatch.setattr(rival_runs, "start_worker", fake_worker(jobs))
    return jobs


def test_splits_are_exported_row_by_row(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    rows = Rows.export(data, output, ("fuxictr", "deepctr"))
    for name in ROWS:
        table = pa.concat_tables([parquet.read_table(path) for path in sorted((data / name).glob("*.parquet"))])
        split = Split.read(rows.files[name])
        for column in range(len(SIZES)):
            assert split.ids_RC[:, column].tolist() == table[f"c{column}"].to_pylist()
        assert split.numeric_RN[:, 0].tolist() == table["price"].to_pylist()
        assert split.labels_R.tolist() == table["label"].to_pylist()
    assert Rows.export(data, output, ("fuxictr",)).fingerprint == rows.fingerprint
    narrow = Rows.export(data, output, ("fuxictr",), numeric=False)
    assert narrow.fingerprint != rows.fingerprint
    assert narrow.num_numeric == 0
    assert Split.read(narrow.files["valid"]).numeric_RN.shape == (ROWS["valid"], 0)
    np.testing.assert_array_equal(Split.read(narrow.files["valid"]).ids_RC, Split.read(rows.files["valid"]).ids_RC)
    table = parquet.read_table(data / "test" / "part-00001.parquet")
    parquet.write_table(table.slice(1), data / "test" / "part-00001.parquet")
    assert Rows.export(data, output, ("fuxictr",)).fingerprint != rows.fingerprint


def test_a_finished_run_is_not_repeated(
    data: Path, tmp_path: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["--data", str(data), "--output", str(output), "--seeds", "2", "--size", "tiny", "--jobs", "2"]
    words += ["--models", "dcnv2", "fm"]
    assert rivals.main(words) == 0
    # Three L2 and one wide setting of two DCNv2, three of FM; all with one seed more.
    assert len(started) == 2 * (4 + 1) + (3 + 1)
    assert {job["module"] for job in started} == {"fuxictr_fit", "deepctr_fit"}
    first = json.loads((output / "rivals.json").read_text(encoding="utf-8"))
    summary = first["models"][0]["summary"]["test"]["auc"]
    assert f"{summary['mean']:.4f} ±{summary['std']:.4f}" in capsys.readouterr().out
    assert [(one["peer"], one["model"]) for one in first["models"]] == [
        ("fuxictr", "dcnv2"), ("deepctr", "dcnv2"), ("fuxictr", "fm")
    ]  # fmt: skip
    assert rivals.main(words) == 0
    assert len(started) == 14
    second = json.loads((output / "rivals.json").read_text(encoding="utf-8"))
    assert second["models"] == first["models"]
    assert rivals.main([*words, "--models", "lr"]) == 0
    third = json.loads((output / "rivals.json").read_text(encoding="utf-8"))
    assert third["models"][1:] == first["models"]
    assert third["models"][0]["model"] == "lr"
    del started[14:]
    assert rivals.main([*words, "--embedding-l2", "0.5", "--wide"]) == 0
    assert len(started) == 14 + 3 * 2
    assert started[-1]["embedding_l2"] == 0.5
    assert not list(output.glob(".*"))


def test_an_interrupted_call_starts_nothing_more_and_is_continued(
    data: Path, tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    words = ["--data", str(data), "--output", str(output), "--seeds", "1", "--size", "tiny", "--models", "ifm", "dnn"]
    words += ["--jobs", "2"]
    whole = fake_worker(started)

    def interrupted(python: Path, module: str, *arguments: Any) -> None:
        if module == "deepctr_fit":
            raise KeyboardInterrupt
        time.sleep(0.5)
        whole(python, module, *arguments)

    monkeypatch.setattr(rival_runs, "start_worker", interrupted)
    assert rivals.main(words) == 130
    assert len(started) == 1  # the one under way, and none of the three after it
    monkeypatch.setattr(rival_runs, "start_worker", whole)
    assert rivals.main(words) == 0
    assert len(started) == 2 * (3 + 1)


def test_scores_are_those_of_the_splits_rows(data: Path, tmp_path: Path, started: list[dict[str, Any]]) -> None:
    output = tmp_path / "out"
    words = ["--data", str(data), "--output", str(output), "--seeds", "1", "--size", "tiny", "--models", "afn"]
    assert rivals.main(words) == 0
    (model,) = json.loads((output / "rivals.json").read_text(encoding="utf-8"))["models"]
    (run,) = model["seeds"]
    scores = parquet.read_table(output / run["scores"]).to_pandas()
    assert scores.columns.tolist() == ["split", "row", "label", "logit"]
    for name in ("valid", "test"):
        paths = sorted((data / name).glob("*.parquet"))
        wanted = pa.concat_tables([parquet.read_table(path) for path in paths]).to_pandas()
        found = scores[scores["split"] == name]
        assert found["row"].tolist() == list(range(ROWS[name]))
        assert found["label"].tolist() == wanted["label"].tolist()
        np.testing.assert_allclose(found["logit"], wanted["c0"] / 10 - 0.3)
        assert run[name]["auc"] == pytest.approx(roc_auc_score(found["label"], found["logit"]))
        assert run[name]["logloss"] == pytest.approx(log_loss(found["label"], 1 / (1 + np.exp(-found["logit"]))))
    assert started[0]["vocabulary_sizes"] == list(SIZES)
    assert started[0]["num_numeric"] == 1
    assert {path.name for path in (output / run["folder"]).iterdir()} == {"job.json", "result.json", "scores.parquet"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("dies", "it died"),
        ("nan", "its test scores are not one finite number a row"),
        ("other rows", r"its validation scores give AUC - logloss .*, but its own loop kept weights of"),
    ],
)
def test_a_model_that_fails_is_left_out_and_nothing_of_it_stays(
    data: Path, tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, harm: str, message: str
) -> None:
    monkeypatch.setattr(rival_runs, "start_worker", fake_worker(started, harm))
    output = tmp_path / "out"
    assert rivals.main(["--data", str(data), "--output", str(output), "--size", "tiny", "--models", "ifm"]) == 1
    report = json.loads((output / "rivals.json").read_text(encoding="utf-8"))
    assert re.search(message, report["models"][0]["left_out"])
    assert [path.name for path in output.iterdir() if path.is_dir()] == [f"rows-{report['data']['fingerprint']}"]


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text("{}", encoding="utf-8")
    log = tmp_path / "logs" / "log"
    with pytest.raises(RunError, match=r"deepctr_fit ended with code 1: ModuleNotFoundError.*deepctr_torch.*; see "):
        start_worker(Path(sys.executable), "deepctr_fit", job, 1, log)
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_fields_that_peers_cannot_take_are_refused(tmp_path: Path) -> None:
    plain = CategoricalField(name="site", vocabulary_size=9)
    refused: list[tuple[AnyField, str]] = [
        (MultiValuedField(name="tags", vocabulary_size=9, max_length=3), "field 'tags' is multi-valued"),
        (plain.model_copy(update={"name": "ad", "embedding_dim": 8}), "field 'ad' has an embedding_dim of its own"),
        (plain.model_copy(update={"name": "ad", "vectors": Vectors(width=3)}), "field 'ad' has given vectors"),
        (CategoricalField(name="ip", vocabulary_size=1 << 25), "field 'ip' has 33554432 ids, but DeepCTR-Torch"),
    ]
    for field, message in refused:
        schema = Schema(label="label", fields=(plain, field))
        with pytest.raises(DataError, match=message):
            check_fields(schema, tmp_path, ("deepctr",))
    check_fields(Schema(label="label", fields=(plain, refused[-1][0])), tmp_path, ("fuxictr",))
    with pytest.raises(DataError, match="has no categorical field"):
        check_fields(Schema(label="label", fields=(NumericField(name="price"),)), tmp_path, ("fuxictr",))


def test_wrong_usage_ends_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "out")]
    for more, message in (
        (["--models", "dcnv9"], "no model 'dcnv9' in the peers named; known: fuxictr: dcnv2, "),
        (["--peers", "deepctr", "--models", "masknet"], "no model 'masknet' in the peers named; known: deepctr: "),
        (["--seeds", "0"], "must be at least 1"),
        (["--embedding-l2", "-1"], "must be a number from 0 up"),
    ):
        with pytest.raises(SystemExit) as stopped:
            rivals.parse([*words, *more])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert rivals.main(words) == 2
    assert "has no schema.json" in capsys.readouterr().err
    assert rivals.main([*words, "--size", "smal"]) == 2
    assert "--size smal: no such size; did you mean" in capsys.readouterr().err


def test_the_peers_take_turns(tmp_path: Path) -> None:
    chosen = rivals.parse(["--data", str(tmp_path), "--output", str(tmp_path)]).chosen
    assert chosen[:4] == [("fuxictr", "dcnv2"), ("deepctr", "dcnv2"), ("fuxictr", "deepfm"), ("deepctr", "deepfm")]
    assert sorted(chosen) == sorted((peer, model) for peer, models in MODELS.items() for model in models)


def numbers_by_hand(model: str, budget: Budget) -> int | None:
    """Trained numbers of FuxiCTR's models by closed form; None where DeepCTR-Torch's own class decides."""
    fields, dim, hidden = len(SIZES) + 1, budget.embedding_dim, budget.hidden_units[0]
    width, pairs = fields * dim, comb(fields, 2)
    tables, first_order = (sum(SIZES) + 1) * dim, sum(SIZES) + 1 + 1

    def mlp(inputs: int) -> int:
        return (inputs + 1) * hidden + hidden + 1

    masks = 3 * (2 * (width + 1) * width + width * 64 + 2 * 64) + fields * 2 * dim
    return {
        "lr": first_order,
        "fm": tables + first_order,
        "dnn": tables + mlp(width),
        "deepfm": tables + first_order + mlp(width),
        "dcnv2": tables + budget.cross_layers * (width + 1) * width + (width + 1) * hidden + width + hidden + 1,
        "xdeepfm": tables + first_order + mlp(width) + (fields**2 + 1) * 3 + 3 + 1,
        "ipnn": tables + mlp(width + pairs),
        "autoint+": tables + mlp(width) + 4 * dim * 8 + 3 * 8 * 8 + fields * 8 + 1,
        "fibinet": tables + first_order + mlp(2 * pairs * dim) + 2 * pairs * dim**2 + 2 * fields * (fields // 3),
        "masknet": tables + masks + mlp(3 * 64),
        "finalmlp": tables + 2 * (dim + (dim + 1) * 64 + 65 * width + (width + 1) * hidden + hidden + 1) + hidden**2,
    }.get(model)


# Runs in FuxiCTR's environment: what is ours in its models, against loops over rows, fields and units.
FORMULAS = """
import numpy as np, torch
from benchmarks.workers.fuxictr_fit import Attention, MaskBlocks, TwoStreams

torch.manual_seed(1)
F, D, H = 3, 2, 4
x = torch.randn(2, F, D, dtype=torch.float64)
relu = lambda value: np.maximum(value, 0)
get = lambda tensor: tensor.detach().numpy()
affine = lambda linear, value: get(linear.weight) @ value + (0 if linear.bias is None else get(linear.bias))
layer_norm = lambda value: (value - value.mean()) / np.sqrt(value.var() + 1e-5)

attention = Attention(D, H).double()
masks = MaskBlocks(F, D).double()
streams = TwoStreams(F, D, [H]).double()
streams.init_weights()
for context in streams.contexts:
    torch.nn.init.normal_(context)
for row, fields in enumerate(x.numpy()):
    for i in range(F):
        weights = np.exp([affine(attention.query, fields[i]) @ affine(attention.key, fields[j]) for j in range(F)])
        mixed = sum(w / weights.sum() * affine(attention.value, fields[j]) for j, w in enumerate(weights))
        np.testing.assert_allclose(get(attention(x))[row, i], relu(mixed + affine(attention.residual, fields[i])))
    flat, normed, wanted = fields.ravel(), np.concatenate([layer_norm(field) for field in fields]), []
    for mask, hidden in zip(masks.masks, masks.hidden):
        gate = affine(mask.mlp[2], relu(affine(mask.mlp[0], flat)))
        wanted.append(relu(layer_norm(affine(hidden[0], gate * normed))))
    np.testing.assert_allclose(get(masks(x))[row], np.concatenate(wanted))
    ends, logit = [], 0.0
    for one in range(2):
        gate = affine(streams.gates[one].mlp[2], relu(affine(streams.gates[one].mlp[0], get(streams.contexts[one]))))
        ends.append(relu(affine(streams.streams[one].mlp[0], flat * 2 / (1 + np.exp(-gate)))))
        logit += affine(streams.linears[one], ends[one])[0]
    logit += sum(get(streams.product.weight)[0, i, j] * ends[0][i] * ends[1][j] for i in range(H) for j in range(H))
    np.testing.assert_allclose(get(streams(x))[row, 0], logit)
"""


@pytest.mark.slow
def test_what_is_ours_in_fuxictrs_models_is_the_formula() -> None:
    python = installed("fuxictr")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(python), "-c", FORMULAS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def installed(peer: str) -> Path:
    """The interpreter of a peer's environment, which no test makes."""
    environments = DEFAULT_ENVIRONMENTS.expanduser()
    if not (environments / peer / "installed.txt").is_file():
        pytest.skip(f"{peer} is not installed; `python -m benchmarks dcnv2` does it")
    return python_of(peer, environments)


@pytest.mark.slow
@pytest.mark.parametrize("peer", list(MODELS))
def test_every_model_of_a_peer_learns_in_its_own_loop(peer: str, data: Path, tmp_path: Path) -> None:
    installed(peer)
    environments = DEFAULT_ENVIRONMENTS.expanduser()
    trainer = Trainer(Rows.export(data, tmp_path, (peer,)), tmp_path, environments, threads=1)
    for model in MODELS[peer]:
        run = Run(peer, model, Setting(1e-4, TINY.hidden_units), 3, TINY)
        # That the scores are of the best weights and of our rows is checked by the trainer, against the peer's loop.
        result = trainer(run)
        assert result["valid"]["auc"] > 0.6, model
        assert result["test"]["auc"] > 0.6, model
        if peer == "fuxictr":
            assert result["parameters"] == numbers_by_hand(model, TINY), model
    again = tmp_path / "again"
    again.mkdir()
    run = Run(peer, MODELS[peer][0], Setting(1e-4, TINY.hidden_units), 3, TINY)
    folders = [tmp_path / trainer(run)["folder"], again / Trainer(trainer.rows, again, environments, 1)(run)["folder"]]
    first, second = (parquet.read_table(folder / "scores.parquet") for folder in folders)
    assert first.equals(second)
