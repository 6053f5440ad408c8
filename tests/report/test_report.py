"""The page as a whole: what it says, that it is safe, self-contained, well formed and reproducible."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dmoe.errors import ConfigError, DataError
from dmoe.report import write_report
from tests.report.conftest import HOSTILE, MakeRun, write_run
from tests.report.page import Page

SECTIONS = ["result", "before", "training", "scores", "unseen", "calibration", "correlation", "gate", "experts"]
SETTINGS = ["data", "configuration", "environment"]


def _pages(folder: Path, shapes: dict[str, Any]) -> list[Page]:
    """One page for each shape: run names to the options of `write_run`."""
    pages = []
    for shape, runs in shapes.items():
        output = folder / f"{shape}.html"
        write_report([write_run(folder / shape / name, **options) for name, options in runs.items()], output)
        pages.append(Page(output))
    return pages


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The quickstart's comparison: shared tables, a table for each expert, and that with the loss."""
    runs = {
        "se": {"tables": "shared", "auc": 0.7506, "cec": 0.19},
        "me": {"auc": 0.7531, "cec": 0.11, "splits": ("train", "valid", "test")},
        "me-loss": {"alpha": 100.0, "auc": 0.7552, "cec": 0.0028, "dead": 40},
    }
    return _pages(tmp_path_factory.mktemp("three"), {"three": runs})[0]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, three: Page) -> list[Page]:
    """Pages of every shape: several runs, one, a single expert, five experts, an unfinished run, odd names."""
    odd = {
        "single": {"kinds": ("crossnet",)},
        "a/run": {"kinds": ("cin", "fm", "dnn", "dnn", "crossnet"), "alpha": 10.0, "field": HOSTILE},
        "b/run": {"epochs": 1, "steps": False},
        "labels": {"labels": True, "domains": True},
        "bare": {"epochs": 0, "splits": (), "steps": False, "finished": False},
        "<b>$x_1$ & \x01 点击": {"tables": [0, 0]},
    }
    return [three, *_pages(tmp_path_factory.mktemp("shapes"), {"one": {"alone": {}}, "odd": odd})]


def test_sections_are_in_order_with_the_comparison_first(three: Page) -> None:
    found = [values["id"] for values in three.named("section")]
    assert found == ["comparison", *SECTIONS, *SETTINGS]
    assert {values.get("href") for values in three.named("a")} == {f"#{name}" for name in found}


def test_comparison_shows_scores_differences_and_floors(three: Page) -> None:
    text = three.text("comparison")
    assert "AUC, test 0.75060 0.75310 +0.00250 0.75520 +0.00460" in text
    assert "Logloss, test 0.38940 0.38690 −0.00250 0.38480 −0.00460" in text
    assert "AUC, train – 0.75310 –" in text
    # The fixture's one pair of two experts has 0.7 of its `cec`; the floor is 0.8 / sqrt(100,000).
    assert "CEC of outputs, test 0.1330 0.0770 −0.0560 0.00196 −0.1310" in text
    assert "CEC noise floor 0.00253 0.00253 0.00253" in text
    assert "Dead output units 36 of 1,000 36 of 1,000 120 of 1,000" in text
    assert "Training rows/s 38,500" in text
    assert "Parameters 1,234,567" in text
    assert "model.tables shared per-expert per-expert" in text
    assert "decorrelation[0].alpha – – 100" in text
    assert "optimiser.lr" not in text


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> list[Page]:
    """A run of several labels in domains; two such runs, and one of one label; a run of one label in domains."""
    shapes = {
        "one": {"run": {"labels": True, "domains": True}},
        "two": {
            "first": {"labels": True, "auc": 0.75},
            "second": {"labels": True, "auc": 0.76, "domains": True},
            "plain": {},
        },
        "domains": {"run": {"domains": True}},
    }
    return _pages(tmp_path_factory.mktemp("labelled"), shapes)


