"""Tables in host memory with the model elsewhere: on the CPU the copies between are real, so the bits must be equal."""

import pytest
import torch

from dmoe.config.run import CowClipConfig, OptimiserConfig
from dmoe.errors import DataError, Interrupted
from dmoe.nn.build import build_model
from dmoe.nn.objective import Objective
from dmoe.schema import Schema
from dmoe.shards.batch import Batch
from dmoe.training.engine import Engine
from dmoe.training.loop import train
from tests.small_runs import small_config, with_tasks
from tests.training.test_loop import StopAt, assert_same_bits, weights


@pytest.mark.parametrize(
    ("embedding", "storage"),
    [("deferred", "float32"), ("deferred", "bfloat16"), ("dense", "float32"), ("rowwise-adagrad", "float32")],
)
def test_host_tables_train_to_the_same_bits(small_data, tmp_path, embedding, storage):
    overrides = [f"optimiser.embedding={embedding}", f"model.embedding_storage={storage}", "training.epochs=2"]
    if embedding == "rowwise-adagrad":
        overrides.append("optimiser.embedding_l2=0")
    here = train(small_config(*overrides), small_data, tmp_path / "here")
    host = small_config(*overrides, "training.tables=host")
    assert_same_bits(here, train(host, small_data, tmp_path / "host"))
    with pytest.raises(Interrupted):
        train(host, small_data, tmp_path / "cut", watcher=StopAt(9))
    assert_same_bits(here, train(host, small_data, tmp_path / "cut", resume=True))
    assert weights(here)["embedding.banks.0.tables.weight"].abs().max() > 1e-3


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.embedding_storage=float16", "model.shrinkage=5", "optimiser.embedding_l2_rarity=0.5"],
        ["optimiser.embedding_clip={r: 0.1}", "optimiser.embedding_l2=1e-3", "training.clip_norm=0.01"],
    ],
)
def test_tables_of_several_labels_and_banks_train_to_the_same_bits(small_data, tmp_path, overrides):
    """Fields that one expert alone reads, and a domain's towers scaled by its field."""
    data = with_tasks(small_data, tmp_path / "tasks", domain=True, weight=True)
    several = [
        *("training.epochs=1", "training.batch_size=200", "model.heads=task-and-domain", "training.unseen=auto"),
        "model.experts=[{kind: cin, units: [6], fields: [site, hour]}, {kind: crossnet, layers: 2}]",
        *("model.tasks={buy: {loss: entire-space}}", "model.tower_scale={fields: [device]}"),
    ]
    here = train(small_config(*several, *overrides), data, tmp_path / "here")
    host = small_config(*several, *overrides, "training.tables=host")
    with pytest.raises(Interrupted):
        train(host, data, tmp_path / "host", watcher=StopAt(3))
    assert_same_bits(here, train(host, data, tmp_path / "host", resume=True))


@pytest.mark.parametrize("clip", [False, True])
def test_working_ahead_changes_no_bit(small_data, clip):
    """Rows of the next batch are caught up while the device computes; most of them are rows of this one too."""
    config = small_config()
    schema = Schema.read(small_data)
    generator = torch.Generator().manual_seed(3)
    batches = [
        Batch(
            torch.stack([torch.randint(0, size, (9,), generator=generator) for size in (12, 7, 5)], 1).int(),
            torch.randn(9, 1, generator=generator),
            torch.randint(0, 2, (9, 1), generator=generator).float(),
        )
        for _ in range(30)
    ]
    optimiser = OptimiserConfig(lr=0.01, embedding_l2=1e-4, embedding_clip=CowClipConfig() if clip else None)
    found = []
    for host, ahead in ((False, False), (True, False), (True, True)):
        model = build_model(config.model, schema, seed=1)
        engine = Engine(model, Objective(), optimiser, clip_norm=1.0, device=torch.device("cpu"), host_tables=host)
        for step, batch in enumerate(batches):
            following = batches[step + 1] if ahead and step + 1 < len(batches) else None
            engine.step(batch, step, following)
        engine.flush()
        found.append(model.state_dict())
    for other in found[1:]:
        for name, tensor in found[0].items():
            assert torch.equal(tensor, other[name]), name


def test_a_bad_id_of_the_next_batch_is_named_before_its_rows_are_touched(small_data):
    config, schema = small_config(), Schema.read(small_data)
    model = build_model(config.model, schema, seed=1)
    engine = Engine(model, Objective(), OptimiserConfig(), clip_norm=1.0, device=torch.device("cpu"), host_tables=True)
    good = Batch(torch.zeros(4, 3, dtype=torch.int32), torch.zeros(4, 1), torch.tensor([[0.0], [1], [0], [1]]))
    bad = Batch(torch.full((4, 3), 99, dtype=torch.int32), good.numeric_BN, good.labels_BT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match="the batch after it, row 0 of the batch: categorical field 0 'site' has id 99"):
        engine.step(good, 0, bad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
