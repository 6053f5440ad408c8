"""The planted log of an ad platform: 513 fields of every kind, in two groups."""

from dmoe.synthetic.spec import Categorical, GivenVectors, Numeric, Preset, Several, Strengths

# Sizes, skews and shares of missing values that the fields without a name of their own go through.
_SIZES = (4, 12, 30, 80, 250, 700, 2_000, 6_000, 20_000, 60_000)
_SKEWS = (0.6, 0.9, 1.2, 1.6)
_MISSING = (0.0, 0.0, 0.02, 0.1, 0.4)
_CATEGORICAL, _NUMERIC = 428, 70
# One in so many of them says something about the click.
_TELLING = 9


def _others() -> list[Categorical | Numeric]:
    made: list[Categorical | Numeric] = []
    for index in range(_CATEGORICAL):
        size = _SIZES[index % len(_SIZES)]
        made.append(
            Categorical(
                f"f{index:03}",
                size,
                _SKEWS[index % len(_SKEWS)],
                2.0,
                missing=_MISSING[index % len(_MISSING)],
                main=0.4 if index % _TELLING == 0 else 0.0,
                embedding_dim=4 if size <= 30 else None,
                table_group="context" if index % 3 == 0 else "user",
            )
        )
    for index in range(_NUMERIC):
        count = (1.0 + index % 5, 1.2) if index % 2 else None
        made.append(Numeric(f"n{index:02}", missing=_MISSING[index % len(_MISSING)], count=count, table_group="user"))
    return made


PRODUCTION = Preset(
    name="production",
    label="click",
    label_after=0,
    header=True,
    columns=(
        Categorical("slot", 8, 0.5, 4, text="number", table_group="context"),
        Categorical("hour", 24, 0.3, 5, text="number", table_group="context"),
        Categorical("device", 40, 0.8, 4, table_group="context"),
        Categorical("site", 3_000, 1.1, 2, table_group="context"),
        Categorical("advertiser", 400, 0.9, 3, table_group="ad"),
        Categorical("campaign", 3_000, 0.9, 5, table_group="ad"),
        Categorical("item", 5_000, 0.9, 5, embedding_dim=32, table_group="ad"),
        Categorical("category", 60, 0.8, 3, table_group="ad"),
        Categorical("user", 200_000, 0.8, 20, fresh=0.02, main=0.4, embedding_dim=16, table_group="user"),
        Categorical("city", 350, 1.1, 2, missing=0.03, table_group="user"),
        Categorical("age", 9, 0.4, 3, missing=0.1, text="number", table_group="user"),
        Several("interests", 10, 4.0, size=1_500, skew=1.05, table_group="user"),
        Several("tags", 5, 2.0, size=400, skew=0.9, pooling="attention", table_group="ad"),
        Several("history", 20, 6.0, shares="item", main=0.0, pooling="target", table_group="user"),
        *_others(),
    ),
    click_rate=0.05,
    strengths=Strengths(main=0.8, inner=0.7, triple=0.5, numeric=0.4, several=0.7),
    context="slot",
    context_contrast=0.6,
    pairs=(("site", "campaign"), ("city", "category"), ("device", "advertiser"), ("age", "category")),
    rank=3,
    triples=(("device", "category", "hour"), ("age", "city", "advertiser")),
    triple_mean=0.5,
    numeric_pairs=(("n00", "category"), ("n01", "device"), ("n07", "age"), ("n13", "hour")),
    min_count=2,
    given=GivenVectors("picture", "item", width=16, noise=0.5, table_group="ad"),
)