def test_labels_chains_and_domains_have_scores_of_their_own(labelled: list[Page]) -> None:
    one, _, domains = labelled
    text = one.text("labels")
    assert "click 100,000 0 16.98% 0.75000 0.31234 12.50% 1.020" in text
    assert "watch given click 16,980 83,020 29.45% 0.72000 0.31234 12.50% 1.020" in text
    assert "click and watch 100,000 – 5.00% 0.85000 0.31234 12.50% 1.020" in text
    assert "like 90,000 10,000 2.00% 0.80000 0.31234" in text
    # The domains in the order of the data set, then both ways of taking them together.
    assert "click by domain on test Domain Rows Positive AUC Logloss Predicted / observed feed 25,000" in text
    assert f"{HOSTILE} 50,000 16.98% 0.71000" in text
    assert "other 10 0.00% – 0.31234 1.020 all rows together (micro) 100,000 16.98% 0.75000" in text
    assert "mean over domains (macro) – – 0.72000 0.32345 –" in text
    assert "Not in the mean, since all their rows are alike: other." in text
    assert "labels click, watch (given click) and like, 3 domains by hour" in one.text("result")
    assert "AUC, test, click 0.75000" in one.text("result")
    assert "On test, click (100,000 rows, 16.98% clicked): AUC 0.75000" in one.text("result")
    assert "Of several labels these are the scores of the main one" in one.text("scores")
    assert "Validation AUC, watch by epoch. run: from" in one.source
    assert text.count("by domain on test") == 4
    assert "For watch alone the evaluation at step 80 was the best; the kept one is 0.00125 short of it" in text
    assert "For click alone" not in text
    cosine = "The gradients of click and watch at the experts and table rows have a mean cosine of −0.125, below 0 in"
    assert f"{cosine} 75.00% of the batches" in text
    grouped = "AUC inside the groups of site_id on test, run: click 0.61234 (310 groups with both classes, 4,000 rows)"
    assert grouped in one.text("scores")
    assert "like none (no group has both classes)" in one.text("scores")
    alone = domains.text("labels")
    assert "click 100,000 0 16.98%" in alone
    assert "Validation AUC, click" not in domains.source
    assert "AUC, test 0.75000" in domains.text("result")
    assert "Of several labels" not in domains.text("scores")
    assert "label click, 3 domains by hour" in domains.text("result")


def test_every_label_has_its_calibration(labelled: list[Page], three: Page) -> None:
    one, two, domains = labelled
    text = one.text("calibration")
    assert (
        "Run Label Split Predicted to observed clicks Expected calibration error run click test 1.075 0.00750" in text
    )
    assert "run watch given click test 1.072 0.00720 run click and watch test 1.085 0.00850 run like" in text
    assert one.source.count("Calibration: run ") == 4
    assert two.text("calibration").count("watch given click test") == 2
    assert "Run Split Predicted" in three.text("calibration")
    assert domains.source.count("Calibration: run") == 1


