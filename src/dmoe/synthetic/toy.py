"""The planted logs to learn in minutes: of one task, of several related ones, and of several domains."""

from dataclasses import replace

from dmoe.synthetic.spec import Categorical, Domains, FurtherTask, Numeric, Preset, Strengths

TOY = Preset(
    name="toy",
    label="click",
    label_after=0,
    header=True,
    columns=(
        Categorical("slot", 8, 0.5, 4, text="number"),
        Categorical("hour", 24, 0.3, 5, text="number"),
        Categorical("device", 8, 0.5, 4),
        Categorical("category", 12, 0.5, 4, missing=0.02),
        Categorical("region", 16, 0.6, 3, missing=0.02),
        Categorical("site", 30, 0.7, 4),
        Categorical("ad", 40, 0.7, 5),
        Categorical("user", 2000, 1.4, 5, fresh=0.015, main=0.35),
        Numeric("price"),
        Numeric("age", missing=0.05),
    ),
    click_rate=0.25,
    strengths=Strengths(main=0.6, inner=0.9, triple=0.9, numeric=0.3),
    context="slot",
    context_contrast=0.6,
    pairs=(("site", "ad"), ("region", "ad"), ("region", "site")),
    rank=2,
    triples=(("device", "category", "hour"),),
    triple_mean=0.5,
    numeric_pairs=(("price", "category"), ("age", "device")),
    min_count=2,
)

TASKS = replace(
    TOY,
    name="tasks",
    further_tasks=(
        FurtherTask("conversion", rate=0.06, relatedness=0.8, given="click"),
        FurtherTask("like", rate=0.02, relatedness=0.8, unknown=0.1),
    ),
)

DOMAINS = replace(
    TOY,
    name="domains",
    columns=(Categorical("placement", 5, 1.5, 1.0, main=0.0, text="number"), *TOY.columns),
    further_tasks=(FurtherTask("conversion", rate=0.1, relatedness=0.8, given="click"),),
    domains=Domains("placement", shifts=(0.0, 0.8, -1.5, 0.4, -0.6), similarity=0.7),
)
