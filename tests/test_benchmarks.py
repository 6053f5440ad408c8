"""The benchmark harness at tiny sizes and without peers: what it feeds, counts, times and reports.

No test looks at how fast anything is.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import batches, parts, plots, preparing, production
from benchmarks.arithmetic import dense_work
from benchmarks.cases import Case, Contestant, Sizes, all_cases, choose
from benchmarks.environments import REQUIREMENTS, pinned
from benchmarks.process import Worker, WorkerError
from benchmarks.report import embedding_and_optimiser_share
from benchmarks.workers import production_form
from benchmarks.workers.dmoe_worker import make_engine, make_model
from benchmarks.workers.plain_gwpfm import PlainGwPFM
from benchmarks.workers.stopwatch import EngineProfile, Stopwatch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from dmoe.nn.experts import GwPFM
from dmoe.shards.batch import Batch
from dmoe.training.step_values import StepLoss

SMALL = Sizes(embedding_dim=4, hidden_units=(10, 9, 8), cin_units=6, expert_units=7, gate_units=5)
MODELS = [("dnn", "linear"), ("dcnv2", "linear"), ("deepfm", "linear"), ("xdeepfm", "linear"), ("dcnv2", "d-moe")]


def small_case(*experts: str, head: str) -> Case:
    return Case("small", experts, (Contestant("dmoe"),), head, vocabulary_rows=500, batch_size=32, sizes=SMALL)


def first_batch(case: Case) -> Batch:
    sizes = batches.vocabulary_sizes(case.vocabulary_rows, case.num_fields)
    ids_BC = torch.from_numpy(batches.draw_ids(sizes, case.batch_size, seed=1))
    return Batch(ids_BC, torch.empty(case.batch_size, 0), (torch.rand(case.batch_size, 1) < 0.5).float())


def test_vocabularies_have_avazus_rows() -> None:
    sizes = batches.vocabulary_sizes(batches.AVAZU_ROWS)
    assert sum(sizes) == 3_750_975
    assert sizes == list(batches.AVAZU_SIZES)
    for total, fields in ((1000, 24), (40_000_000, 24), (3_750_975, 500), (3_750_975, 10)):
        resized = batches.vocabulary_sizes(total, fields)
        assert len(resized) == fields
        assert sum(resized) == total
        assert min(resized) >= 3
    with pytest.raises(ValueError, match="too few for 24 fields"):
        batches.vocabulary_sizes(30)


def test_ids_follow_the_stated_law() -> None:
    rows, size = 200_000, 12
    ids_R = batches.draw_ids([size], rows, seed=3)[:, 0]
    weights = [1 / rank**batches.ZIPF_EXPONENT for rank in range(1, size - 1)]
    expected = np.array(weights) / sum(weights)
    found = np.bincount(ids_R, minlength=size) / rows
    assert found[:2].tolist() == [0, 0]  # missing and out of vocabulary
    # Five standard deviations of a binomial share.
    assert np.all(np.abs(found[2:] - expected) < 5 * np.sqrt(expected / rows))
    np.testing.assert_array_equal(ids_R, batches.draw_ids([size], rows, seed=3)[:, 0])


def test_a_batch_at_avazus_size_touches_the_stated_number_of_rows() -> None:
    ids_RF = batches.draw_ids(list(batches.AVAZU_SIZES), 10_000, seed=2025)
    assert np.all(ids_RF.max(axis=0) < batches.AVAZU_SIZES)
    assert batches.distinct_rows(ids_RF) == pytest.approx(20_600, rel=0.01)


@pytest.mark.parametrize(
    ("experts", "head"), [*(((name,), head) for name, head in MODELS), (("cin", "crossnet"), "d-moe")]
)
def test_arithmetic_equals_torchs_own_count(experts: tuple[str, ...], head: str) -> None:
    case = small_case(*experts, head=head)
    model = make_model(case.job(case.contestants[0]))
    batch = first_batch(case)
    with FlopCounterMode(display=False) as counter:
        loss = model(batch.ids_BC, batch.numeric_BN).logit.sum()
        forward = counter.get_total_flops()
        loss.backward()
    work = dense_work(case)
    assert work.forward_flop == forward
    # The gate's gradient is one dot product a row and expert, elementwise work that happens to be written as bmm.
    dots = 2 * case.batch_size * len(experts) * case.sizes.expert_units if len(experts) > 1 else 0
    assert work.flop + dots == counter.get_total_flops()


def test_deepfm_is_the_peers_formula() -> None:
    case = small_case("deepfm", head="linear")
    model: Any = make_model(case.job(case.contestants[0])).double()
    batch = first_batch(case)
    (embedding,) = model.embedding.row_tables()
    tables = embedding.weight.detach()
    offsets = np.cumsum([0, *embedding.vocabulary_sizes])
    logit_B = model(batch.ids_BC).logit.detach()
    for row in range(3):
        vectors = [tables[offsets[field] + int(batch.ids_BC[row, field])] for field in range(case.num_fields)]
        pairs = sum(
            vectors[i][:4] @ vectors[j][:4] for i in range(case.num_fields) for j in range(i + 1, case.num_fields)
        )
        hidden = torch.cat([vector[:4] for vector in vectors])
        for linear in model.interaction.mlp.linears:
            hidden = torch.relu(linear.weight @ hidden + linear.bias)
        wanted = (model.head.weight @ hidden + model.head.bias)[0] + pairs + sum(vector[4] for vector in vectors)
        torch.testing.assert_close(logit_B[row], wanted.detach())


def test_nested_parts_are_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("benchmarks.workers.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.part("outer"), watch.part("inner"):
        pass
    assert watch.milliseconds == {"outer": 1000.0 + 4000.0, "inner": 2000.0}


def test_profile_sees_every_part_and_changes_nothing() -> None:
    case = small_case("cin", "crossnet", head="d-moe")
    case = replace(case, embedding_l2=1e-3)
    job, batch = case.job(case.contestants[0]), first_batch(case)
    plain, watched = (make_engine(make_model(job), job) for _ in range(2))
    for step in range(2):
        plain.step(batch, step)
    with EngineProfile(watched) as watch:
        for step in range(2):
            with watch.part("rest"):
                watched.step(batch, step)
    watched.step(batch, 2)
    plain.step(batch, 2)
    known = {*parts.EMBEDDING_PARTS, *parts.OPTIMISER_PARTS, *parts.MODEL_PARTS}
    assert set(watch.milliseconds) == known
    assert all(time > 0 for time in watch.milliseconds.values())
    assert 0 < embedding_and_optimiser_share(watch.milliseconds) < 1
    for name, value in plain.state().items():
        assert torch.equal(value, watched.state()[name]), name


def test_a_peers_model_is_trained_by_our_engine() -> None:
    case = small_case("deepfm", head="linear")
    job, batch = case.job(case.contestants[0]), first_batch(case)
    engine = make_engine(make_model(job), job)
    losses = [one.total for one in StepLoss.read([engine.step(batch, step) for step in range(20)])]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_run_from_start_to_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    words = ["score", "growth-vocabulary-100000", "--only-ours", "--vocabulary-rows", "1000", "--batch-size", "32"]
    words += ["--units", "8", "--repeats", "2", "--steps", "3", "--threads", "1", "--json", str(results)]
    assert command.main(words) == 0
    found = json.loads(results.read_text(encoding="utf-8"))
    score, growth = found["cases"]
    assert [row["mode"] for row in score["contestants"]] == [
        "score-files", "score", "bfloat16-score-files", "score-bfloat16"
    ]  # fmt: skip
    assert (growth["axis"], growth["value"]) == ("vocabulary", 1000)
    ours = growth["contestants"][0]
    times = [time for one_round in ours["ms"] for time in one_round]
    assert [len(one_round) for one_round in ours["ms"]] == [3, 3]
    assert ours["median_ms"] == pytest.approx(np.median(times))
    assert ours["rows_per_second"] == pytest.approx(32 / np.median(times) * 1000)
    assert ours["peak_bytes"] > 2**20
    assert growth["memory_bound_bytes"] == 1000 * (3 * 4 * 16 + 4) + 2**30
    assert growth["roofline"]["ratio"] == pytest.approx(ours["median_ms"] / growth["roofline"]["dense_ms"])
    assert set(growth["profile"]) == {*parts.EMBEDDING_PARTS, *parts.OPTIMISER_PARTS, *parts.MODEL_PARTS}
    assert "embedding and optimisers" in capsys.readouterr().out
    assert plots.curves(found, "vocabulary") == {"dmoe": [(1000, ours["median_ms"])]}
    (figure,) = plots.draw(found, tmp_path / "figures")
    assert figure.name == "growth-vocabulary.svg"
    assert "</svg>" in figure.read_text(encoding="utf-8")


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    case = small_case("dnn", head="linear")
    job = {**case.job(case.contestants[0]), "threads": 1, "batches": str(tmp_path / "absent.npz"), "data": None}
    with pytest.raises(WorkerError, match=r"FileNotFoundError.*absent\.npz"):
        Worker(Path(sys.executable), "dmoe", job, tmp_path / "log")
    with pytest.raises(WorkerError, match=r"ended with code 1: .*no_such_worker"):
        Worker(Path(sys.executable), "no_such", job, tmp_path / "log")


def test_wrong_options_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["dcnv9"], "no case 'dcnv9'; known: dnn, "), (["--repeats", "0"], "must be at least 1")):
        with pytest.raises(SystemExit) as stopped:
            command.parse(words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_cases_fit_together() -> None:
    cases = all_cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert [case.name for case in choose(["dcnv2*", "dnn"], cases)][:3] == ["dnn", "dcnv2", "dcnv2-l2"]
    for case in cases:
        assert case.contestants[0].worker == "dmoe"  # ratios are to the first
        assert len({one.name for one in case.contestants}) == len(case.contestants)
        assert all(one.worker in {"dmoe", *REQUIREMENTS} for one in case.contestants)
        assert not (case.embedding_l2 and any(one.optimiser == "sparse" for one in case.contestants))
    assert {line.partition("==")[0] for line in pinned()} == {"torch", "numpy"}


@pytest.mark.slow
def test_preparing_is_measured_at_growing_sizes(tmp_path: Path) -> None:
    log = preparing.generated(tmp_path, 400)
    results: dict[str, Any] = {"memory": "1GB", "growth": list(preparing.growth(log, [200, 400], tmp_path, "1GB"))}
    first, second = results["growth"]
    assert (first["rows"], second["rows"]) == (200, 400)
    assert second["bytes"] == log.stat().st_size
    assert first["bytes"] == sum(map(len, log.read_bytes().splitlines(keepends=True)[:201]))
    for row in results["growth"]:
        assert row["share_of_disk_speed"] == pytest.approx(row["bytes"] / row["seconds"] / row["disk_bytes_per_second"])
        assert row["peak_bytes"] > 20 << 20
    preparing.plot(results, tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()
    preparing.print_results(results, Console(quiet=True))
    assert not (tmp_path / "growth").exists()


def test_peak_memory_counts_a_process_and_what_it_starts(tmp_path: Path) -> None:
    child = "import time; held = bytearray(80 << 20); time.sleep(1)"
    parent = f"import subprocess, sys; held = bytearray(60 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    alone = preparing.run([sys.executable, "-c", child], tmp_path / "log")
    both = preparing.run([sys.executable, "-c", parent], tmp_path / "log")
    assert 80 << 20 < alone.peak_bytes < 140 << 20
    assert 140 << 20 < both.peak_bytes < 240 << 20
    with pytest.raises(RuntimeError, match="went wrong"):
        preparing.run([sys.executable, "-c", "import sys; sys.exit('went wrong')"], tmp_path / "log")


def test_both_contestants_get_the_same_rows_and_fields(tmp_path: Path) -> None:
    log = preparing.generated(tmp_path, 400)
    fields = preparing.write_splits(log, 200, tmp_path)
    assert fields["categorical"][:2] == ["hour", "C1"]
    assert len(fields["categorical"]) == 24
    rows = [(tmp_path / f"{split}.csv").read_text().splitlines() for split in preparing.SPLITS]
    assert [len(lines) - 1 for lines in rows] == [160, 20, 20]
    assert all(line.count(",") == 24 for lines in rows for line in lines)
    raw = log.read_text().splitlines()
    header = raw[0].split(",")
    stamp, site = header.index("hour"), header.index("site_id")
    for line, original in zip(rows[0][1:], raw[1:161], strict=True):
        values = dict(zip(rows[0][0].split(","), line.split(","), strict=True))
        cells = original.split(",")
        assert values["hour"] == str(int(cells[stamp][6:]))
        assert values["site_id"] == cells[site]
        assert values["click"] == cells[header.index("click")]


@pytest.mark.slow
def test_the_production_benchmark_reports_ours_by_fields_and_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "production.json"
    words = ["--fields", "40", "--experts", "1", "4", "--experts-fields", "40", "--batch-size", "16", "--units", "8"]
    words += [
        "--repeats",
        "2",
        "--steps",
        "1",
        "--warm-up",
        "1",
        "--threads",
        "1",
        "--only-ours",
        "--json",
        str(target),
    ]
    assert production.main(words) == 0
    found = json.loads(target.read_text(encoding="utf-8"))["cases"]
    assert [case["case"] for case in found] == ["40 fields, 3 experts", "40 fields, 1 expert", "40 fields, 4 experts"]
    assert found[2]["experts"] == ["gwpfm", "flatdnn", "ipnn", "gwpfm"]
    assert [(case["axis"], case["value"]) for case in found] == [("fields", 40), ("experts", 1), ("experts", 4)]
    drawn = plots.draw({"cases": found}, tmp_path, "production-")
    assert [path.name for path in drawn] == ["production-experts.svg", "production-fields.svg"]
    for case in found:
        (row,) = case["contestants"]
        assert [len(times) for times in row["cpu_ms"]] == [1, 1]
        assert row["ratio"] == 1
    assert "40 fields, 4 experts: gwpfm + flatdnn + ipnn + gwpfm" in capsys.readouterr().out


def test_the_production_benchmark_has_the_presets_proportions(tmp_path: Path) -> None:
    case = production.Case(513, 3)
    job = case.job()
    assert len(production_form.field_names(job)) == 513
    assert len(production_form.chosen_names(job)) == 153
    assert job["tables"] == [0, 0, 1]
    job |= {"batch_size": 64, "vocabulary_sizes": job["vocabulary_sizes"][:3], "batches": str(tmp_path / "rows.npz")}
    production.write_rows(Path(job["batches"]), job, 2)
    first, second = production_form.load_rows(job)
    assert first.ids.shape == (64, 3 + 5 + 20)
    assert not np.array_equal(first.ids, second.ids)
    # A list has its values first, then zeros.
    present = first.ids[:, 8:] != 0
    assert np.array_equal(present, np.sort(present, axis=1)[:, ::-1])
    assert {0, 20} <= set(present.sum(axis=1))


def test_a_worker_can_have_an_environment_of_its_own(tmp_path: Path) -> None:
    job = production.Case(32, 1, batch_size=8, units=4).job()
    job |= {"threads": 1, "batches": str(tmp_path / "rows.npz")}
    production.write_rows(tmp_path / "rows.npz", job, 1)
    kept = {"PYTHONHASHSEED": "77", "MALLOC_MMAP_MAX_": "0"}
    worker = Worker(Path(sys.executable), "production_dmoe", job, tmp_path / "log", environment=kept)
    try:
        environment = Path(f"/proc/{worker._process.pid}/environ").read_bytes().split(b"\0")
        assert {b"PYTHONHASHSEED=77", b"MALLOC_MMAP_MAX_=0"} <= set(environment)
    finally:
        worker.close()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_peers_gwpfm_is_ours(groups: int) -> None:
    ours, plain = GwPFM(7, 6, groups=groups).double(), PlainGwPFM(7, 6, groups).double()
    weights = torch.rand_like(ours.weight)
    ours.weight.data.copy_(weights)
    plain.upper.data.copy_(weights)
    embeddings = torch.randn(5, 7, 6, dtype=torch.float64, requires_grad=True)
    results = [expert(embeddings) for expert in (ours, plain)]
    torch.testing.assert_close(*results)
    cotangent = torch.randn_like(results[0])
    for mine, theirs in zip(
        torch.autograd.grad(results[0], [embeddings, ours.weight], cotangent),
        torch.autograd.grad(results[1], [embeddings, plain.upper], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
