"""The shipped grids: every cell is a run that can be built, and cells that mean the same run are one."""

import pytest

from dmoe.config.run import RunConfig
from dmoe.errors import ConfigError
from dmoe.experiments import grid, plan
from dmoe.experiments.paper import paper
from dmoe.nn.build import build_model, build_terms
from dmoe.schema import CategoricalField, NumericField, Schema

SCHEMA = Schema(
    label="click",
    fields=(
        CategoricalField(name="site", vocabulary_size=5),
        CategoricalField(name="user", vocabulary_size=4),
        NumericField(name="price"),
    ),
)


def keys(name: str, seeds: list[int], size: str = "small") -> set[str]:
    arms = grid.arms(name, grid.size(size))
    return {cell.key for arm in arms for cell in _all(arm, seeds)}


def _all(arm: grid.Arm, seeds: list[int]) -> list[grid.Cell]:
    return [arm.cell(seed, alpha) for seed in seeds for alpha in (arm.alphas or (None,))]


@pytest.mark.parametrize("size", grid.sizes())
@pytest.mark.parametrize("name", grid.names())
def test_every_cell_is_a_model_that_can_be_built(name: str, size: str) -> None:
    for arm in grid.arms(name, grid.size(size), parts=[100, 300], train_rows=300):
        if size == grid.RECIPE and arm.made.table_parameters_of_me:
            with pytest.raises(ConfigError, match="choose another --size"):
                _all(arm, [3])
            continue
        config = _all(arm, [3])[0].config
        assert config.training.seed == 3
        if size in ("tiny", "small"):
            model = build_model(config.model, SCHEMA, seed=3)
            assert len(build_terms(config.decorrelation, model)) == (arm.loss is not None)


def test_a_cell_is_read_back_from_its_yaml_as_itself() -> None:
    import yaml

    for arm in grid.arms("table1", grid.size("small")):
        cell = arm.cell(1, *arm.alphas[:1])
        assert grid.Cell.of(RunConfig.model_validate(yaml.safe_load(cell.config.to_yaml()))) == cell


def test_tables_and_figures_share_their_cells() -> None:
    seeds = [1, 2]
    assert keys("fig5", seeds) <= keys("table1", seeds)
    assert keys("fig7", seeds) <= keys("fig1", seeds)
    # The heterogeneous mixture and the CrossNet rows of figure 1 are those of table 1; only CIN + CIN is new.
    new = keys("fig1", seeds) - keys("table1", seeds)
    cin = {cell.key for arm in grid.arms("fig1", grid.size("small")) if arm.model == "CIN" for cell in _all(arm, seeds)}
    assert new == cin
    assert len(keys("table2", seeds) & keys("table1", seeds)) == 2 * 2 * (1 + 4)


def test_a_single_expert_is_one_cell_whatever_its_tables_are_called() -> None:
    one = next(arm for arm in grid.arms("experts", grid.size("small")) if arm.model == "1 CrossNet")
    single = next(
        arm for arm in grid.arms("table1", grid.size("small")) if (arm.model, arm.variant) == ("CrossNet", "Single")
    )
    assert one.cell(1) == single.cell(1)
    assert one.cell(1) != one.cell(2)


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_wide_tables_have_the_parameters_of_me(size: str) -> None:
    """Counted on the models themselves: at most one column more than ME, never fewer."""
    arms = {(arm.model, arm.variant): arm for arm in grid.arms("controls", grid.size(size))}

    def width(variant: str) -> int:
        model = build_model(arms["CrossNet", variant].cell(1, 1.0).config.model, SCHEMA, seed=1)
        (tables,) = model.embedding.row_tables()
        return tables.weight.shape[1]

    for variant in ("Single, wide table", "SE, wide table"):
        assert width("ME") <= width(variant) <= width("ME") + 1
    assert width("Single") < width("ME")


def test_changes_reach_every_cell() -> None:
    for arm in grid.arms("table2", grid.size("small"), ("optimiser.embedding_l2=0.5",)):
        assert arm.cell(1, *arm.alphas[:1]).config.optimiser.embedding_l2 == 0.5


def test_groups_are_spelled_out_once_and_in_order() -> None:
    assert grid.expand(["fig8", "all"]) == list(grid.PAPER)
    assert grid.expand(["beyond", "table1"]) == ["table1", *grid.BEYOND]
    with pytest.raises(ConfigError, match="no experiment 'tabel1'; did you mean 'table1'"):
        grid.expand(["tabel1"])
    with pytest.raises(ConfigError, match="no such size; did you mean 'small'"):
        grid.size("smal")


def test_sizes_follow_the_log() -> None:
    assert grid.size_for(SCHEMA, 88_000) == "small"
    assert grid.size_for(SCHEMA, 30_000_000) == "paper-criteo"
    without = Schema(label="click", fields=SCHEMA.fields[:2])
    assert grid.size_for(without, 30_000_000) == "paper-avazu"


def test_the_papers_numbers_stand_under_our_names() -> None:
    for name, table in paper().tables.items():
        spec = grid.grid(name)
        assert set(table.columns) <= set(spec.variants)
        for row, values in table.rows.items():
            assert row.split(",")[0] in spec.models
            assert len(values) == len(table.columns)
    assert set(paper().slips) | set(paper().statements) <= set(grid.names())


def test_expected_number_is_what_comes_out() -> None:
    arms = [arm for name in grid.PAPER for arm in grid.arms(name, grid.size("tiny"))]
    seeds = [1, 2, 3]
    finished: dict[str, dict] = {}
    while new := [one for one in plan.wanted(arms, seeds, finished) if one.cell.key not in finished]:
        for one in new:
            auc = int(one.cell.key[:4], 16) / 2**17
            finished[one.cell.key] = {"metrics": {"valid": {"auc": auc, "logloss": 0.5}}}
    assert len(finished) == plan.expected_number(arms, seeds)
