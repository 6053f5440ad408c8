"""Several labels and domains: the same probabilities from run, graph and files, by the names of the labels."""

import json
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from pyarrow import parquet

import dmoe
from dmoe.errors import DataError, UserError
from dmoe.export.manifest import Manifest
from dmoe.export.write import export
from dmoe.schema import OOV_ID
from dmoe.scoring.load import write_predictions
from dmoe.weights.run import Run
from tests.several_labels import untrained

NAMES = ["click", "conversion", "click+conversion", "like"]


def raw(run: Run, rows: int = 400) -> pd.DataFrame:
    """Rows of the log without labels, some of them of a domain that training never saw, or without one."""
    table = pd.read_csv(run.path.parent / "log.csv", dtype=str, keep_default_na=False)[:rows]
    table.loc[3::7, "slot"] = "99"
    table.loc[5::7, "slot"] = ""
    table.loc[2::9, "site"] = "never seen"
    return table.drop(columns=["click", "conversion", "like"])


def predicted(folder: Path, rows: object) -> dict[str, np.ndarray]:
    found = dmoe.load(folder).predict_proba(rows)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("looked_up", [False, True])
def test_run_and_graph_predict_every_label_alike(
    several: Run, several_in_graph: Path, tmp_path: Path, looked_up: bool
) -> None:
    if looked_up:
        export(several, tmp_path / "model", max_graph_tokens=0)
    folder = tmp_path / "model" if looked_up else several_in_graph
    manifest = Manifest.read(folder)
    rows = raw(several)
    ours, theirs = (predicted(one, rows) for one in (several.path, folder))
    assert list(ours) == list(theirs) == NAMES
    for name in NAMES:
        assert ours[name].dtype == theirs[name].dtype == np.float32
        assert ours[name].std() > 0.02
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)
    np.testing.assert_allclose(ours["click+conversion"], ours["click"] * ours["conversion"], rtol=1e-6)
    # Each label's own proof.
    assert {name: one.parity.known_rows for name, one in manifest.outputs.items()} == {
        "probability.click": None,
        "probability.conversion": pytest.approx(75, abs=30),
        "probability.click+conversion": None,
        "probability.like": pytest.approx(270, abs=20),
    }
    assert max(one.parity.max_abs_probability for one in manifest.outputs.values()) < 1e-6
    assert manifest.parity == manifest.outputs["probability.click"].parity
    assert [(one.name, one.given) for one in manifest.labels] == [
        ("click", None),
        ("conversion", "click"),
        ("like", None),
    ]
    assert manifest.domain is not None
    assert manifest.domain.names[-1] == "other"
    for one in manifest.outputs.values():
        assert sum(part.share for part in one.reference_scores) == pytest.approx(1)


def test_parity_is_measured_where_a_label_is_known(several: Run, several_in_graph: Path) -> None:
    """The proof's scores, from the log and the predictions alone: conversions of clicked rows, likes that are told."""
    log = pd.read_csv(several.path.parent / "log.csv")[2700:]
    found = {name: one[2700:] for name, one in predicted(several_in_graph, several.path.parent / "log.csv").items()}
    outputs = Manifest.read(several_in_graph).outputs
    clicked, told = (log["click"] == 1).to_numpy(), log["like"].notna().to_numpy()
    for name, label, kept in (
        ("conversion", log["conversion"], clicked),
        ("click+conversion", log["conversion"], np.ones(300, dtype=bool)),
        ("like", log["like"], told),
    ):
        positive = label.to_numpy()[kept] == 1
        scores = found[name][kept].astype(float)
        pairs = scores[positive][:, None] - scores[~positive]
        auc = float(((pairs > 0) + 0.5 * (pairs == 0)).mean())
        assert outputs[f"probability.{name}"].parity.auc_export == pytest.approx(auc, abs=1e-5)
        # Of float32 predictions, of which some are nearly 1.
        loss = -np.where(positive, np.log(scores), np.log1p(-scores)).mean()
        assert outputs[f"probability.{name}"].parity.logloss_torch == pytest.approx(loss, rel=1e-3)


