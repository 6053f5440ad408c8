"""The search for alpha, and the order of cells."""

from dmoe.experiments import grid, plan


def arm_with_loss() -> grid.Arm:
    return next(arm for arm in grid.arms("table1", grid.size("small")) if arm.searched)


def figures(score: float, test: float = 0.0) -> dict:
    return {"metrics": {"valid": {"auc": score, "logloss": 0.0}, "test": {"auc": test, "logloss": 0.0}}}


def finished(scores: dict[float, float], seed: int = 1, test: float = 0.0) -> dict[str, dict]:
    arm = arm_with_loss()
    return {arm.cell(seed, alpha).key: figures(score, test) for alpha, score in scores.items()}


def test_alpha_is_the_best_on_the_validation_split() -> None:
    arm = arm_with_loss()
    assert plan.alpha_of(arm, 1, finished({1: 0.5, 10: 0.7, 100: 0.6, 1000: 0.1})) == 10
    found = plan.search(arm, 1, finished({1: 0.5, 10: 0.7, 100: 0.6, 1000: 0.9}))
    assert found is not None
    assert found.chosen == 1000
    assert found.at_edge


def test_the_test_split_has_no_part_in_the_choice() -> None:
    arm = arm_with_loss()
    scores = {1: 0.5, 10: 0.7, 100: 0.6, 1000: 0.1}
    known = finished(scores)
    known[arm.cell(1, 1000).key] = figures(0.1, test=1.0)
    assert plan.alpha_of(arm, 1, known) == 10
    for cell in known.values():
        del cell["metrics"]["test"]
    assert plan.alpha_of(arm, 1, known) == 10


def test_of_equal_alphas_the_smaller_is_chosen() -> None:
    assert plan.alpha_of(arm_with_loss(), 1, finished({1: 0.5, 10: 0.7, 100: 0.7, 1000: 0.1})) == 10


def test_a_search_waits_for_every_run_and_passes_over_failed_ones() -> None:
    arm = arm_with_loss()
    known = finished({1: 0.5, 10: 0.7, 100: 0.6})
    assert plan.search(arm, 1, known) is None
    assert plan.cells_of(arm, [1, 2], known) == {}
    failed = [arm.cell(1, 1000).key]
    assert plan.alpha_of(arm, 1, known, failed) == 10
    everything = [arm.cell(1, alpha).key for alpha in arm.alphas]
    assert plan.alpha_of(arm, 1, {}, everything) is None


def test_cells_come_seed_by_seed_and_once_each() -> None:
    arms = [arm for name in ("table1", "fig5") for arm in grid.arms(name, grid.size("small"))]
    wanted = plan.wanted(arms, [1, 2], {})
    assert [one.seed for one in wanted] == sorted(one.seed for one in wanted)
    assert len({one.cell.key for one in wanted}) == len(wanted)
    shared = next(one for one in wanted if one.cell == grid.arms("fig5", grid.size("small"))[0].cell(1))
    assert shared.experiments == ["table1", "fig5"]
    # Only the first seed is searched.
    assert {one.seed for one in wanted if one.cell.config.decorrelation} == {1}
