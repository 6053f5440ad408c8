"""The typed configuration of a run: what `run.yaml` may say, but for the options of experts (`nn.experts.options`).

An unknown key is an error that names the nearest key; `config.yaml` in the run folder is this, fully resolved.
"""

import copy
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dmoe.config.model import ModelConfig
from dmoe.config.tasks import Strict, without_defaults
from dmoe.errors import ConfigError, nearest
from dmoe.validation import validate
from dmoe.yaml_text import parse_yaml, read_yaml


def check_device(device: str) -> str:
    """The name itself.

    Raises: ValueError if it names no kind of device that dmoe trains on.
    """
    kind, _, index = device.partition(":")
    if kind == "mps":
        raise ValueError("device mps is not supported: it lacks float64 and sums that repeat; use cpu")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    return device


class DecorrelationConfig(Strict):
    """One term alpha/(B-1) · L of eq. 12: `alpha` from step `start_step` on, grown over `warmup_steps`.

    `pairs`: of experts that some gate mixes, or all. `within`: domain for outputs centred in each domain by itself.
    """

    loss: Literal["corr", "cov", "barlow-twins", "vicreg"] = "corr"
    location: Literal["output", "pre-activation", "intermediate", "input", "levels"] = "output"
    alpha: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    norm: Literal["frobenius", "spectral", "l1", "l2"] | None = None
    scale: Literal["paper", "dimension-free"] = "paper"
    variance_weight: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    start_step: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    pairs: Literal["gated", "all"] = "gated"
    within: Literal["batch", "domain"] = "batch"

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), ("pairs", "within"))

    @model_validator(mode="after")
    def _norm_of_loss(self) -> "DecorrelationConfig":
        allowed = {"corr": ("frobenius", "spectral"), "cov": ("l1", "l2")}.get(self.loss, ())
        if self.norm is not None and self.norm not in allowed:
            choices = " or ".join(allowed) or "left out: it is a mean of squares"
            raise ValueError(f"'norm' of loss '{self.loss}' must be {choices}, got '{self.norm}'")
        if not allowed and self.scale != "paper":
            raise ValueError(f"'scale' is for losses corr and cov; '{self.loss}' is free of the width already")
        if self.variance_weight is not None and self.loss != "vicreg":
            raise ValueError(f"'variance_weight' is for loss vicreg, not '{self.loss}'")
        return self


class CowClipConfig(Strict):
    """Bounds the gradient of each row w of a table by cnt · max(r ‖w‖, zeta), cnt its occurrences in the batch.

    Zheng et al., AAAI 2023 (arXiv 2204.06240); the gradient of L2 is part of what is bounded.
    """

    kind: Literal["cowclip"] = "cowclip"
    r: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    zeta: float = Field(default=1e-5, gt=0, allow_inf_nan=False)


class OptimiserConfig(Strict):
    """Adam for all, with the embedding tables updated in the way that `embedding` names.

    Of `deferred` tables those of at most `dense_rows` rows are updated whole, as by `dense`: the same model.
    `embedding_l2` is λ of (λ/2)‖W‖² over the full tables at every step; `network_l2` the same for the rest. With
    `embedding_l2_rarity` p, λ of a token that train holds n times is divided by n^p: rare tokens are held back more.
    After an evaluation that does not improve, lr is multiplied by `lr_decay`, down to `min_lr`.
    """

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0, le=1e6)
    embedding: Literal["deferred", "dense", "lazy", "rowwise-adagrad"] = "deferred"
    dense_rows: int = Field(default=0, ge=0)
    embedding_l2: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    embedding_l2_rarity: float = Field(default=0.0, ge=0, le=2)
    embedding_clip: CowClipConfig | None = None
    network_l2: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lr_decay: float = Field(default=0.1, gt=0, le=1)
    min_lr: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _l2_is_used(self) -> "OptimiserConfig":
        if self.embedding_l2 > 0 and self.embedding in ("lazy", "rowwise-adagrad"):
            raise ValueError(
                f"'embedding_l2' acts on every row at every step, which embedding: {self.embedding} does not do; "
                "set embedding: deferred (the same model as dense) or embedding_l2: 0"
            )
        if self.dense_rows > 0 and self.embedding != "deferred":
            raise ValueError(f"'dense_rows' is for embedding: deferred, got {self.embedding}; leave one of them out")
        if self.embedding_l2_rarity > 0 and self.embedding_l2 == 0:
            raise ValueError("'embedding_l2_rarity' needs embedding_l2, which it divides by the tokens' counts")
        if self.embedding_clip is not None and self.embedding_l2 > self.embedding_clip.r:
            raise ValueError(
                "'embedding_l2' above embedding_clip.r would be clipped in every row at every step; lower one or raise "
                "the other"
            )
        return self


