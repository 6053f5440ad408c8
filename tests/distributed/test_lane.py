"""Rows travel on a stream of their own: doubles of streams and of processes say what waits for what."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dmoe.config.run import OptimiserConfig
from dmoe.distributed.exchange import Request, RowExchange
from dmoe.distributed.lane import Lane
from dmoe.distributed.world import World, world_from_environment
from dmoe.nn.build import build_model
from dmoe.nn.objective import Objective
from dmoe.schema import CategoricalField, NumericField, Schema
from dmoe.shards.batch import Batch
from dmoe.training.device import with_following
from dmoe.training.engine import Engine
from tests.small_runs import small_config

CPU = torch.device("cpu")
SCHEMA = Schema(
    label="click",
    fields=(*(CategoricalField(name=f"c{size}", vocabulary_size=size) for size in (12, 7)), NumericField(name="price")),
)


@dataclass
class Stream:
    name: str
    said: list[str]

    def wait_stream(self, other: "Stream") -> None:
        self.said.append(f"{self.name} waits for {other.name}")


class Streams:
    """What `torch.cuda` has of streams, which do their work at once and say what they are asked."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.inside = [Stream("compute", self.said)]

    def Stream(self, _: torch.device) -> Stream:
        return Stream("rows", self.said)

    def current_stream(self, _: torch.device) -> Stream:
        return self.inside[-1]

    @contextmanager
    def stream(self, one: Stream) -> Iterator[None]:
        self.inside.append(one)
        yield
        self.inside.pop()


class ToItself(World):
    """Several processes as far as a step asks; what is sent comes back."""

    several = True  # type: ignore[assignment]

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams

    def total(self, values: Tensor) -> Tensor:
        self.streams.said.append(f"sum of {len(values)} on {self.streams.inside[-1].name}")
        return values

    def exchange(self, sent: Tensor, counts: Sequence[int], received_counts: Sequence[int]) -> Tensor:
        assert list(counts) == list(received_counts)
        kind = "rows" if sent.is_floating_point() else "requests"
        self.streams.said.append(f"{kind} on {self.streams.inside[-1].name}")
        return sent.clone()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()

    def record(tensor: Tensor, stream: Stream) -> None:
        found.said.append(f"{tuple(tensor.shape)} kept for {stream.name}")

    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    return found


def test_what_is_started_waits_for_what_was_asked_and_is_waited_for_when_it_is_taken(streams: Streams) -> None:
    lane = Lane(CPU, streams)
    found = lane.start([torch.ones(3)], lambda: [torch.ones(3, 2)])
    assert streams.said == ["rows waits for compute", "(3,) kept for rows"]
    streams.said.clear()
    (made,) = found()
    assert streams.said == ["compute waits for rows", "(3, 2) kept for compute"]
    assert made.shape == (3, 2)


def test_on_the_cpu_work_is_done_at_once() -> None:
    done: list[int] = []
    found = Lane(CPU).start([], lambda: [torch.tensor(done.append(1) is None)])
    assert done == [1]
    assert found()[0]


def engine(world: World | None, streams: Streams | None = None, clip: float | None = 0.5) -> Engine:
    config = small_config("decorrelation=[]")
    model = build_model(config.model, SCHEMA, seed=1, world=world)
    optimiser = OptimiserConfig(lr=0.01, embedding_l2=1e-3)
    found = Engine(model, Objective(), optimiser, clip_norm=clip, device=CPU, world=world)
    found.at_once = False
    if streams is not None:
        found._lane = Lane(CPU, streams)
    return found


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Batch(
            torch.stack([torch.randint(0, size, (9,), generator=generator) for size in (12, 7)], 1).int(),
            torch.randn(9, 1, generator=generator),
            torch.randint(0, 2, (9, 1), generator=generator).float(),
        )
        for _ in range(count)
    ]


def test_a_step_sends_rows_on_their_stream_beside_the_sum_of_gradients(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And asks for the rows of the next batch before it waits for anything: that is the host's work, not a stream's."""
    real = RowExchange.request

    def request(self: RowExchange, *given: Any) -> list[Request]:
        streams.said.append("asked")
        return real(self, *given)

    monkeypatch.setattr(RowExchange, "request", request)
    ours = engine(ToItself(streams), streams)
    given = batches(3)
    ours.step(given[0], 0, given[1])
    streams.said.clear()
    ours.step(given[1], 1, given[2])
    order = [line for line in streams.said if "kept" not in line and "requests" not in line]
    dense = sum(one.numel() for one in ours.dense)
    numbers = len(ours.dense)
    assert order == [
        # The values of this batch's rows, asked for a step ago, and the forward pass after them.
        "rows waits for compute",
        "rows on rows",
        "compute waits for rows",
        "asked",
        # Their gradients go back while everything else is summed.
        "rows waits for compute",
        "rows on rows",
        f"sum of {numbers + 2} on compute",  # what the hosts tell each other
        f"sum of {dense + 4} on compute",
        "compute waits for rows",
        "sum of 1 on compute",  # the norm
    ]
    # A row and a gradient each of which another stream reads or makes.
    assert any("kept for rows" in line for line in streams.said)
    assert any("kept for compute" in line for line in streams.said)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_bits_are_those_of_a_step_without_processes(streams: Streams, clip: float | None) -> None:
    alone, ours = engine(None, clip=clip), engine(ToItself(streams), streams, clip=clip)
    for one in (alone, ours):
        for step, (batch, following) in enumerate(with_following(iter(batches(12)))):
            one.step(batch, step, following)
        one.flush()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name


@pytest.mark.parametrize(("devices", "backend", "groups"), [(True, "cpu:gloo,cuda:nccl", 1), (False, "gloo", 0)])
def test_tensors_of_devices_go_by_nccl_in_a_group_of_their_own(
    monkeypatch: pytest.MonkeyPatch, devices: bool, backend: str, groups: int
) -> None:
    """The kind of the group that is asked for; none is made here."""
    asked: list[Any] = []
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    store = torch.distributed.HashStore()
    monkeypatch.setattr("dmoe.distributed.world.rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda kind, **_: asked.append(kind))
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: asked.append("rows") or "rows")
    found = world_from_environment()
    assert asked == [backend, *["rows"] * groups]
    sent: list[Any] = []
    monkeypatch.setattr(torch.distributed, "all_to_all_single", lambda *_, group: sent.append(group))
    found.group = "all"  # type: ignore[assignment]
    for device in ("cpu", "meta"):
        found.exchange(torch.empty(2, 3, device=device), [1, 1], [1, 1])
    assert sent == ["all", "rows" if devices else None]
