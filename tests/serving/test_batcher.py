"""Batches of many requests against each request alone; the queue's bound; what is given up is not scored."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoe.export.fields import Features
from dmoe.export.onnx_model import OnnxModel
from dmoe.serving.batcher import Batcher, QueueFull

_opened: dict[Path, OnnxModel] = {}


def model_of(folder: Path) -> OnnxModel:
    return _opened.setdefault(folder, OnnxModel.open(folder))


def features(model: OnnxModel, rows: int, seed: int) -> Features:
    draw = np.random.default_rng(seed)
    texts = np.array(["a", "b", "u1", "1", "3", ""], dtype=object)
    made: Features = {}
    for one in model.inputs:
        if one.kind == "number":
            made[one.name] = draw.integers(0, 9, (rows, 1)).astype(float)
        elif one.kind == "id":
            made[one.name] = draw.integers(0, 5, (rows, one.width))
        else:
            made[one.name] = draw.choice(texts, (rows, 1))
    return made


def batcher(observed: list[int] | None = None, **options: float) -> Batcher:
    values = {"threads": 2, "batch_rows": 8, "max_queue_rows": 1000, "delay_s": 0.0} | options
    return Batcher(observe=(observed if observed is not None else []).append, **values)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), delay_s=st.sampled_from([0.0, 0.002]))
def test_each_request_gets_its_own_rows(in_graph: Path, sizes: list[int], delay_s: float) -> None:
    model = model_of(in_graph)
    parts = [features(model, size, seed) for seed, size in enumerate(sizes)]
    observed: list[int] = []

    async def all_at_once() -> list[dict[str, np.ndarray]]:
        one = batcher(observed, delay_s=delay_s)
        try:
            names = [("probability",), ("probability", "gate_weights"), ("logit",)]
            return await asyncio.gather(*(one.score(model, part, names[index % 3]) for index, part in enumerate(parts)))
        finally:
            assert one.queued_rows == 0
            one.close()

    for index, (part, found) in enumerate(zip(parts, asyncio.run(all_at_once()), strict=True)):
        expected = model.graph.run(part, ("probability", "logit", "gate_weights"))
        assert set(found) == [{"probability"}, {"probability", "gate_weights"}, {"logit"}][index % 3]
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], atol=1e-6)
    assert sum(observed) == sum(sizes)
    assert max(observed) <= 8


def test_waiting_rows_share_a_batch_and_models_do_not(in_graph: Path) -> None:
    model = model_of(in_graph)
    other = OnnxModel.open(in_graph)
    observed: list[int] = []

    async def scored() -> None:
        one = batcher(observed, threads=1, delay_s=0.05)
        await asyncio.gather(*(one.score(model, features(model, 1, seed), ("logit",)) for seed in range(5)))
        await asyncio.gather(*(one.score(each, features(model, 1, 0), ("logit",)) for each in (model, other)))
        one.close()

    asyncio.run(scored())
    assert observed == [5, 1, 1]


def test_a_full_queue_refuses_at_once_and_has_room_again(in_graph: Path) -> None:
    model = model_of(in_graph)

    async def scored() -> None:
        one = batcher(max_queue_rows=10)
        first = asyncio.create_task(one.score(model, features(model, 8, 0), ("logit",)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await one.score(model, features(model, 3, 0), ("logit",))
        await first
        await one.score(model, features(model, 10, 0), ("logit",))
        one.close()

    asyncio.run(scored())


def test_what_is_given_up_is_not_scored(in_graph: Path) -> None:
    model = model_of(in_graph)
    observed: list[int] = []

    async def scored() -> None:
        one = batcher(observed, threads=1)
        first = asyncio.create_task(one.score(model, features(model, 8, 0), ("logit",)))
        given_up = asyncio.create_task(one.score(model, features(model, 7, 0), ("logit",)))
        await asyncio.sleep(0)
        given_up.cancel()
        await first
        await one.score(model, features(model, 1, 0), ("logit",))
        assert one.queued_rows == 0
        one.close()

    asyncio.run(scored())
    assert observed == [8, 1]


def test_a_failure_reaches_every_request_of_the_batch(in_graph: Path) -> None:
    model = model_of(in_graph)
    broken = features(model, 1, 0)
    del broken["site"]

    async def scored() -> None:
        one = batcher()
        with pytest.raises(ValueError, match="site"):
            await one.score(model, broken, ("logit",))
        await one.score(model, features(model, 1, 0), ("logit",))
        one.close()

    asyncio.run(scored())
