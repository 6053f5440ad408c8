"""Tables, verdicts and the report of runs whose truth is known, because their logits were drawn."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from dmoe.cli.main import main
from dmoe.config.run import RunConfig
from dmoe.disk.files import read_json, write_json
from dmoe.errors import ConfigError, DataError
from dmoe.experiments import statistics
from dmoe.experiments.results import write_results
from dmoe.experiments.summary import ExperimentSummary
from dmoe.report.experiment import write_experiment_report
from dmoe.report.experiment_tables import structures
from tests.experiments.fake import alpha_of, fake_folder
from tests.report.page import Page


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """The bootstrap is tested by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP_DRAWS", 50)
        yield


@pytest.fixture(scope="module")
def better_loss(tmp_path_factory: pytest.TempPathFactory) -> ExperimentSummary:
    """The loss is worth much, tables of their own nothing, a shared table beats one expert by a little."""
    folder = fake_folder(
        tmp_path_factory.mktemp("experiment") / "e",
        ("table1", "fig1"),
        quality=lambda config: 1.0 + 0.2 * (alpha_of(config) > 0),
    )
    return ExperimentSummary(folder)


def test_a_real_difference_holds_and_none_is_not_resolved(better_loss: ExperimentSummary) -> None:
    claims = {(one.text, one.metric): one for one in better_loss.claims()}
    real = claims["The de-correlation loss beats a table for each expert", "auc"]
    # Six models in table 1 and CIN + CIN in figure 1: comparisons that both hold are counted once.
    assert (real.number("holds"), real.number("contradicted"), real.number("not resolved")) == (7, 0, 0)
    none = claims["A table for each expert beats a shared one", "auc"]
    assert (none.number("holds"), none.number("contradicted")) == (0, 0)
    lower = claims["The de-correlation loss lowers CEC", "cec"]
    assert lower.number("holds") == 7
    assert all(one.compared.difference < 0 for one in lower.decided)


def test_the_opposite_of_a_claim_contradicts_it(tmp_path: Path) -> None:
    folder = fake_folder(tmp_path / "e", ("fig5", "table2"), quality=lambda config: 1.0 - 0.2 * (alpha_of(config) > 0))
    table = next(table for table in ExperimentSummary(folder).tables if table.name == "table2")
    assert {one.verdict for one in table.decided if one.than == "Without loss"} == {"contradicted"}
    assert table.marks("CrossNet", "Output") == {"contradicted"}


def test_differences_are_those_of_the_files(better_loss: ExperimentSummary) -> None:
    table = better_loss.tables[0]
    one = next(one for one in table.decided if (one.row, one.better, one.metric) == ("NFM", "ME+Loss", "auc"))
    first, second = table.places["NFM", "ME"], table.places["NFM", "ME+Loss"]
    differences = [second.runs[seed]["auc"] - first.runs[seed]["auc"] for seed in (1, 2, 3)]
    assert one.compared.difference == pytest.approx(np.mean(differences), abs=1e-6)
    assert one.compared.seed_std == pytest.approx(np.std(differences, ddof=1), rel=1e-3)
    assert one.adjusted >= one.compared.p


def test_trend_has_the_sign_of_the_runs(better_loss: ExperimentSummary) -> None:
    found = better_loss.tables[1].trend
    assert found is not None
    assert found[0] < 0  # the loss lowers CEC and raises AUC


def test_what_is_missing_is_said_and_nothing_breaks(tmp_path: Path) -> None:
    folder = fake_folder(
        tmp_path / "e",
        ("table1",),
        keep=lambda config: config.training.seed == 1 and not config.decorrelation,
        quality=lambda config: 1.0 + 0.3 * (config.model.tables != "shared"),
    )
    summary = ExperimentSummary(folder)
    table = summary.tables[0]
    assert table.places["NFM", "ME+Loss"].missing == "not run yet"
    assert summary.number_finished == 18
    assert {one.compared.seeds for one in table.decided} == {1}
    # One seed decides nothing, however large the difference.
    assert {one.verdict for one in table.decided} == {"not resolved"}
    assert min(one.adjusted for one in table.decided) < 0.05
    write_experiment_report(folder.path, tmp_path / "page.html", summary)
    page = (tmp_path / "page.html").read_text()
    assert "not run yet" in page
    assert "runs are missing" in page