def test_an_unseen_domain_has_the_head_that_the_schema_gives_it(several: Run, tmp_path: Path) -> None:
    """Another bias in that head of one label moves the rows of its domain and unseen ones, of that label alone."""
    rows = raw(several)
    domain = several.schema.domain
    assert domain is not None
    unseen = domain.of_id[OOV_ID]
    before = predicted(several.path, rows)
    changed = Run.create(tmp_path / "run", several.config, several.schema, several.path.parent / "data")
    model = several.load_model()
    (head,) = [one for one in model.heads() if (one.of.task, one.of.domain) == (2, unseen)]
    with torch.no_grad():
        head.output.bias.add_(2.0)
    changed.save_weights(model.state_dict())
    frequent = {name for number, name in enumerate(domain.names) if number != unseen and name != "other"}
    moves = (~rows["slot"].isin(frequent)).to_numpy()
    assert 0 < moves.sum() < len(rows)
    after = predicted(changed.path, rows)
    np.testing.assert_array_equal(np.abs(after["like"] - before["like"]) > 1e-5, moves)
    np.testing.assert_array_equal(after["conversion"], before["conversion"])


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["float16", "int8"])
def test_smaller_tables_of_several_labels(several: Run, tmp_path: Path, tables: str) -> None:
    manifest = export(several, tmp_path / "model", tables=tables)  # type: ignore[arg-type]
    rows = raw(several)
    ours, theirs = (predicted(folder, rows) for folder in (several.path, tmp_path / "model"))
    for name in NAMES:
        assert 0 < manifest.outputs[f"probability.{name}"].parity.max_abs_probability < 0.02
        np.testing.assert_allclose(ours[name], theirs[name], atol=0.02)


def test_predictions_have_a_column_for_each_probability(several: Run, several_in_graph: Path, tmp_path: Path) -> None:
    log = several.path.parent / "log.csv"
    expected = predicted(several.path, log)
    columns = [f"probability.{name}" for name in NAMES]
    for folder in (several.path, several_in_graph):
        scorer = dmoe.load(folder)
        write_predictions(scorer, [log], tmp_path / "out.parquet", keep=["slot", "click"])
        write_predictions(scorer, [log], tmp_path / "out.csv")
        typed, text = parquet.read_table(tmp_path / "out.parquet").to_pandas(), pd.read_csv(tmp_path / "out.csv")
        assert list(typed) == ["slot", "click", *columns]
        assert list(text) == columns
        for name in NAMES:
            np.testing.assert_allclose(typed[f"probability.{name}"], expected[name], atol=1e-6)
            np.testing.assert_allclose(text[f"probability.{name}"], expected[name], atol=1e-6)
        with pytest.raises(UserError, match=r"--keep probability\.click: is the name of the scores' own column"):
            write_predictions(scorer, [log], tmp_path / "no.csv", keep=["probability.click"])
        assert {name: len(one) for name, one in predicted(folder, raw(several)[:0]).items()} == dict.fromkeys(NAMES, 0)


def test_one_label_in_domains_has_the_names_of_one_label(tmp_path: Path) -> None:
    run = untrained(tmp_path, "model.heads=domain", labels=1, domain="slot")
    manifest = export(run, tmp_path / "model")
    assert (manifest.labels, manifest.outputs) == ((), {})
    assert manifest.domain is not None
    assert len(manifest.domain.names) == 8
    rows = raw(run)
    ours, theirs = (dmoe.load(folder).predict_proba(rows) for folder in (run.path, tmp_path / "model"))
    assert isinstance(ours, np.ndarray)
    assert ours.std() > 0.02
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["shared-bottom", "mmoe", "ple", "stem", "esmm", "d-moe-tasks", "crocodile"])
def test_every_preset_of_several_labels_or_domains_exports(preset: str, tmp_path: Path) -> None:
    several = preset != "crocodile"
    gate = [] if several else ["model.gate.fields=[user, ad]"]
    run = untrained(tmp_path, "model.embedding_dim=4", *gate, labels=3 if several else 1, domain="slot", preset=preset)
    export(run, tmp_path / "model")
    rows = raw(run)
    ours, theirs = (dmoe.load(folder).predict_proba(rows) for folder in (run.path, tmp_path / "model"))
    if isinstance(ours, np.ndarray):
        ours, theirs = {"click": ours}, {"click": theirs}
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    for name, one in ours.items():
        assert one.std() > 1e-3
        np.testing.assert_allclose(one, theirs[name], atol=1e-6)


def test_a_manifest_of_one_label_says_nothing_of_labels(in_graph: Path) -> None:
    values = json.loads((in_graph / "manifest.json").read_text())
    keys = "format_version tables inputs experts parity reference_scores versions files"
    parity = "split rows max_abs_probability max_abs_logit auc_torch auc_export logloss_torch logloss_export"
    assert list(values) == keys.split()
    assert list(values["parity"]) == parity.split()


def test_a_graph_without_an_output_of_a_label_is_refused(several_in_graph: Path, tmp_path: Path) -> None:
    """schema.json says another label than the graph has: told at once, not at the first request."""
    import hashlib
    import shutil

    shutil.copytree(several_in_graph, tmp_path / "model")
    schema = tmp_path / "model" / "schema.json"
    schema.write_text(schema.read_text().replace('"like"', '"likes"'))
    manifest = tmp_path / "model" / "manifest.json"
    values = json.loads(manifest.read_text())
    recorded = {"bytes": schema.stat().st_size, "sha256": hashlib.sha256(schema.read_bytes()).hexdigest()}
    values["files"]["schema.json"] = recorded
    manifest.write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"does not give probability\.click, probability\.conversion, .*; export the run"
    ):
        dmoe.load(tmp_path / "model")
