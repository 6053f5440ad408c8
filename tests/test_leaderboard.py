"""The leaderboard's choices, on figures that are made up, and its table, on scores whose comparison is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from benchmarks import leaderboard
from benchmarks.leaderboard import Mixture, Models, Settings, candidates, choose_l2, choose_mixtures
from benchmarks.leaderboard_table import Entry, chosen_d_moe, compare, read_rivals, write_table
from pyarrow import parquet

from dmoe.disk.files import read_json, write_json
from dmoe.experiments.grid import Cell
from dmoe.nn.experts import EXPERTS
from dmoe.schema import CategoricalField, Schema
from dmoe.validation import validate
from dmoe.yaml_text import read_yaml

SCHEMA = Schema(label="click", fields=tuple(CategoricalField(name=f"f{i}", vocabulary_size=9) for i in range(6)))


def shipped() -> Settings:
    return validate(Settings, read_yaml(leaderboard.SETTINGS), str(leaderboard.SETTINGS))


class MadeUp:
    """Stands for `Trials`: the score of a run is what `value` says of its configuration."""

    def __init__(self, value: Any) -> None:
        self.value, self.ran = value, []

    def figures(self, cells: Mapping[Any, Cell]) -> dict[Any, dict[str, Any]]:
        found = {}
        for name, cell in cells.items():
            self.ran.append(cell)
            score = self.value(cell.config)
            if score is not None:
                found[name] = {"metrics": {"valid": {"auc": score, "logloss": 0.0}, "test": {"auc": -score}}}
        return found


def test_every_kind_is_on_the_board_and_can_be_built() -> None:
    settings = shipped()
    assert set(settings.kinds) == set(EXPERTS)
    models = Models(settings, SCHEMA)
    for kind in settings.kinds:
        config = models.single(kind, 1e-2, 1).config
        made = config.model.experts[0]
        width = config.model.embedding_dim
        EXPERTS[kind](6, width, **{key: value for key, value in made.items() if key != "kind"})
    assert models.width("ffm") == 4 * 5
    assert models.width("onn") == 4 * 6


def test_l2_and_order_come_from_the_validation_split() -> None:
    quality = {kind: index / 1000 for index, kind in enumerate(shipped().kinds)}

    def value(config: Any) -> float | None:
        kind, l2 = config.model.experts[0]["kind"], config.optimiser.embedding_l2
        if kind == "cin":
            return None  # failed, whatever its L2
        return 0.7 + quality[kind] - (0.01 if l2 != 1e-2 else 0)

    models = Models(shipped(), SCHEMA)
    found = choose_l2(models, MadeUp(value), 1)
    assert list(found) == [kind for kind in reversed(quality) if kind != "cin"]
    assert set(found.values()) == {1e-2}


def test_candidates_are_pairs_and_triples_of_the_best() -> None:
    settings = shipped().model_copy(update={"pairs_of": 3, "triples_of": 2})
    found = [one.kinds for one in candidates(["a", "b", "c", "d"], settings)]
    assert found == [
        *[("a", "a"), ("b", "b"), ("c", "c"), ("a", "b"), ("a", "c"), ("b", "c")],
        *[("a", "a", "a"), ("b", "b", "b")],
    ]
    assert Mixture(("a", "b", "a"), None).group == "heterogeneous triple"


def test_the_best_of_each_group_gets_its_own_alpha() -> None:
    ranked = ["crossnet", "dcnv2", "fm", "lr", "ffm"]

    def value(config: Any) -> float:
        kinds = [expert["kind"] for expert in config.model.experts]
        alpha = config.decorrelation[0].alpha
        best_alpha = 100.0 if len(set(kinds)) > 1 else 1.0
        return 0.7 + 0.01 * kinds.count("dcnv2") + 0.004 * kinds.count("ffm") + (0.001 if alpha == best_alpha else 0)

    trials = MadeUp(value)
    settings = shipped().model_copy(update={"pairs_of": 5, "triples_of": 4})
    found = choose_mixtures(Models(settings, SCHEMA), trials, ranked, 1)
    assert {(one.group, one.kinds, one.alpha) for one in found} == {
        ("homogeneous pair", ("dcnv2",) * 2, 1.0),
        ("heterogeneous pair", ("dcnv2", "ffm"), 100.0),
        ("homogeneous triple", ("dcnv2",) * 3, 1.0),
        # ffm is fifth, and triples are of the first four.
        ("heterogeneous triple", ("crossnet", "dcnv2", "fm"), 100.0),
    }
    mixed = next(cell for cell in trials.ran if [e["kind"] for e in cell.config.model.experts] == ["dcnv2", "ffm"])
    assert mixed.config.model.embedding_dim == [4, 20]


def entry(folder: Path, name: str, form: str, quality: float, seeds: int = 3) -> Entry:
    """An entry whose logits are the label's odds at `quality` under noise of their own."""
    folder.mkdir(exist_ok=True)
    labels = np.random.default_rng(0).random(4000) < 0.3
    made = Entry("dmoe" if form != "peer" else "peer", name, form, "")
    for seed in range(1, seeds + 1):
        noise = np.random.default_rng([seed, len(name)]).normal(size=len(labels))
        path = folder / f"{name}-{form}-{seed}.parquet"
        split = pa.array(["valid"] * 3 + ["test"] * len(labels)).dictionary_encode()
        logit = np.concatenate([[9.0, 9.0, 9.0], quality * labels + noise])
        parquet.write_table(
            pa.table({"split": split, "label": np.concatenate([[False, True, False], labels]), "logit": logit}), path
        )
        metrics = {"auc": 0.5 + quality / 4, "logloss": 0.6 - quality / 10}
        made.add(seed, {"valid": metrics, "test": metrics}, path)
    return made


