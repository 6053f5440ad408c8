"""The benchmarks of cards run from start to figures, on a device or, where figures mean nothing, on the CPU."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="triton runs on Linux only")

from benchmarks import gpu, gpu_contestants, gpu_kernels, production
from benchmarks.cases import OURS, Case, Sizes
from benchmarks.gpu_cases import GpuCase, gpu_cases, of_production, of_table

from dmoe.kernels import row_access

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = Sizes(embedding_dim=4, hidden_units=(8, 8), cin_units=6, cross_layers=2, expert_units=8, gate_units=4)
SMALL: dict[str, Any] = {"vocabulary_rows": 400, "num_fields": 4, "batch_size": 16, "sizes": TINY}
OURS_ALONE = ["--device", DEVICE, "--rounds", "1", "--steps", "2", "--only-ours"]


def tiny_cases() -> list[GpuCase]:
    return [
        of_table(Case("dcnv2", ("dcnv2",), (OURS,), **SMALL)),
        of_table(Case("mixture", ("cin", "crossnet"), (OURS,), head="d-moe", embedding_l2=1e-6, **SMALL)),
        of_production(production.Case(32, 3, batch_size=8, units=8)),
    ]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NUM_BATCHES", 2)
    monkeypatch.setattr(gpu, "gpu_cases", lambda _: tiny_cases())
    if DEVICE == "cpu":  # compiling anything takes half a minute; that the parts are the right ones is tested below
        monkeypatch.setattr(gpu_contestants, "compile_dense", lambda *_: None)


@pytest.mark.slow  # numba compiles for every kind of table
def test_each_form_of_ours_trains_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*OURS_ALONE, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [case["case"] for case in found["cases"]] == ["dcnv2", "mixture", "production"]
    for case in found["cases"]:
        left_out = {one["name"]: one["failed"] for one in case["contestants"] if one["failed"]}
        graph = {"dmoe, deferred, step as a CUDA graph": "a CPU has no graphs to capture"}
        assert left_out == ({} if DEVICE == "cuda" else graph)
        assert all(one["median_ms"] > 0 for one in case["contestants"] if not one["failed"])
        assert min(case["roofline"].values()) > 0
    assert "| dmoe, deferred | " in capsys.readouterr().out


def test_the_page_has_the_card_the_command_and_every_contestant() -> None:
    found = {"card": "A card", "torch": "2", "cuda": "13", "cases": []}
    rows = [
        {"name": "one", "ms": [2.0, 1.0, 4.0], "median_ms": 2.0, "peak_bytes": 1 << 30, "failed": None},
        {"name": "two", "ms": [], "median_ms": None, "peak_bytes": 0, "failed": "no such model"},
    ]
    roof = dict.fromkeys(
        ("dense_gflop", "products_float32_ms", "products_tf32_ms", "products_bfloat16_ms", "copy_gb_per_second"), 1.0
    )
    case = {"case": "c", "batch_size": 1000, "vocabulary_rows": 5, "roofline": roof | {"gather_gb_per_second": 1.0}}
    page = gpu.as_page(found | {"cases": [case | {"contestants": rows}]}, "python -m benchmarks.gpu --rounds 3")
    assert "A card; torch 2, CUDA 13." in page
    assert "Written by `python -m benchmarks.gpu --rounds 3`" in page
    assert "| one | 2.00 | 2.00, 1.00, 4.00 | 500,000 | 1.00 |" in page
    assert "| two | left out: no such model | | | |" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a device alone")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "torch sees no CUDA device; --device cpu tries"),
        (["--device", "cpu", "--page", "page.md"], "--page is for figures of a card"),
    ],
)
def test_no_page_is_written_without_a_card(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(words) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_case_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "gpu_cases", gpu_cases)
    assert gpu.main([*OURS_ALONE, "dcnv3"]) == 2
    assert "no case 'dcnv3'; known: " in capsys.readouterr().err


def test_what_is_compiled_is_all_behind_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    said: list[str] = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: said.append(f"{type(self).__name__} {how['backend']}")
    )
    for case in tiny_cases()[:2]:
        gpu_contestants.compile_dense(case.engine("deferred", "float32", torch.device("cpu")).model, "inductor")
    assert said == [
        *("DCNv2 inductor", "Linear inductor"),
        *("AlignedExpert inductor",) * 2,
        *("Gate inductor", "MLP inductor", "Linear inductor", "LogitMap inductor"),
    ]


def test_torchrec_takes_its_part_where_it_is_installed_and_says_so_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a double of its tables: what is given to it, and that the rest trains on what it gives."""

    @dataclass
    class Config:
        name: str
        embedding_dim: int
        num_embeddings: int
        feature_names: list[str]
        pooling: str

    @dataclass
    class Jagged:
        keys: list[str]
        values: Tensor
        lengths: Tensor

    class Tables(nn.Module):
        def __init__(self, tables: list[Config], **_: Any) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(one.num_embeddings, one.embedding_dim) for one in tables)

        def forward(self, jagged: Jagged) -> Any:
            assert bool((jagged.lengths == 1).all())
            columns = jagged.values.view(len(jagged.keys), -1)
            found = [weight[ids] for weight, ids in zip(self.weights, columns, strict=True)]
            return type("Keyed", (), {"values": staticmethod(lambda: torch.cat(found, dim=1))})

    case, mixture, _ = tiny_cases()
    device = gpu.Device("cpu")
    with pytest.raises(RuntimeError, match="TorchRec takes part with dcnv2"):
        gpu_contestants.torchrec(mixture, mixture.batches(1), device)
    names = {
        "modules.embedding_configs": {"EmbeddingBagConfig": Config, "PoolingType": type("P", (), {"SUM": "sum"})},
        "modules.fused_embedding_modules": {"FusedEmbeddingBagCollection": Tables},
        "optim": {"RowWiseAdagrad": object},
        "sparse.jagged_tensor": {"KeyedJaggedTensor": Jagged},
    }
    for name in ("torchrec", "torchrec.modules", "torchrec.sparse"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        gpu_contestants.torchrec(case, case.batches(1), device)
    for name in ("torchrec", "torchrec.modules", "torchrec.sparse"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, members in names.items():
        module = ModuleType(f"torchrec.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    step = gpu_contestants.torchrec(case, case.batches(2), device)
    for _ in range(3):
        step()


@pytest.mark.slow  # an interpreter is slow
def test_the_kernels_are_timed_and_the_size_of_dense_tables_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_kernels, "FIELDS", 2)
    monkeypatch.setattr(gpu_kernels, "BEFORE", 2)
    monkeypatch.setattr(gpu_kernels, "ROUNDS", 1)
    monkeypatch.setattr(gpu_kernels, "REPLAYS", ((0.0, 2), (1e-6, 3)))
    monkeypatch.setattr(gpu_kernels, "on", gpu_kernels.on)
    monkeypatch.setattr(row_access, "kernels_serve", row_access.kernels_serve)
    words = ["--device", DEVICE, "--rows", "40", "--widths", "4", "--batches", "8"]
    gpu_kernels.main([*words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    kinds = {line["what"].partition(" (")[0] for line in found["lines"]}
    assert {"distinct rows", "gather", "sum of duplicates", "read and catch up", "update"} <= kinds
    assert len(found["replay"]) == 2
    gpu_kernels.main([*words, "--crossover"])
    assert "width 4, batch 8: dense is the faster one up to " in capsys.readouterr().out
