"""`model.shrinkage` and `optimiser.embedding_clip` in whole runs."""

import pytest
import torch

from dmoe.config.run import changed_config
from dmoe.errors import ConfigError, Interrupted
from dmoe.nn.build import build_model
from dmoe.nn.objective import Objective
from dmoe.schema import Schema
from dmoe.shards.reader import SplitReader
from dmoe.training.engine import Engine
from dmoe.training.log_facts import measure_log
from dmoe.training.loop import train
from dmoe.training.recipe import shrink
from tests.small_runs import small_config
from tests.training.test_loop import StopAt

SHRUNK = "model.shrinkage=20"
CLIPPED = "optimiser.embedding_clip={kind: cowclip, r: 0.1, zeta: 1e-4}"


@pytest.mark.parametrize("option", [SHRUNK, CLIPPED])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(small_data, tmp_path, option, storage):
    config = small_config(option, f"model.embedding_storage={storage}", "training.epochs=2")
    whole = train(config, small_data, tmp_path / "whole").load_weights()
    with pytest.raises(Interrupted):
        train(config, small_data, tmp_path / "run", watcher=StopAt(21))
    resumed = train(config, small_data, tmp_path / "run", resume=True).load_weights()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    plain = train(changed_config(config, ["model.shrinkage=0", "optimiser.embedding_clip=null"]), small_data,
                  tmp_path / "plain").load_weights()  # fmt: skip
    assert not torch.equal(plain["head.weight"], whole["head.weight"])


@pytest.mark.parametrize("option", [SHRUNK, CLIPPED])
def test_deferred_trains_the_model_of_dense(small_data, option):
    """Whole steps of the model, of which float32 parts remain; alone, tables are compared to 1e-9 elsewhere."""
    config, schema = small_config(option, "model.field_std=0.1"), Schema.read(small_data)
    facts = measure_log(small_data, schema)
    torch.set_default_dtype(torch.float64)
    try:
        found = []
        for kind in ("deferred", "dense"):
            model = build_model(config.model, schema, seed=1)
            if config.model.shrinkage:
                shrink(model, facts, config.model.shrinkage)
            optimiser = changed_config(config, [f"optimiser.embedding={kind}"]).optimiser
            engine = Engine(model, Objective(), optimiser, clip_norm=None, device=torch.device("cpu"))
            reader = SplitReader(small_data, "train", batch_size=64, shuffle=True, seed=3)
            for number, batch in enumerate([*reader.batches(0), *reader.batches(1)]):
                engine.step(batch, number)
            engine.release()
            found.append(model.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_the_saved_model_is_the_training_one_folded(small_data, tmp_path):
    """Without any count the run's model says what the model said while it was trained."""
    batch = next(iter(SplitReader(small_data, "valid", batch_size=200).batches()))
    seen = []

    def look(model):
        with torch.no_grad():
            seen.append(model.eval()(batch.ids_BC, batch.numeric_BN).logit)
        model.train()
        return {}

    config = small_config(SHRUNK, "training.epochs=1")
    run = train(config, small_data, tmp_path / "run", on_evaluation=look)
    (trained,) = seen
    loaded = run.load_model()
    torch.testing.assert_close(loaded(batch.ids_BC, batch.numeric_BN).logit, trained, rtol=0, atol=1e-6)


def test_what_does_not_go_together_is_said():
    with pytest.raises(ConfigError, match="shrinkage"):
        small_config(SHRUNK, CLIPPED)
    with pytest.raises(ConfigError, match="would be clipped in every row"):
        small_config(CLIPPED, "optimiser.embedding_l2=0.2")
    with pytest.raises(ConfigError, match="zeta"):
        small_config("optimiser.embedding_clip={zeta: 0}")
