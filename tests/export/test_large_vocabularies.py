"""Runs of which vocabularies are mapped from files score as those that hold them in memory, in less of it."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dmoe
from dmoe.schema import Schema, vocabulary_path
from dmoe.tokens import lookup
from dmoe.tokens.lookup import copy_vocabularies, tokens_path
from dmoe.tokens.vocabulary import VOCABULARY
from dmoe.weights.run import Run, load_tensors, save_tensors

_MORE = 6_000_000
_LIMIT = 2 << 30


@pytest.fixture
def mapped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run as it is where all vocabularies are large, without the vocabularies themselves."""
    shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "vocabulary")
    monkeypatch.setattr(lookup, "LARGE_TOKENS", -1)
    copy_vocabularies(run.path, tmp_path / "run", run.schema)
    for field in run.schema.categorical:
        owner = field.vocabulary_name
        assert tokens_path(tmp_path / "run", owner).is_dir()
        assert not tokens_path(run.path, owner).exists()
        vocabulary_path(tmp_path / "run", owner).unlink(missing_ok=True)
    return tmp_path / "run"


def test_scores_are_equal_to_the_bit(run: Run, mapped: Path, log: Path) -> None:
    """Of every kind of field, and nothing but the files that are mapped is read."""
    found, wanted = (dmoe.load(folder).predict_proba(log) for folder in (mapped, run.path))
    np.testing.assert_array_equal(found, wanted)


def grown(run: Run, folder: Path) -> Path:
    """The run and its data set with `_MORE` tokens of a field that no row holds; its folder."""
    data = run.path.parent / "data"
    shutil.copytree(data, folder / "data")
    (place,) = (number for number, field in enumerate(run.schema.categorical) if field.name == "user")
    size = run.schema.categorical[place].vocabulary_size
    schema = json.loads((data / "schema.json").read_text())
    (user,) = (field for field in schema["fields"] if field["name"] == "user")
    user["vocabulary_size"] += _MORE
    (folder / "data" / "schema.json").write_text(json.dumps(schema))
    with pq.ParquetWriter(vocabulary_path(folder / "data", "user"), VOCABULARY) as writer:
        writer.write_table(pq.read_table(vocabulary_path(data, "user"), schema=VOCABULARY))
        for start in range(size, size + _MORE, 1 << 20):
            ids = range(start, min(start + (1 << 20), size + _MORE))
            writer.write_table(pa.table([[f"~{id_}" for id_ in ids], [1] * len(ids), ids], schema=VOCABULARY))
    shutil.copytree(run.path, folder / "run", ignore=shutil.ignore_patterns("vocabulary"))
    shutil.copy(folder / "data" / "schema.json", folder / "run")
    copy_vocabularies(folder / "data", folder / "run", Schema.read(folder / "data"))
    environment = json.loads((folder / "run" / "environment.json").read_text())
    (folder / "run" / "environment.json").write_text(json.dumps({**environment, "data": str(folder / "data")}))
    name, rows = run.load_model().embedding.place(place) or ("", slice(0))
    weights = load_tensors(run.weights)
    table = weights[f"embedding.{name}"]
    assert rows == slice(0, size)
    assert len(table) == size
    weights[f"embedding.{name}"] = torch.cat([table, table.new_zeros(_MORE, table.shape[1])])
    save_tensors(folder / "run" / "model.safetensors", weights, Run.weights_metadata())
    return folder / "run"


def limited(*arguments: str | Path) -> None:
    """Runs the command with memory of its own below `_LIMIT`."""
    done = subprocess.run(
        [sys.executable, "-m", "dmoe", *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT, _LIMIT)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_six_million_tokens_are_scored_and_exported_in_memory_that_does_not_hold_them(
    run: Run, log: Path, tmp_path: Path
) -> None:
    large = grown(run, tmp_path)
    limited("predict", large, log, "-o", tmp_path / "run.parquet")
    limited("export", large, "-o", tmp_path / "model")
    limited("predict", tmp_path / "model", log, "-o", tmp_path / "model.parquet")
    wanted = dmoe.load(run.path).predict_proba(log)
    found = {name: pq.read_table(tmp_path / f"{name}.parquet")["probability"].to_numpy() for name in ("run", "model")}
    np.testing.assert_array_equal(found["run"], wanted)
    np.testing.assert_allclose(found["model"], wanted, atol=1e-6)