def test_the_table_says_who_is_better_beyond_chance(tmp_path: Path) -> None:
    best = entry(tmp_path, "good", "D-MoE", 1.0)
    entries = [
        entry(tmp_path, "lesser", "D-MoE", 0.9),
        entry(tmp_path, "poor", "single model", 0.2),
        entry(tmp_path, "equals", "single model", 1.0),
        best,
        entry(tmp_path, "strong", "peer", 1.9),
    ]
    assert chosen_d_moe(entries) is best
    assert "| 0.0000 (0.0000 to 0.0000) |" in write_table([best, entry(tmp_path, "twin", "D-MoE", 1.0)], tmp_path)
    text = write_table(entries, tmp_path)
    by_name = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "D-MoE is better" in by_name["poor"]
    assert "not resolved" in by_name["equals"]
    assert "D-MoE is worse" in by_name["strong, peer"]
    assert by_name["**good, D-MoE**"].rstrip(" |").endswith("0.0000")
    places = list(by_name)
    assert places.index("strong, peer") < places.index("**good, D-MoE**") < places.index("poor")
    written = read_json(tmp_path / "leaderboard.json")["entries"]
    assert [one["chosen"] for one in written].count(True) == 1
    against = next(one for one in written if one["model"] == "poor")["d_moe_minus_this"]
    # AUC of a shift q under unit noise on one side: Phi(q / sqrt 2).
    expected = 0.76025 - 0.55623
    assert against["auc"] == pytest.approx(expected, abs=0.02)
    assert against["auc_low"] < against["auc"] < against["auc_high"]
    assert against["auc_holm_p"] >= against["auc_p"]


def test_models_trained_apart_are_the_mean_of_their_logits(tmp_path: Path) -> None:
    parts = {name: entry(tmp_path, name, "single model", 1.0) for name in ("a", "bb", "ccc")}
    mean = leaderboard.trained_apart(["a", "bb", "ccc"], parts)
    # Noise of a third of the variance: AUC is Phi(q / sqrt(2 / 3)).
    assert mean.spread("test", "auc").mean == pytest.approx(0.8897, abs=0.01)
    logits = [parquet.read_table(part.runs[2][1][0])["logit"].to_numpy()[3:] for part in parts.values()]
    np.testing.assert_allclose(mean.scores()[2].logits_R, sum(logits) / 3)
    parts["bb"].runs.pop(3)
    assert list(leaderboard.trained_apart(["a", "bb"], parts).runs) == [1, 2]
    assert not leaderboard.trained_apart(["a", "missing"], parts).runs


def test_rivals_are_read_and_other_rows_are_refused(tmp_path: Path) -> None:
    ours = entry(tmp_path, "ours", "D-MoE", 1.0)
    other = entry(tmp_path / "rivals", "DCNv2", "peer", 1.0)
    runs = [{"seed": 2024 + seed, **metrics, "scores": path.name} for seed, (metrics, (path,)) in other.runs.items()]
    chosen = {"embedding_l2": 0.01, "hidden_units": [64]}
    write_json(
        tmp_path / "rivals" / "rivals.json",
        {
            "models": [
                {"peer": "fuxictr", "model": "dcnv2", "chosen": chosen, "seeds": runs},
                {"peer": "deepctr", "model": "afn", "left_out": "out of memory"},
            ]
        },
    )
    (found,) = read_rivals(tmp_path / "rivals" / "rivals.json")
    assert (found.library, found.model, found.setting, list(found.runs)) == (
        "FuxiCTR",
        "dcnv2",
        "L2 0.01, hidden [64]",
        [1, 2, 3],
    )
    assert set(compare(ours, [ours, found])) == {1}
    path = tmp_path / "rivals" / "DCNv2-peer-2.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.set_column(1, "label", pa.array(table["label"].to_numpy()[::-1])), path)
    with pytest.raises(ValueError, match="FuxiCTR dcnv2: its test rows are not ours"):
        compare(ours, [ours, found])


@pytest.mark.parametrize("wrong", ["data", "settings", "rivals"])
def test_a_path_that_does_not_exist_is_one_line_and_nothing_is_trained(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "schema.json", SCHEMA.model_dump(mode="json"))
    paths = {"data": tmp_path, wrong: tmp_path / "missing.json"}
    words = [word for option, path in paths.items() for word in (f"--{option}", str(path))]
    assert leaderboard.main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "missing.json" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
