"""The planted logs that `dmoe generate` offers."""

from dataclasses import replace

from dmoe.errors import ConfigError
from dmoe.synthetic.production import PRODUCTION
from dmoe.synthetic.spec import Categorical, Numeric, Preset, Strengths
from dmoe.synthetic.toy import DOMAINS, TASKS, TOY

_AVAZU = Preset(
    name="avazu",
    label="click",
    label_after=0,
    header=True,
    row_id="id",
    columns=(
        Categorical("hour", 240, text="hour", main=0.5),
        Categorical("C1", 7, 3.5, 0.5, text="number", codes=(1005, 1002, 1010, 1012, 1007, 1001, 1008)),
        Categorical("banner_pos", 7, 2.8, 0.9, text="number", codes=(0, 1, 7, 2, 4, 5, 3)),
        Categorical("site_id", 4000, 1.3, 1.5, fresh=0.002),
        Categorical("site_domain", 5000, 1.3, 1.5, fresh=0.002),
        Categorical("site_category", 26, 1.8, 2.0),
        Categorical("app_id", 6500, 1.6, 0.8, fresh=0.003),
        Categorical("app_domain", 400, 2.2, 0.8),
        Categorical("app_category", 32, 2.5, 1.2),
        Categorical("device_id", 800_000, 1.5, 0.05, fresh=0.08, main=0.3),
        Categorical("device_ip", 2_900_000, 0.8, 20, fresh=0.2, main=0.4),
        Categorical("device_model", 7200, 0.95, 6, fresh=0.005),
        Categorical("device_type", 5, 3.5, 0.5, text="number", codes=(1, 0, 4, 5, 2)),
        Categorical("device_conn_type", 4, 2.8, 0.7, text="number", codes=(0, 2, 3, 5)),
        Categorical("C14", 2500, 0.9, 10, text="number", first=375, fresh=0.02),
        Categorical("C15", 8, 3.5, 0.5, text="number", codes=(320, 300, 216, 728, 120, 480, 1024, 768)),
        Categorical("C16", 9, 3.5, 0.5, text="number", codes=(50, 250, 36, 480, 90, 20, 320, 1024, 768)),
        Categorical("C17", 430, 0.9, 3, text="number", first=112),
        Categorical("C18", 4, 0.5, 1, text="number", codes=(0, 3, 2, 1)),
        Categorical("C19", 68, 1.5, 1.2, text="number", first=33),
        Categorical("C20", 170, 0.9, 3, text="number", first=100_000, missing=0.47, missing_text="-1"),
        Categorical("C21", 60, 0.8, 2, text="number", first=13),
    ),
    click_rate=0.17,
    strengths=Strengths(main=0.8, inner=0.6, triple=0.5, numeric=0.0),
    context="C18",
    context_contrast=0.6,
    pairs=(
        ("site_id", "C14"),
        ("app_id", "C17"),
        ("device_model", "C21"),
        ("site_domain", "C17"),
        ("device_model", "site_category"),
    ),
    rank=3,
    triples=(("C19", "C21", "hour"), ("site_category", "C20", "C17")),
    triple_mean=0.5,
    min_count=2,
)


def _criteo_columns() -> tuple[Categorical | Numeric, ...]:
    # Location and spread of log(1 + count), share of empty cells; then size, skew and share of empty cells:
    # about those of the public sample.
    counts = (
        (0.9, 1.1, 0.45), (1.9, 2.0, 0.0), (1.9, 1.3, 0.21), (1.7, 0.9, 0.21), (7.8, 2.2, 0.03),
        (3.4, 1.6, 0.22), (1.6, 1.4, 0.04), (2.0, 1.1, 0.001), (3.7, 1.4, 0.04), (0.4, 0.5, 0.45),
        (0.9, 0.7, 0.04), (0.3, 0.7, 0.77), (1.8, 1.0, 0.21),
    )  # fmt: skip
    tokens = (
        (1400, 1.6, 0.0), (550, 0.9, 0.0), (2_000_000, 0.9, 0.035), (700_000, 0.9, 0.035), (300, 2.0, 0.0),
        (20, 1.3, 0.12), (12_000, 0.8, 0.0), (600, 1.6, 0.0), (3, 2.5, 0.0), (70_000, 1.05, 0.0),
        (5500, 0.8, 0.0), (1_800_000, 0.9, 0.035), (3200, 0.8, 0.0), (26, 1.2, 0.0), (12_000, 0.85, 0.0),
        (1_500_000, 0.9, 0.035), (10, 1.3, 0.0), (5500, 0.85, 0.0), (2100, 1.3, 0.44), (4, 0.5, 0.44),
        (1_700_000, 0.9, 0.035), (18, 1.8, 0.76), (15, 1.3, 0.0), (200_000, 0.95, 0.035), (90, 1.1, 0.44),
        (100_000, 1.05, 0.44),
    )  # fmt: skip
    numeric = [
        Numeric(f"I{index + 1}", missing=missing, count=(mu, sigma))
        for index, (mu, sigma, missing) in enumerate(counts)
    ]
    categorical = [
        Categorical(
            f"C{index + 1}",
            size,
            skew,
            2.0,
            missing=missing,
            fresh=0.05 if size > 50_000 else 0.0,
            main=0.3 if size > 50_000 else 1.0,
        )
        for index, (size, skew, missing) in enumerate(tokens)
    ]
    return (*numeric, *categorical)


_CRITEO = Preset(
    name="criteo",
    label="label",
    label_after=0,
    header=False,
    columns=_criteo_columns(),
    click_rate=0.257,
    strengths=Strengths(main=0.8, inner=0.6, triple=0.5, numeric=0.5),
    context="C20",
    context_contrast=0.6,
    pairs=(("C2", "C11"), ("C7", "C14"), ("C13", "C17"), ("C15", "C23"), ("C5", "C18"), ("C1", "C8")),
    rank=3,
    triples=(("C14", "C17", "C23"), ("C6", "C8", "C2")),
    triple_mean=0.5,
    numeric_pairs=(("I2", "C14"), ("I5", "C17"), ("I7", "C23"), ("I11", "C6"), ("I13", "C9")),
    min_count=10,
)

PRESETS = {preset.name: preset for preset in (_AVAZU, _CRITEO, DOMAINS, PRODUCTION, TASKS, TOY)}


def with_relations(preset: Preset, relatedness: float | None, similarity: float | None) -> Preset:
    """The preset with these instead of its own, where given.

    Raises: ConfigError if one is outside 0 to 1, or the preset has no further tasks, or no domains, to apply it to.
    """
    for option, value in (("--relatedness", relatedness), ("--similarity", similarity)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{option} must be from 0 (unrelated) to 1 (the same), got {value}")
    if relatedness is not None:
        if not preset.further_tasks:
            raise ConfigError(
                f"--relatedness: preset '{preset.name}' has one label; presets tasks and domains have more"
            )
        tasks = tuple(replace(task, relatedness=relatedness) for task in preset.further_tasks)
        preset = replace(preset, further_tasks=tasks)
    if similarity is not None:
        if preset.domains is None:
            raise ConfigError(f"--similarity: preset '{preset.name}' has no domains; preset domains has")
        preset = replace(preset, domains=replace(preset.domains, similarity=similarity))
    return preset
