"""What is compared: the model of each case, at which size, and who takes part in which way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from benchmarks import batches

SEED = 2025
L2 = 1e-8  # the largest that the benchmark lineage uses on Avazu


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of the dense layers and of the tables."""

    embedding_dim: int = 16
    hidden_units: tuple[int, ...] = (500, 500, 500)
    cin_units: int = 276
    cross_layers: int = 3
    expert_units: int = 500
    gate_units: int = 64


@dataclass(frozen=True, slots=True)
class Contestant:
    """One process. `optimiser`: for dmoe a name of `optimiser.embedding`; for FuxiCTR adam, fused or sparse.

    `mode`: train or score on prebuilt batches, or with the loader from files (train-files, score-files,
    read-files). `storage`: for dmoe, `model.embedding_storage`.
    """

    name: str
    worker: str = "dmoe"
    optimiser: str = "deferred"
    mode: str = "train"
    storage: str = "float32"


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one stream of batches. `head`: "linear" as the peers' single models have it, "d-moe" (alignment,
    gate and tower, of each task) or "ple" (two levels of experts, two of them shared and one of each task).
    `axis` and `value` place a case on a growth curve."""

    name: str
    experts: tuple[str, ...]
    contestants: tuple[Contestant, ...]
    head: str = "linear"
    embedding_l2: float = 0.0
    vocabulary_rows: int = batches.AVAZU_ROWS
    num_fields: int = batches.AVAZU_FIELDS
    batch_size: int = 10_000
    sizes: Sizes = Sizes()
    warm_up: int = 3
    tasks: int = 1
    axis: str | None = None
    value: int = 0

    @property
    def reads_files(self) -> bool:
        return any(contestant.mode.endswith("-files") for contestant in self.contestants)

    @property
    def num_tables(self) -> int:
        if self.head == "ple":
            return 1
        return len(self.experts) + (1 if len(self.experts) > 1 else 0)

    @property
    def table_width(self) -> int:
        """Floats of all tables for one vocabulary row; the first-order part of DeepFM and xDeepFM is one more."""
        first_order = self.head == "linear" and self.experts[0] in ("deepfm", "xdeepfm")
        return self.num_tables * self.sizes.embedding_dim + int(first_order)

    def job(self, contestant: Contestant) -> dict[str, Any]:
        """What a worker has to know, files and threads apart."""
        sizes = self.sizes
        return {
            "experts": list(self.experts),
            "head": self.head,
            "embedding_l2": self.embedding_l2,
            "optimiser": contestant.optimiser,
            "embedding_storage": contestant.storage,
            "vocabulary_sizes": batches.vocabulary_sizes(self.vocabulary_rows, self.num_fields),
            "batch_size": self.batch_size,
            "embedding_dim": sizes.embedding_dim,
            "hidden_units": list(sizes.hidden_units),
            "cin_units": sizes.cin_units,
            "cross_layers": sizes.cross_layers,
            "expert_units": sizes.expert_units,
            "gate_units": sizes.gate_units,
            "tasks": self.tasks,
            "seed": SEED,
        }

    def memory_bound(self) -> int:
        """Bytes that dmoe may take while training: weights, two moments, a step counter a row, and 1 GiB."""
        return self.vocabulary_rows * (3 * 4 * self.table_width + 4) + (1 << 30)

    def expected_bytes(self, contestant: Contestant) -> int:
        """A rough guess of a contestant's peak memory, to leave out what cannot fit."""
        tables = self.vocabulary_rows * self.table_width * 4
        inputs = self.batch_size * self.num_fields * self.sizes.embedding_dim * 4
        kept = inputs * 10 + self.batch_size * sum(self.sizes.hidden_units) * 4 * 6
        total = 600 * 2**20 + kept * len(self.experts)
        ours = contestant.worker == "dmoe"
        # Outer products of all pairs of fields: kept for the backward pass, their gradient, and temporaries.
        outer = 0 if ours else sum(name in ("cin", "xdeepfm") for name in self.experts)
        total += outer * inputs * self.num_fields * 4
        # Dense training holds weights, gradient, two moments and a temporary of their size.
        copies = 3 if ours or contestant.optimiser == "sparse" else 5
        return total + tables * copies


OURS = Contestant("dmoe")
OURS_BFLOAT16 = Contestant("dmoe, tables in bfloat16", storage="bfloat16")
FUXICTR = Contestant("FuxiCTR", "fuxictr", "adam")
DEEPCTR = Contestant("DeepCTR-Torch", "deepctr", "adam")
RECHUB = Contestant("torch-rechub", "rechub", "adam")
FUXICTR_FUSED = Contestant("FuxiCTR, Adam(fused=True)", "fuxictr", "fused")
FUXICTR_SPARSE = Contestant("FuxiCTR, SparseAdam", "fuxictr", "sparse")


