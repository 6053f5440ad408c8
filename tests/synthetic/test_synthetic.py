"""A planted log is what its truth says: recomputed from the files, from loops, and by statistics."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from dmoe.config.data import SplitRule, read_data_config
from dmoe.errors import ConfigError
from dmoe.prepare.prepare import prepare
from dmoe.prepare.splits import ordered
from dmoe.schema import Schema
from dmoe.synthetic.draw import BLOCK_ROWS, blocks, draw_block
from dmoe.synthetic.generate import GeneratedFiles, generate
from dmoe.synthetic.logit import STEEPNESS, PlantedLogit, key, sign
from dmoe.synthetic.presets import PRESETS
from dmoe.synthetic.spec import Categorical, Preset
from dmoe.synthetic.text import hash_of
from dmoe.synthetic.truth import split_bounds

ROWS = 100_000
MASK = (1 << 64) - 1


class Log:
    """A generated log, read back by pandas as text."""

    def __init__(self, folder: Path, preset: str) -> None:
        spec = PRESETS[preset]
        suffix = ".csv" if spec.header else ".tsv"
        self.files, self.truth = generate(folder / f"{preset}{suffix}", rows=ROWS, preset=preset, seed=3)
        names = None if spec.header else [spec.label, *(column.name for column in spec.columns)]
        self.frame = pd.read_csv(
            self.files.log,
            sep="," if spec.header else "\t",
            header=0 if spec.header else None,
            names=names,
            dtype=str,
            keep_default_na=False,
        )
        self.clicked = self.frame[spec.label].astype(int).to_numpy()
        self.probability = pq.read_table(self.files.probabilities)["probability"].to_numpy()
        self.spec = spec


# The production log is wide: it has tests of its own below.
@pytest.fixture(scope="module", params=["avazu", "criteo", "toy"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("log"), request.param)


def test_truth_equals_recomputation_from_the_files(log: Log) -> None:
    assert json.loads(log.files.truth.read_text()) == json.loads(json.dumps(log.truth))
    assert len(log.frame) == len(log.probability) == ROWS
    for split, (first, last) in {
        "train": (0, 80_000),
        "valid": (80_000, 90_000),
        "test": (90_000, 100_000),
    }.items():
        figures = log.truth["splits"][split]
        clicked, p = log.clicked[first:last], log.probability[first:last].astype(float)
        assert (figures["rows"], figures["positives"]) == (last - first, clicked.sum())
        assert figures["bayes_auc"] == pytest.approx(roc_auc_score(clicked, p), abs=1e-12)
        assert figures["bayes_logloss"] == pytest.approx(log_loss(clicked, p), abs=1e-12)
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
        assert figures["entropy"] == pytest.approx(entropy, abs=1e-12)
        assert figures["expected_click_rate"] == pytest.approx(p.mean(), abs=1e-12)


def test_splits_are_those_of_prepare() -> None:
    for rows in range(100, 240):
        split = SplitRule(kind="ordered", train=0.8, valid=0.1, test=0.1)
        codes = ordered(rows, split)
        for code, (first, last) in enumerate(split_bounds(rows).values()):
            assert np.array_equal(np.flatnonzero(codes == code), np.arange(first, last))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_data_configuration_is_one_of_prepare(tmp_path: Path, preset: str) -> None:
    files, _ = generate(tmp_path / "log.tsv", rows=200, preset=preset)
    config = read_data_config(files.config)
    with files.log.open() as file:
        first = file.readline().rstrip("\n").split("\t")
    columns = first if config.format.header else list(config.format.columns or ())
    assert len(columns) == len(first)
    assert set(config.columns()) <= set(columns)
    # The fields are the benchmark's: Avazu's 22 columns, with weekday and weekend taken out of the hour.
    counts = {"toy": (8, 2), "avazu": (24, 0), "criteo": (26, 13), "production": (439, 70)}
    counts |= {"tasks": (8, 2), "domains": (9, 2)}
    assert (len(config.fields.categorical), len(config.fields.numeric)) == counts[preset]


def test_click_rate_is_near_its_target(log: Log) -> None:
    assert log.clicked.mean() == pytest.approx(log.spec.click_rate, abs=0.012)


def test_labels_are_drawn_with_the_probabilities(log: Log) -> None:
    """Chi-square over 20 bins of p: their mean labels are their mean p (p-value above 0.001)."""
    bins = np.array_split(np.argsort(log.probability, kind="stable"), 20)
    statistic = 0.0
    for rows in bins:
        p = log.probability[rows].astype(float)
        statistic += (log.clicked[rows].sum() - p.sum()) ** 2 / (p * (1 - p)).sum()
    assert statistic < 45.3


def test_parts_have_the_strengths_of_the_preset(log: Log) -> None:
    strengths, variance = log.spec.strengths, log.truth["logit_variance"]
    for part in ("main", "inner", "triple", "numeric"):
        wanted = getattr(strengths, part)
        # They were set on the rows of a pilot, which are not those of the log.
        assert math.sqrt(variance[part]) == pytest.approx(wanted, rel=0.05, abs=1e-12)


def test_file_has_the_columns_of_the_original_format(log: Log) -> None:
    if log.spec.name == "avazu":
        header = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
        header += "app_category,device_id,device_ip,device_model,device_type,device_conn_type,"
        header += "C14,C15,C16,C17,C18,C19,C20,C21\n"
        with log.files.log.open() as file:
            assert file.readline() == header
        assert log.frame["id"].is_unique
        assert log.frame["hour"].str.fullmatch(r"1410(2[1-9]|30)([01]\d|2[0-3])").all()
        assert log.frame["hour"].is_monotonic_increasing
    if log.spec.name == "criteo":
        with log.files.log.open() as file:
            assert file.readline().count("\t") == 39
        assert log.frame[[f"I{index}" for index in range(1, 14)]].stack().str.fullmatch(r"\d*").all()
        assert log.frame[[f"C{index}" for index in range(1, 27)]].stack().str.fullmatch(r"([0-9a-f]{8})?").all()
    if log.spec.name == "toy":
        assert list(log.frame.columns) == ["click", *(column.name for column in log.spec.columns)]
    assert set(log.frame[log.spec.label]) == {"0", "1"}


def test_missing_values_are_as_frequent_as_said(log: Log) -> None:
    shares = {column.name: column.missing for column in log.spec.columns if column.missing}
    assert shares
    for column in log.spec.columns:
        text = column.missing_text if isinstance(column, Categorical) else ""
        share = (log.frame[column.name] == text).mean()
        assert share == pytest.approx(column.missing, abs=4 * math.sqrt(0.25 / ROWS)), column.name


def test_frequencies_follow_the_law(log: Log) -> None:
    """The five most frequent tokens: observed against the integral of (x + shift)^-skew."""
    for column in log.spec.categorical:
        if column.text == "hour":
            continue
        power = 1 - column.skew
        edges = (np.arange(min(column.size, 5) + 1) + column.shift) ** power
        whole = (column.size + column.shift) ** power - column.shift**power
        wanted = np.diff(edges) / whole * (1 - column.missing) * (1 - column.fresh)
        texts = texts_of(column, np.arange(len(wanted)))
        counts = log.frame[column.name].value_counts()
        for text, share in zip(texts, wanted, strict=True):
            error = 5 * math.sqrt(share / ROWS)
            assert counts.get(text, 0) / ROWS == pytest.approx(share, abs=error), column.name


def texts_of(column: Categorical, tokens: np.ndarray[Any, Any]) -> list[str]:
    if column.text == "hex":
        return [f"{bits:08x}" for bits in hash_of(column, 3, tokens)]
    if column.codes:
        return [str(column.codes[token]) for token in tokens]
    return [str(column.first + token) for token in tokens]


def test_the_test_part_has_values_never_seen_before(log: Log) -> None:
    for column in log.spec.categorical:
        if column.fresh < 0.01:
            continue
        values = log.frame[column.name]
        unseen = ~values[90_000:].isin(set(values[:90_000]))
        assert unseen.mean() > column.fresh / 2, column.name
    if log.spec.name == "toy":
        unseen = ~log.frame["user"][90_000:].isin(set(log.frame["user"][:90_000]))
        assert 0.01 < unseen.mean() < 0.03


def test_row_ranges_do_not_depend_on_how_they_are_drawn() -> None:
    """A block drawn alone equals the same rows of the whole log, and a log cut anywhere its beginning."""
    spec = PRESETS["criteo"]
    rows = 2 * BLOCK_ROWS + 1000
    whole = list(blocks(spec, 1, rows))
    assert [len(block) for block in whole] == [BLOCK_ROWS, BLOCK_ROWS, 1000]
    alone = draw_block(spec, 1, rows, 1)
    shorter = draw_block(spec, 1, BLOCK_ROWS + 123, 1)
    for name, tokens in whole[1].tokens.items():
        assert np.array_equal(alone.tokens[name], tokens)
        assert np.array_equal(shorter.tokens[name], tokens[:123])
    for name, numbers in whole[1].numbers.items():
        assert np.array_equal(alone.numbers[name], numbers, equal_nan=True)
        assert np.array_equal(shorter.numbers[name], numbers[:123], equal_nan=True)
    assert np.array_equal(shorter.uniform_R, whole[1].uniform_R[:123])
    # Streams of different blocks, columns and seeds are different ones.
    assert not np.array_equal(whole[0].tokens["C1"], whole[1].tokens["C1"])
    assert not np.array_equal(draw_block(spec, 2, rows, 0).tokens["C1"], whole[0].tokens["C1"])


def test_a_shorter_log_is_the_beginning_of_a_longer_one(tmp_path: Path) -> None:
    short, _ = generate(tmp_path / "short.csv", rows=BLOCK_ROWS - 7, preset="toy", seed=4)
    long, _ = generate(tmp_path / "long.csv", rows=BLOCK_ROWS + 7, preset="toy", seed=4)
    assert long.log.read_bytes().startswith(short.log.read_bytes())


def all_bytes(files: GeneratedFiles) -> list[bytes]:
    return [path.read_bytes() for path in (files.log, files.truth, files.probabilities, files.config)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_equal_seeds_give_equal_files(tmp_path: Path, suffix: str) -> None:
    results = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        files, _ = generate(tmp_path / folder / f"log{suffix}", rows=500, preset="toy", seed=seed)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(
            [f"log{suffix}", "log.data.yaml", "log.truth.json", "log.truth.parquet"]
        )
        results.append(all_bytes(files))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]


@pytest.mark.parametrize(
    ("name", "log_hash", "config_hash"),
    [("toy.csv", "9118afaa423bc2d6", "22c63b21cfcf481a"), ("criteo.tsv", "91e5020101ba1922", "6785c166b447b468")],
)
def test_logs_of_one_label_stay_what_they_were(tmp_path: Path, name: str, log_hash: str, config_hash: str) -> None:
    files, truth = generate(tmp_path / name, rows=3000, preset=name.partition(".")[0], seed=3)
    assert hashlib.sha256(files.log.read_bytes()).hexdigest()[:16] == log_hash
    assert hashlib.sha256(files.config.read_bytes()).hexdigest()[:16] == config_hash
    assert "tasks" not in truth
    assert not {"further_tasks", "domains"} & set(truth["parameters"])


def test_all_formats_hold_the_same_rows(tmp_path: Path) -> None:
    for suffix in (".csv", ".tsv", ".txt.gz", ".parquet"):
        generate(tmp_path / f"log{suffix}", rows=300, preset="toy")
    comma = (tmp_path / "log.csv").read_text()
    assert (tmp_path / "log.tsv").read_text() == comma.replace(",", "\t")
    assert gzip.decompress((tmp_path / "log.txt.gz").read_bytes()).decode() == comma.replace(",", "\t")
    table = pq.read_table(tmp_path / "log.parquet").to_pandas()
    frame = pd.read_csv(tmp_path / "log.csv", dtype={"device": str, "category": str})
    assert list(table.columns) == list(frame.columns)
    for name in ("click", "slot", "hour", "price", "age"):
        assert np.array_equal(table[name], frame[name], equal_nan=True)
    assert list(table["ad"]) == list(frame["ad"])


# The naive recomputation: Python integers and one row at a time, from the equations of the documentation.


def naive_hash(token: int, purpose: str, seed: int) -> int:
    bits = (token * 0x9E3779B97F4A7C15 + int(key(seed, purpose))) & MASK
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & MASK
    return bits ^ (bits >> 31)


def naive_bell(token: int, purpose: str, seed: int) -> float:
    bits = naive_hash(token, purpose, seed)
    quarters = [bits >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return (sum(quarters) - 2 * 65535) / math.sqrt((65536**2 - 1) / 3)


def naive_sign(token: int, purpose: str, seed: int) -> int:
    up = naive_hash(token // 2, purpose, seed) >> 63
    return -1 if (up + token) % 2 else 1


def naive_raw(spec: Preset, seed: int, row: dict[str, Any]) -> dict[str, float]:
    main = 0.0
    for column in spec.categorical:
        token = row[column.name] % 24 if column.text == "hour" else row[column.name]
        main += column.main * naive_bell(token, f"main/{column.name}", seed)
    inner = 0.0
    for left, right in spec.pairs:
        for component in range(spec.rank):
            purpose = f"inner/{left}/{right}/{component}"
            u = naive_bell(row[left], purpose + "/left", seed)
            inner += u * naive_bell(row[right], purpose + "/right", seed)
    triple = 0.0
    for names in spec.triples:
        product = 1.0
        for name in names:
            product *= spec.triple_mean + naive_sign(row[name], f"triple/{'/'.join(names)}/{name}", seed)
        triple += product
    numeric = 0.0
    for number, name in spec.numeric_pairs:
        if not math.isnan(row[number]):
            purpose = f"numeric/{number}/{name}"
            threshold = 0.7 * naive_bell(row[name], purpose + "/threshold", seed)
            amplitude = naive_bell(row[name], purpose + "/amplitude", seed)
            numeric += amplitude * math.tanh(STEEPNESS * (row[number] - threshold))
    return {
        "main": main,
        "inner": inner,
        "triple": triple,
        "numeric": numeric,
        "several": naive_several(spec, seed, row),
    }


def naive_several(spec: Preset, seed: int, row: dict[str, Any]) -> float:
    total = 0.0
    for column in spec.several:
        tokens = [token for token in row[column.name] if token >= 0]
        effects = []
        for token in tokens:
            effect = column.main * naive_bell(token, f"several/{column.name}", seed)
            for component in range(3 if column.shares else 0):
                purpose = f"affinity/{column.shares}/{component}"
                effect += naive_bell(token, purpose, seed) * naive_bell(row[column.shares], purpose, seed)
            effects.append(effect)
        total += sum(effects) / len(effects) if effects else 0.0
    return total


def test_a_wide_log_holds_what_was_drawn(tmp_path: Path) -> None:
    files, truth = generate(tmp_path / "log.parquet", rows=500, preset="production", seed=3)
    spec = PRESETS["production"]
    table = pq.read_table(files.log)
    assert len(table.column_names) == 513
    assert math.sqrt(truth["logit_variance"]["several"]) == pytest.approx(spec.strengths.several, rel=0.2)
    columns = draw_block(spec, 3, 500, 0)
    items = dict(zip(columns.tokens["item"].tolist(), table["item"].to_pylist(), strict=True))
    history = columns.tokens["history"]
    shown = [[] if text is None else text.split("|") for text in table["history"].to_pylist()]
    assert [len(one) for one in shown] == (history >= 0).sum(1).tolist()
    for tokens, texts in zip(history.tolist(), shown, strict=True):
        for token, text in zip(tokens, texts, strict=False):
            assert items.get(token, text) == text
    given = pq.read_table(files.vectors)
    vectors = dict(zip(given["key"].to_pylist(), given["vector"].to_pylist(), strict=True))
    assert len(vectors) == 5000
    effects = [naive_bell(token, "main/item", 3) for token in items]
    first = [vectors[text][0] for text in items.values()]
    # Effect plus noise of half its deviation: a correlation of 1 / sqrt(1.25).
    assert np.corrcoef(effects, first)[0, 1] == pytest.approx(0.894, abs=0.06)
    data = prepare(read_data_config(files.config), [str(files.log)], tmp_path / "data")
    assert data["rows"]["encoded"] == 500
    schema = Schema.read(tmp_path / "data")
    assert (len(schema.categorical), schema.num_ids, len(schema.numeric)) == (443, 440 + 10 + 5 + 20, 70)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_probability_equals_a_loop_over_rows(preset: str) -> None:
    spec, seed = PRESETS[preset], 11
    planted = PlantedLogit.calibrate(spec, seed)
    columns = draw_block(spec, seed, 2000, 0)
    parts = planted.parts(columns)
    probability = planted.probability_of(parts)
    contrast = spec.context_contrast
    for index in range(0, 2000, 17):
        row: dict[str, Any] = {name: token[index].tolist() for name, token in columns.tokens.items()}
        row |= {name: float(number[index]) for name, number in columns.numbers.items()}
        raw = naive_raw(spec, seed, row)
        lean = naive_sign(row[spec.context], "context", seed)
        weight = {"main": 1.0, "numeric": 1.0, "several": 1.0}
        weight["inner"] = 1 + contrast * lean
        weight["triple"] = 1 - contrast * lean
        logit = planted.bias
        for part, value in raw.items():
            wanted = weight[part] * planted.scales[part] * (value - planted.means[part])
            assert parts[part][index] == pytest.approx(wanted, abs=1e-9)
            logit += wanted
        exact = 1 / (1 + math.exp(-logit))
        # Cutting to 16 bits of mantissa lowers a probability by less than one part in 2^16.
        assert exact * (1 - 2**-15.9) <= probability[index] <= exact * (1 + 2**-22)


def test_neighbouring_tokens_have_opposite_signs() -> None:
    signs = sign(np.arange(-2, 1000), key(0, "any"))
    assert set(signs) == {-1.0, 1.0}
    assert (signs[0::2] == -signs[1::2]).all()


def test_what_a_number_shows_is_what_the_label_depends_on(log: Log) -> None:
    """z recomputed from the text of the file equals the z of the planted logit."""
    columns = draw_block(log.spec, 3, ROWS, 0)
    for column in log.spec.numeric:
        shown = pd.to_numeric(log.frame[column.name][: len(columns)]).to_numpy()
        if column.count is not None:
            mu, sigma = column.count
            shown = (np.log1p(shown) - mu) / sigma
        assert np.allclose(shown, columns.numbers[column.name], atol=1e-12, equal_nan=True)


def test_different_tokens_have_different_texts() -> None:
    column = Categorical("any", 1)
    assert len(np.unique(hash_of(column, 0, np.arange(300_000)))) == 300_000


def test_faults_of_the_arguments(tmp_path: Path) -> None:
    for out, options, message in (
        ("log.csv", {"preset": "avasu"}, "no preset 'avasu'; did you mean 'avazu'?"),
        ("log.csv", {"rows": 99}, "--rows must be at least 100, got 99"),
        ("log.csv", {"seed": -1}, "--seed must be at least 0, got -1"),
        ("log.json", {}, r"log.json: the name must end in one of \.csv, "),
        (".csv", {}, "the name must end in one of"),
        ("absent/log.csv", {}, "no folder .*absent; make it first"),
    ):
        arguments: dict[str, Any] = {"rows": 200, "preset": "toy", **options}
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            generate(tmp_path / out, **arguments)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        generate(tmp_path / "folder.csv", rows=200, preset="toy")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_command_prints_json_and_exits_2_on_bad_options(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from dmoe.cli.main import main; main()", "generate", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("log.csv", "--rows", "500", "--preset", "toy", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["splits"]["train"]["rows"] == 400
    assert printed["files"]["log"] == "log.csv"
    bad = run("log.csv", "--rows", "5")
    assert bad.returncode == 2
    assert bad.stderr == "dmoe: --rows must be at least 100, got 5\n"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit of 100 kB on file sizes stands in for the full disk: the write fails with EFBIG."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from dmoe.cli.main import main; main()"
    )
    (tmp_path / "log.csv").write_text("older\n")
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "log.csv", "--rows", "50000", "--preset", "toy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("dmoe: cannot write: File too large")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    assert (tmp_path / "log.csv").read_text() == "older\n"
