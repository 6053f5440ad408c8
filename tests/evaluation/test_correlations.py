"""CEC by level and within each domain is that of the outputs and rows it speaks of."""

import pytest
import torch

from dmoe import CrossExpertCorrelation
from dmoe.config.run import load_config
from dmoe.evaluation.correlations import CorrelationsApart, correlation_json
from dmoe.nn.build import build_model
from dmoe.nn.output import DMoEOutput
from dmoe.schema import CategoricalField, Domain, Schema, Task

SCHEMA = Schema(
    label="click",
    fields=tuple(CategoricalField(name=name, vocabulary_size=6) for name in ("a", "tab")),
    labels=(Task(name="click"), Task(name="like")),
    domain=Domain(field="tab", names=("x", "y", "z"), of_id=(0, 1, 0, 1, 0, 2)),
)


@pytest.fixture(scope="module")
def outputs() -> list[DMoEOutput]:
    config = load_config("ple", ["model.expert_units=4", "model.tower_units=[3]", "model.embedding_dim=2"])
    model = build_model(config.model, SCHEMA, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7, generator=generator)
        return [model(torch.randint(0, 5, (size, 2), generator=generator)) for size in (50, 30)]


def test_levels_and_domains_are_measured_by_themselves(outputs: list[DMoEOutput]) -> None:
    apart = CorrelationsApart(2, SCHEMA.domain.names)
    for output in outputs:
        apart.update(output)
    found = apart.result()
    domains = torch.cat([output.domain for output in outputs])
    for level in (0, 1):
        whole = [torch.cat(parts) for parts in zip(*(output.levels[level] for output in outputs), strict=True)]
        metric = CrossExpertCorrelation(len(whole))
        metric.update(whole)
        assert found["correlation_by_level"][level]["total"] == pytest.approx(metric.compute().total, rel=1e-12)
    for number, name in enumerate("xy"):
        metric = CrossExpertCorrelation(len(whole))
        metric.update([one[domains == number] for one in whole])
        own = found["correlation_by_domain"][name]
        assert own["rows"] == int((domains == number).sum())
        assert own["matrix"] == correlation_json(metric)["matrix"]
    assert found["correlation_by_domain"]["z"] is None  # no row of it


def test_one_level_without_domains_has_nothing_apart(outputs: list[DMoEOutput]) -> None:
    apart = CorrelationsApart(1)
    apart.update(outputs[0])
    assert apart.result() == {}