def _with_and_without_l2(case: Case) -> list[Case]:
    # SparseAdam cannot hold L2: its gradient belongs to every row.
    dense = tuple(contestant for contestant in case.contestants if contestant.optimiser != "sparse")
    return [case, replace(case, name=f"{case.name}-l2", embedding_l2=L2, contestants=dense)]


def _single_models() -> list[Case]:
    cases = []
    for name in ("dnn", "dcnv2", "deepfm", "xdeepfm"):
        peers = (OURS, FUXICTR, DEEPCTR, *([RECHUB] if name in ("dcnv2", "deepfm") else []))
        cases += _with_and_without_l2(Case(name, (name,), peers))
    large = Case("dcnv2-20m", ("dcnv2",), (OURS, FUXICTR, DEEPCTR), vocabulary_rows=20_000_000)
    # The single-expert D-MoE that `dmoe train` makes: with alignment layer and tower, on both sides.
    run = Case("dcnv2-run", ("dcnv2",), (OURS, FUXICTR), head="d-moe")
    return [*cases, *_with_and_without_l2(run), *_with_and_without_l2(large)]


def _mixtures() -> list[Case]:
    peers = (OURS, OURS_BFLOAT16, FUXICTR, FUXICTR_FUSED, FUXICTR_SPARSE)
    return [
        *_with_and_without_l2(Case("cin-crossnet", ("cin", "crossnet"), peers, head="d-moe")),
        *_with_and_without_l2(Case("3xdcnv2", ("dcnv2",) * 3, peers, head="d-moe")),
    ]


def _tasks() -> list[Case]:
    """What a head costs over one trunk, and PLE beside the peer that has it."""
    heads = [
        Case(f"tasks-{count}", ("cin", "crossnet"), (OURS,), head="d-moe", tasks=count, axis="tasks", value=count)
        for count in (1, 2, 4)
    ]
    ple = []
    # The units of torch-rechub's examples, and two steps up to those of the papers; the last is matrix products alone.
    for name, units, tower, rows in (
        ("", (16,), 8, 2048),
        ("-128", (128, 64), 64, 4096),
        ("-512", (512, 256), 64, 4096),
    ):
        sizes = Sizes(hidden_units=units, expert_units=tower)
        case = Case(f"ple{name}", ("dnn",) * 4, (OURS, RECHUB), head="ple", tasks=2, sizes=sizes, batch_size=rows)
        ple.append(replace(case, vocabulary_rows=1_000_000))
    return [*heads, *ple]


def _files() -> list[Case]:
    def both(*modes: str) -> tuple[Contestant, ...]:
        return tuple(replace(one, name=f"{one.name}, {mode}", mode=mode) for one in (OURS, FUXICTR) for mode in modes)

    return [
        Case("loader", ("dcnv2",), both("train", "train-files", "read-files")),
        Case(
            "score",
            ("dcnv2",),
            (
                *both("score-files", "score"),
                replace(OURS, name="dmoe, score-files, bfloat16", mode="bfloat16-score-files"),
                replace(OURS, name="dmoe, score, bfloat16", mode="score-bfloat16"),
            ),
        ),
    ]


def growth_curves(vocabulary_rows: Sequence[int] = ()) -> list[Case]:
    """One case a point. FuxiCTR takes part where it fits into memory."""
    pair = (OURS, FUXICTR)
    vocabulary = vocabulary_rows or (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 20_000_000, 40_000_000)
    cases = []

    def point(axis: str, value: int, experts: tuple[str, ...], head: str, **changes: Any) -> None:
        name = f"growth-{axis}-{value}"
        cases.append(Case(name, experts, pair, head, axis=axis, value=value, **changes))

    for rows in vocabulary:
        point("vocabulary", rows, ("dcnv2",), "linear", vocabulary_rows=rows, embedding_l2=L2)
    for count in range(1, 9):
        point("experts", count, ("crossnet",) * count, "d-moe")
    for fields in (10, 24, 50, 100, 200, 500):
        point("fields", fields, ("deepfm",), "linear", num_fields=fields)
    for rows in (100, 1_000, 10_000, 100_000):
        point("batch", rows, ("cin", "crossnet"), "d-moe", batch_size=rows)
    # A row that comes back after many steps has many steps to catch up with.
    for steps in (10, 100, 400):
        case = Case(f"growth-steps-{steps}", ("dcnv2",), (OURS,), embedding_l2=L2, warm_up=steps)
        cases.append(replace(case, axis="steps", value=steps))
    return cases


def all_cases() -> list[Case]:
    return [*_single_models(), *_mixtures(), *_tasks(), *_files(), *growth_curves()]


def choose(patterns: Sequence[str], cases: Sequence[Case]) -> list[Case]:
    """The cases whose names match any of `patterns` (shell wildcards), in their own order; all without any.

    Raises: ValueError naming the pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatch(case.name, pattern) for case in cases):
            raise ValueError(f"no case '{pattern}'; known: {', '.join(case.name for case in cases)}")
    return [case for case in cases if not patterns or any(fnmatch(case.name, pattern) for pattern in patterns)]