class TrainingConfig(Strict):
    """The recipe: when to evaluate, when to stop, what is kept.

    `calibration`: the map from logits to calibrated ones that is fitted on valid at the end and becomes part of the
    model; `auto` takes what is best on rows that it was not fitted on. `negative_sampling_rate` is the share of rows
    without a click that the log kept of all; predictions are then of the whole log, figures of the log as it is.

    `recipe`: with `auto` every key of the run that is left out is chosen by what train measures; see
    `dmoe.training.recipe`. `unseen`: for each field the share of its tokens that a training step takes for unseen;
    `auto` estimates it from train, 0 is none. `base_rate`: the model starts at train's click rate.
    Of several labels, `balance` weighs their losses beside what `model.tasks` says: `entropy` by one over the entropy
    of each base rate, scaled to mean 1; `uncertainty` as learned with the model (Kendall et al., CVPR 2018).
    `domain_weights`: the mean over rows, or `equal`, the sum of the means of the domains. `monitor_tasks`: how much
    each task counts in `monitor`; by default all alike.
    `tables`: where embedding tables and their optimisers' state are: with the rest of the model, or in host memory.
    `precision`: of matrix products while training; `tf32` and `bfloat16` round their inputs. `deterministic`: torch's
    operations must repeat to the bit, or training ends with an error that names the one that does not.
    """

    recipe: Literal["fixed", "auto"] = "fixed"
    unseen: Literal["auto", 0] | dict[str, Annotated[float, Field(ge=0, lt=1)]] = 0
    base_rate: bool = False
    batch_size: int = Field(default=10_000, ge=1)
    epochs: int = Field(default=10, ge=1)
    evaluations_per_epoch: int = Field(default=1, ge=1)
    patience: int = Field(default=2, ge=1)
    monitor: Literal["auc", "logloss", "auc-logloss"] = "auc-logloss"
    clip_norm: float | None = Field(default=10.0, gt=0)
    seed: int = Field(default=2025, ge=0, lt=2**63)
    device: str = "auto"
    tables: Literal["device", "host"] = "device"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    deterministic: bool = False
    memory_gb: float = Field(default=4.0, gt=0)
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    calibration: Literal["none", "auto", "temperature", "platt", "isotonic"] = "none"
    negative_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    balance: Literal["fixed", "entropy", "uncertainty"] = "fixed"
    domain_weights: Literal["rows", "equal"] = "rows"
    monitor_tasks: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default={})

    @model_serializer(mode="wrap")
    def _of_several_tasks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), ("balance", "domain_weights", "monitor_tasks"))

    @field_validator("monitor_tasks")
    @classmethod
    def _one_counts(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and not any(weights.values()):
            raise ValueError("'monitor_tasks' must let one task count, got 0 for all")
        return weights

    @model_validator(mode="after")
    def _precision_of_device(self) -> "TrainingConfig":
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("'precision' tf32 is of CUDA devices; on the CPU set float32 or bfloat16")
        return self

    @property
    def unseen_rates(self) -> dict[str, float]:
        """For each field the share of its tokens to take for unseen, of a configuration that leaves nothing open."""
        return self.unseen if isinstance(self.unseen, dict) else {}

    @field_validator("device")
    @classmethod
    def _device_name(cls, device: str) -> str:
        return check_device(device)


class RunConfig(Strict):
    """Everything that a run is made from, the data apart."""

    model: ModelConfig = ModelConfig()
    decorrelation: list[DecorrelationConfig] = Field(default=[])
    optimiser: OptimiserConfig = OptimiserConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _terms_can_act(self) -> "RunConfig":
        active = [term for term in self.decorrelation if term.alpha > 0]
        model = self.model
        if active and not model.has_owners and len(model.owned()) < 2:
            raise ValueError("'decorrelation' needs at least two experts; set alpha: 0 or add an expert")
        if active and self.training.batch_size == 1:
            raise ValueError(
                "'decorrelation' needs batches of at least two rows: one row has no correlation; set alpha: 0 or a "
                "larger training.batch_size"
            )
        if self.optimiser.embedding_clip is not None and self.model.shrinkage > 0:
            raise ValueError(
                "'model.shrinkage' gives the row of unseen tokens a share of every gradient, so its occurrences are no "
                "measure of it: set it to 0 or leave optimiser.embedding_clip out"
            )
        storage = self.model.embedding_storage
        if storage != "float32" and self.optimiser.embedding != "deferred":
            raise ValueError(
                f"'model.embedding_storage' {storage} needs optimiser.embedding: deferred, which rounds without "
                f"losing small updates, got {self.optimiser.embedding}; set one or the other"
            )
        if storage != "float32" and self.optimiser.dense_rows > 0:
            raise ValueError(
                f"'optimiser.dense_rows' updates whole tables, rounding {storage} ones at every step; set it to "
                "0, or model.embedding_storage: float32"
            )
        if any(term.location == "input" for term in active) and model.levels:
            raise ValueError("'decorrelation' at location 'input' is of tables; of a model with levels take 'levels'")
        tables = model.table_of_expert()
        shared = len(set(tables)) < len(tables) or (model.has_owners and model.tables != "per-expert")
        if any(term.location == "input" for term in active) and shared:
            raise ValueError(
                "'decorrelation' at location 'input' needs a table for each expert: experts that share a table "
                "have the same input; set model.tables: per-expert"
            )
        return self

    def values(self) -> dict[str, Any]:
        """Plain values, every default spelled out but those that `training.recipe: auto` has yet to choose and those
        of several labels or domains."""
        return self.model_dump(mode="json", exclude_unset=self.training.recipe == "auto")

    def to_yaml(self) -> str:
        """`values` as YAML."""
        return yaml.safe_dump(self.values(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def presets() -> list[str]:
    """Names of the run configurations that ship with the package."""
    folder = files("dmoe.config") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _preset_text(name: str) -> str:
    return (files("dmoe.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """The first line of a preset, which says what it is."""
    return _preset_text(name).splitlines()[0].removeprefix("#").strip()


def load_config(source: Path | str | None, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration in a YAML file or of a preset's name, changed by `key.path=value` overrides.

    Raises: ConfigError for an absent file, an unknown key or a value that does not fit.
    """
    values: dict[str, Any] = {}
    name = "configuration"
    if source is not None:
        path = Path(source)
        name = str(source)
        if path.suffix not in (".yaml", ".yml") and not path.exists():
            if name not in presets():
                raise ConfigError(
                    f"{name}: neither a file nor a preset{nearest(name, presets())} (presets: {', '.join(presets())})"
                )
            values = parse_yaml(_preset_text(name), f"preset {name}")
        else:
            values = read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    return validate(RunConfig, values, name)


def changed_config(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """`config` changed by `key.path=value` overrides.

    Raises: ConfigError for an unknown key or a value that does not fit.
    """
    values = config.values()
    for override in overrides:
        _apply_override(values, override)
    return validate(RunConfig, values, "configuration")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}': an override is written key.path=value, for example training.epochs=3")
    value = parse_yaml(f"value: {text}", f"override '{override}'").get("value")
    set_key(values, key, value, f"override '{override}'")


def set_key(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Sets the key of a dotted path in the plain values of a configuration; `source` is named in errors.

    Raises: ConfigError if the path leads through a value, or past the end of a list.
    """
    parts = key.split(".")
    current: Any = values
    # A list that the file leaves out is changed from its default, not from nothing. A section stays as sparse as it is
    # written: what nobody said is for `training.recipe: auto` to choose.
    default: Any = RunConfig().model_dump(mode="json")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        here = ".".join(parts[: depth + 1])
        if isinstance(current, list):
            if not part.isdigit() or int(part) > len(current):
                raise ConfigError(f"{source}: '{here}' must number an entry of a list of {len(current)}, from 0")
            if int(part) == len(current):
                current.append({})
            slot: Any = int(part)
        elif isinstance(current, dict):
            slot = part
            default = default.get(part) if isinstance(default, dict) else None
            if isinstance(default, list):
                current.setdefault(slot, copy.deepcopy(default))
            elif not last:
                current.setdefault(slot, {})
        else:
            raise ConfigError(f"{source}: '{'.'.join(parts[:depth])}' is a value, not a section")
        if last:
            current[slot] = value
        else:
            current = current[slot]