def test_models_are_averaged_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    def keep(config: RunConfig) -> bool:
        return config.training.seed < 3 or config.model.experts[0]["kind"] == "nfm"

    table = ExperimentSummary(fake_folder(tmp_path / "e", ("fig5",), keep=keep)).tables[0]
    one = table.pooled[0]
    assert (one.better, one.metric, one.compared.seeds) == ("ME+Loss", "cec", 2)
    places = [(table.places[model, "ME"], table.places[model, "ME+Loss"]) for model in table.grid.models]
    assert len(places[0][0].runs) == 3
    by_seed = [
        np.mean([second.runs[seed]["cec"] - first.runs[seed]["cec"] for first, second in places]) for seed in (1, 2)
    ]
    assert one.compared.difference == pytest.approx(np.mean(by_seed))
    assert one.compared.seed_std == pytest.approx(np.std(by_seed, ddof=1))


def test_figures_of_another_configuration_are_refused(tmp_path: Path) -> None:
    """As when a default has changed since: the recorded configuration no longer has the folder's name."""
    folder = fake_folder(tmp_path / "e", ("fig5",), seeds=1)
    key = folder.arms("fig5")[0].cell(1).key
    path = folder.cell(key) / "cell.json"
    values = read_json(path)
    del values["config"]["training"]["patience"]  # a key that did not exist then
    write_json(path, values)
    assert key in folder.finished()
    values["config"]["training"]["patience"] = 7
    write_json(path, values)
    with pytest.raises(DataError, match=f"{key}.*is not that of its folder; remove the folder"):
        ExperimentSummary(folder)


def test_the_ensemble_is_the_mean_of_its_members_logits(tmp_path: Path) -> None:
    folder = fake_folder(tmp_path / "e", ("controls",))
    summary = ExperimentSummary(folder)
    table = summary.tables[0]
    place = table.places["CIN + CrossNet", "Two single experts"]
    left, right = place.cells[3].split("+")
    kinds = [summary.finished[key]["config"]["model"]["experts"][0]["kind"] for key in (left, right)]
    seeds = [summary.finished[key]["config"]["training"]["seed"] for key in (left, right)]
    assert (kinds, seeds) == (["cin", "crossnet"], [3, 1])
    test = [
        parquet.read_table(folder.cell(key) / "scores.parquet", filters=[("split", "=", "test")]).to_pandas()
        for key in (left, right)
    ]
    from sklearn.metrics import roc_auc_score

    mean = (test[0]["logit"] + test[1]["logit"]) / 2
    assert place.runs[3]["auc"] == pytest.approx(roc_auc_score(test[0]["label"], mean), abs=1e-6)


def test_two_seeds_of_one_kind_make_one_ensemble(tmp_path: Path) -> None:
    places = ExperimentSummary(fake_folder(tmp_path / "e", ("controls",), seeds=2)).tables[0].places
    assert len(places["CrossNet", "Two single experts"].runs) == 1
    assert len(places["CIN + CrossNet", "Two single experts"].runs) == 2


def test_results_are_tidy_and_both_forms_agree(better_loss: ExperimentSummary) -> None:
    write_results(better_loss)
    folder = better_loss.folder.path
    table = parquet.read_table(folder / "results.parquet").to_pandas()
    assert not table.duplicated(["experiment", "model", "variant", "seed", "split", "metric"]).any()
    one = table.query("experiment == 'table1' and model == 'DCNv2' and variant == 'ME' and metric == 'auc'")
    assert sorted(zip(one["split"], one["seed"], strict=True)) == sorted(
        (split, seed) for split in ("valid", "test") for seed in (1, 2, 3)
    )
    with (folder / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(table)
    assert float(rows[5]["value"]) == pytest.approx(table["value"][5])
    with (folder / "search.csv").open() as lines:
        searches = list(csv.DictReader(lines))
    assert sum(row["chosen"] == "true" for row in searches) == 7


@pytest.fixture(scope="module")
def page(better_loss: ExperimentSummary) -> str:
    output = better_loss.folder.path / "page.html"
    write_experiment_report(better_loss.folder.path, output, better_loss)
    return output.read_text(encoding="utf-8")


def test_the_page_is_whole_and_stands_alone(page: str, better_loss: ExperimentSummary) -> None:
    parsed = Page(better_loss.folder.path / "page.html")
    assert parsed.faults == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link["href"] for link in parsed.named("a")} <= {f"#{one}" for one in parsed.ids}
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert "<script" not in page