def test_each_labels_map_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run", labels=True)
    figures = {"logloss": 0.5, "expected_calibration_error": 0.02, "predicted_to_observed": 0.9}
    change = {"test": {"before": figures, "after": figures | {"predicted_to_observed": 1.001}}}
    main = {"asked": "auto", "kind": "platt", "rows": 500, "valid_rows": 500, "splits": change}
    none = {"asked": "auto", "kind": "none", "rows": 90, "valid_rows": 90, "splits": {}}
    tasks = {"click": main, "watch": none, "like": main | {"kind": "isotonic"}}
    (run / "calibration.json").write_text(json.dumps({**main, "tasks": tasks}))
    write_report([run], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text("calibration")
    assert "click: The model’s logits are scaled and shifted (Platt), as fitted on valid" in text
    assert "watch: The logits are the model’s own" in text
    assert "Before and after calibration, like Split" in text


def test_correlation_of_levels_and_domains(labelled: list[Page], three: Page) -> None:
    text = labelled[0].text("correlation")
    assert "level 1 0.2500 0.0125 1 4,096 domain feed 0.2500 0.0125 1 4,096" in text
    assert "within each domain" not in three.source


def test_labels_of_several_runs_are_compared(labelled: list[Page]) -> None:
    text = labelled[1].text("comparison")
    assert "AUC of watch given click, test 0.72000 0.73000 +0.01000 –" in text
    assert "Logloss of click and watch, test 0.31234 0.31234 0.00000 –" in text
    assert "AUC of click, test" not in text
    assert labelled[1].text("labels").count("Scores by label on test") == 2


def test_a_run_of_one_label_has_no_section_of_labels(three: Page) -> None:
    assert "labels" not in three.source.replace("aria-labelledby", "")


def test_best_score_is_marked_by_its_own_direction(three: Page) -> None:
    best = re.findall(r'<td class="num best">([\d.]+)<', three.source)
    assert best == ["0.75520", "0.38480", "0.75320", "0.38880"]


def test_result_says_in_words_what_happened(three: Page) -> None:
    text = three.text("result")
    assert "A mixture of 2 experts, cin and crossnet, with one embedding table that all experts share" in text
    assert "de-correlated by the corr loss at the output (α = 100)" in text
    assert "4 fields (3 categorical with 11,336 vocabulary entries and 1 numeric), label click" in text
    assert "On test (100,000 rows, 16.98% clicked): AUC 0.75060, logloss 0.38940." in text
    assert "53 times the noise floor" in text  # 0.1330 / 0.00253
    assert "CEC) at the output is 0.00196, not above the noise floor" in text
    assert "Dead units: 40 of 500 in cin and 80 of 500 in crossnet. CEC leaves them out" in text
    assert "varies from row to row" not in text
    assert "Trained for 1 min 36 s. The weights kept are those of epoch 3 of 4." in text


def test_detail_sections_hold_the_figures_of_the_evaluation(three: Page) -> None:
    assert "Expert outputs (after the ReLU) 0.1330 0.00253 0.00253 100,000 12 of 500 24 of 500" in three.text(
        "correlation"
    )
    assert "cin 0.470 0.130 41.00% crossnet 0.530 0.130 59.00%" in three.text("gate")
    # Fields come by falling spread, not in the file's order.
    assert re.findall(r"(\w+) , spread", three.text("gate"))[:3] == ["site_id", "device_model", "hour"]
    assert "14 20,000 12.00% 0.450 0.550" in three.text("gate")
    # The fields with the largest shares of unseen values first, those without any left out.
    unseen = three.text("unseen")
    assert "device_model 1.00% 12.00% 14.75% site_id 0.40% 3.10% 6.25%" in unseen
    assert "20.00% of the rows of test have a value that training never saw" in unseen
    assert "any field with 20,000 0.68" in unseen
    assert "device_model with 11,800 0.68" in unseen
    assert "site (or missing) with 900 – 0.41234 1.250 site (or missing) without 99,100 – 0.41234 1.250" in unseen
    assert "hour" not in unseen
    assert "cin 0 159,000 0.74660 −0.00400 0.39240 +0.00300 0.74160 −0.00900" in three.text("experts")
    assert "peak_memory_bytes 1.50 GiB" in three.text("environment")
    assert "device_model categorical 7,259 2" in three.text("data")
    assert "embedding_l2: 1.0e-08" in three.text("configuration")


def test_intermediate_layers_stand_between_pre_activation_and_input_in_order(three: Page) -> None:
    text = three.text("correlation")
    places = [text.index(title) for title in ("Before the ReLU", "Intermediate layer 1", "Intermediate layer 2")]
    assert places == sorted(places)
    assert places[-1] < text.index("Expert inputs (embeddings)")


def test_one_run_has_no_comparison_and_no_differences(make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run()], tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    assert [values["id"] for values in page.named("section")] == [*SECTIONS, *SETTINGS]
    assert "Report on run" in page.text("")


def test_single_expert_says_that_there_is_nothing_to_compare(make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run(kinds=("crossnet",))], tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    assert "A single crossnet expert, without gate or mixture." in page.text("result")
    for section in ("correlation", "gate", "experts"):
        assert "run has a single expert" in page.text(section)
    assert "CEC" not in page.text("result")


def test_unfinished_unevaluated_run_says_so_in_every_section(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(epochs=0, splits=(), steps=False, finished=False)
    (run / "environment.json").unlink()
    write_report([run], tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    assert "Training has not finished" in page.text("result")
    assert "It has no score yet" in page.text("result")
    assert "No evaluation was logged yet" in page.text("training")
    for section in ("scores", "unseen", "calibration", "correlation", "gate", "experts"):
        assert "run was not evaluated" in page.text(section)
    assert "run has no environment.json" in page.text("environment")


def test_figures_that_an_evaluation_lacks_are_dashes_or_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(splits=("test",))
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text())
    evaluation |= {"auc": None, "calibration": None, "gate": None, "removal": [], "alone": [], "correlation": {}}
    path.write_text(json.dumps(evaluation))
    write_report([run], tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    assert "AUC –, logloss 0.39000" in page.text("result")
    for section in ("calibration", "correlation", "gate", "experts"):
        assert "The evaluation of run holds no such figures" in page.text(section)


def test_correlation_of_dead_experts_is_undefined_not_zero(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(splits=("test",))
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text())
    evaluation["correlation"]["output"] |= {
        "matrix": [[None, None], [None, None]],
        "total": 0.0,  # the sum over no pair
        "dead_columns": [500, 0],
    }
    path.write_text(json.dumps(evaluation))
    write_report([run], tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    assert "outputs is undefined: no pair has live units on both sides" in page.text("result")
    assert "CEC of outputs – floor –" in page.text("result")
    assert "Dead units: 500 of 500 in cin" in page.text("result")
    assert "Nothing of cin varies from row to row" in page.text("result")
    assert "Expert outputs (after the ReLU) – – 0.00253" in page.text("correlation")


def test_a_list_is_described_by_its_vocabulary(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run")
    schema = json.loads((run / "schema.json").read_text(encoding="utf-8"))
    several = {"kind": "multi-valued", "name": "history", "vocabulary_size": 777, "min_count": 3, "max_length": 20}
    schema["fields"].insert(0, several)
    (run / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    output = tmp_path / "report.html"
    write_report([run], output)
    (row,) = re.findall(r"<tr><th[^>]*>history</th>.*?</tr>", output.read_text(encoding="utf-8"))
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row)[:3] == ["multi-valued", "777", "3"]


def test_floor_of_the_total_is_that_of_a_pair_times_the_pairs(make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run(kinds=("cin", "fm", "dnn"), cec=0.1)], tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    # The fixture's pairs have 0.07, 0.08 and 0.10; 0.25 / (3 · 0.00253) = 33.
    assert "is 0.2500, summed over 3 pairs, 33 times the noise floor" in page.text("result")
    assert "Expert outputs (after the ReLU) 0.2500 0.00759 0.00253" in page.text("correlation")


def test_pairs_without_a_value_are_counted_and_leave_the_floor(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(splits=("test",), kinds=("cin", "fm", "dnn"))
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text())
    evaluation["correlation"]["output"] |= {
        "matrix": [[None, None, None], [0.1, None, None], [None, None, None]],
        "total": 0.1,
    }
    path.write_text(json.dumps(evaluation))
    write_report([run], tmp_path / "one.html")
    text = Page(tmp_path / "one.html").text("result")
    # One pair is left, so the floor is that of one: 0.1 / 0.00253 = 40.
    assert "is 0.1000 (without 2 of which an expert has no live unit), 40 times the noise floor" in text


def test_evaluation_that_contradicts_training_is_pointed_out(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    path = run / "metrics.json"
    path.write_text(path.read_text().replace("0.75", "0.74"))
    write_report([run], tmp_path / "one.html")
    assert "Attention: metrics.json says AUC 0.74000 on test, the evaluation 0.75000" in Page(
        tmp_path / "one.html"
    ).text("result")


def test_runs_on_different_data_are_pointed_out(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = make_run("first"), make_run("second", field="other")
    path = second / "evaluation" / "test.json"
    path.write_text(path.read_text().replace('"positives": 16980', '"positives": 16981'))
    write_report([first, second], tmp_path / "two.html")
    text = Page(tmp_path / "two.html").text("comparison")
    assert "first and second were trained on different data or vocabularies" in text
    assert "The test rows differ (first 100,000 and second 100,000)" in text


def test_names_of_alike_folders_and_experts_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a/run", kinds=("dnn", "dnn")), make_run("b/run")]
    write_report(runs, tmp_path / "two.html")
    text = Page(tmp_path / "two.html").text("result")
    assert "a/run" in text
    assert "b/run" in text
    assert "dnn (0) and dnn (1)" in text


def test_every_page_is_well_formed(everything: list[Page]) -> None:
    for page in everything:
        assert page.faults == []
        assert [name for name, count in Counter(page.ids).items() if count > 1] == []
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(page.headings))
        assert page.source.startswith("<!DOCTYPE html>")
        assert all(values.get("role") == "img" and values.get("aria-label") for values in page.named("svg"))
        assert all(values.get("scope") in ("row", "col") for values in page.named("th"))
        assert len(page.named("caption")) == len(page.named("table"))


def test_every_reference_leads_to_an_id_on_the_page(everything: list[Page]) -> None:
    for page in everything:
        pointed = set(re.findall(r"url\(#([^)]+)\)", page.source))
        pointed |= {(v.get("href") or "").removeprefix("#") for _, v in page.tags if v.get("href")}
        pointed |= {v["aria-labelledby"] or "" for _, v in page.tags if "aria-labelledby" in v}
        assert pointed <= set(page.ids)


def test_nothing_is_fetched_and_nothing_runs(everything: list[Page]) -> None:
    for page in everything:
        assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base"} == set()
        for _, values in page.tags:
            assert not any(name.startswith("on") for name in values)
            for name in ("src", "href", "xlink:href", "data", "action"):
                assert (values.get(name) or "#").startswith("#")
        assert "http" not in page.source
        assert "@import" not in page.source
        assert len(page.source.encode()) < 2_000_000


def test_text_from_files_is_escaped_everywhere(everything: list[Page]) -> None:
    odd = everything[-1]
    assert "&lt;script&gt;alert" in odd.source
    assert "<script" not in odd.source
    assert HOSTILE in odd.text("gate")
    assert HOSTILE in odd.text("data")
    assert "<b>" not in odd.source
    # The name's dollar signs are no formula, its control character is replaced, its letters are kept.
    assert "<b>$x_1$ & \ufffd 点击" in odd.text("result")
    assert "\x01" not in odd.source


def test_same_files_give_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("se"), make_run("me", kinds=("cin", "fm", "dnn"), alpha=1.0)]
    write_report(runs, tmp_path / "first.html")
    write_report(runs, tmp_path / "second.html")
    first = (tmp_path / "first.html").read_bytes()
    assert first == (tmp_path / "second.html").read_bytes()
    write_report(runs[::-1], tmp_path / "second.html")
    assert first != (tmp_path / "second.html").read_bytes()


def test_report_replaces_an_older_one_and_leaves_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    output = tmp_path / "out" / "report.html"
    output.parent.mkdir()
    output.write_text("old")
    write_report([run], output)
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_output_must_be_a_page_in_an_existing_folder(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write_report([run], tmp_path)
    with pytest.raises(ConfigError, match=r"give it a name that ends in \.html"):
        write_report([run], run / "config.yaml")
    with pytest.raises(ConfigError, match="does not exist; make it first"):
        write_report([run], tmp_path / "absent" / "report.html")


def test_runs_must_be_given_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(ConfigError, match="given twice"):
        write_report([run, run.parent / "run" / "." / ".." / "run"], tmp_path / "report.html")
    with pytest.raises(ConfigError, match="no run given"):
        write_report([], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, "has no config.yaml, so it is not a run folder"),
        ("schema.json", None, "has no schema.json, so it is not a data set or run folder"),
        ("config.yaml", "model: [", r"config.yaml:\d+: not valid YAML"),
        ("config.yaml", "modle: {}", "config.yaml: unknown key 'modle'; did you mean 'model'"),
        ("schema.json", "{", "schema.json: damaged"),
        ("metrics.json", "[]", "metrics.json: damaged"),
        ("metrics.jsonl", '{"epoch": 1, "step": 1}\n[]\n', r"metrics.jsonl:2: expected a JSON object, got list"),
        ("metrics.jsonl", '{"epoch": "x", "step": 1}\n', r"metrics.jsonl:1: 'epoch'"),
        ("steps.jsonl", b"\xff\n", "steps.jsonl: damaged: byte 0 is not UTF-8"),
        ("environment.json", "nonsense", "environment.json: damaged"),
        ("evaluation/test.json", '{"format_version": 2}', "test.json: format version 2"),
        ("evaluation/test.json", '{"format_version": 1}', "test.json: key 'split' is missing"),
        (
            "evaluation/test.json",
            '{"format_version": 1, "split": "valid", "rows": 1, "positives": 0}',
            "test.json: holds split 'valid'",
        ),
        (
            "evaluation/test.json",
            '{"format_version": 1, "split": "test", "rows": 1, "positives": 0, "gate": {"mean": [1.0]}}',
            "'gate.mean' holds 1 experts, but config.yaml names 2",
        ),
    ],
)
def test_damaged_run_is_one_clear_error_and_no_page(
    make_run: MakeRun, tmp_path: Path, file: str, content: str | bytes | None, message: str
) -> None:
    run = make_run()
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_absent_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such run folder"):
        write_report([tmp_path / "absent"], tmp_path / "report.html")


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_have_contrast_on_light_and_dark() -> None:
    css = (files("dmoe.report") / "templates" / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for text in ("ink", "muted", "accent"):
            for ground in ("ground", "panel"):
                assert _contrast(colour[text], colour[ground]) >= 4.5
        assert _contrast(colour["ink"], colour["bar"]) >= 4.5
        assert _contrast(colour["ink"], colour["notice"]) >= 4.5
        for index in range(6):
            assert _contrast(colour[f"series-{index}"], colour["ground"]) >= 3.0
        # The fullest heat-map cell is 0.6 of the heat colour on the ground.
        mixed = "#" + "".join(
            f"{round(0.6 * int(colour['heat'][i : i + 2], 16) + 0.4 * int(colour['ground'][i : i + 2], 16)):02x}"
            for i in (1, 3, 5)
        )
        assert _contrast(colour["ink"], mixed) >= 4.5


def test_what_preparing_warned_of_stands_before_training(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    write_report([run], tmp_path / "none.html")
    assert "The run has no warnings.json" in (tmp_path / "none.html").read_text(encoding="utf-8")
    (run / "warnings.json").write_text('{"warnings": []}')
    write_report([run], tmp_path / "none.html")
    assert "Nothing was found to warn of" in (tmp_path / "none.html").read_text(encoding="utf-8")
    text = "'<paid>' is the label under another name"
    (run / "warnings.json").write_text(json.dumps({"warnings": [{"kind": "is the label", "text": text}]}))
    write_report([run], tmp_path / "one.html")
    assert "&lt;paid&gt;&#39; is the label under another name" in (tmp_path / "one.html").read_text(encoding="utf-8")