def test_the_page_shows_our_numbers_beside_the_papers(page: str, better_loss: ExperimentSummary) -> None:
    mean = better_loss.tables[0].places["DCNv2", "ME+Loss"].spread("auc")
    assert mean is not None
    assert f"{mean.mean:.5f} ± {mean.std:.5f}" in page
    assert "0.794900" in page
    assert "Slip of the paper" in page
    assert page.count('class="num best"') >= 6


def test_tables_and_figures_are_files_too(page: str, better_loss: ExperimentSummary) -> None:
    folder = better_loss.folder.path
    assert page
    markdown = (folder / "tables" / "table1-auc.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("| DCNv2 ")]
    assert len(rows) == 1
    assert rows[0].count("**") == 2
    latex = (folder / "tables" / "table1-auc.tex").read_text()
    assert latex.count(r"\textbf{") == 6
    assert r"$\pm$" in latex
    assert "±" not in latex
    for name in ("table1-differences", "fig1-auc-cec", "fig1-training-0"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawing = (folder / "figures" / f"{name}.svg").read_text()
        # The page's stand-in colours are gone.
        assert not re.search(r"#0(10101|20202|30303|40404|50505|a000\d)", drawing)


def test_equal_folders_give_equal_pages(page: str, better_loss: ExperimentSummary, tmp_path: Path) -> None:
    write_experiment_report(better_loss.folder.path, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_markdown_holds_every_table(better_loss: ExperimentSummary, page: str, tmp_path: Path) -> None:
    write_experiment_report(better_loss.folder.path, tmp_path / "page.md", better_loss)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page
    for path in sorted((better_loss.folder.path / "tables").glob("*.md")):
        assert path.read_text(encoding="utf-8") in text
    assert "0.794900" in text
    assert "&#" not in text
    # Every line of a table has as many cells as its head.
    for table in text.split("\n\n"):
        lines = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table


def test_structures_stand_with_the_expert_that_owns_them(tmp_path: Path) -> None:
    folder = fake_folder(tmp_path / "e", ("planted",), truth="log.truth.json")
    text = structures(ExperimentSummary(folder).tables[0])
    assert text is not None
    assert len(text.rows) == 6
    assert [(cell.text, cell.emphasis) for cell in text.rows[0][2:]] == [
        ("0.700 ± 0.000", "bold"),
        ("0.200 ± 0.000", ""),
        ("0.100 ± 0.000", ""),
        ("0.600 ± 0.000", "bold"),
    ]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_dmoe_report_knows_an_experiment_folder(better_loss: ExperimentSummary, tmp_path: Path, capfd) -> None:
    folder = better_loss.folder.path
    assert run("report", folder, "-o", tmp_path / "page.html") == 0
    assert "Claims" in (tmp_path / "page.html").read_text()
    assert run("report", folder, tmp_path, "-o", tmp_path / "page.html") == 2
    assert "stands alone" in capfd.readouterr().err
    with pytest.raises(ConfigError, match=r"ends in \.html or \.md"):
        write_experiment_report(folder, tmp_path / "page.pdf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel1"], "no experiment 'tabel1'; did you mean 'table1'"),
        (["table1", "--size", "huge"], "no such size"),
        (["planted"], "needs --truth"),
        (["table1", "--set", "optimiser.l2=1"], "unknown key"),
        (["table1", "--set", "training.seed=4"], "are what experiments vary"),
        (["table1", "--data", "nowhere"], "no such folder"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    small_data: Path,
    capfd,
) -> None:
    data = [] if "--data" in arguments else ["--data", small_data]
    assert run("experiment", *arguments, *data, "--output", tmp_path / "e") == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "e").exists()
