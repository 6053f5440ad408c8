"""What each extra is for: a command that needs it, and what is said without it. No test of its own."""

from dataclasses import dataclass

# Extras that bring tools of development, not features.
DEVELOPMENT = {"test", "dev", "docs", "release"}

_TRACKED = ("training.epochs=1", "--no-baseline", "--data", "data", "--output")


@dataclass(frozen=True)
class Feature:
    """`modules` are the packages' that are blocked, `command` is given a folder with log.csv, data and a run."""

    modules: tuple[str, ...]
    command: tuple[str, ...]
    sentence: str


FEATURES = {
    "polars": Feature(
        ("polars",),
        ("prepare", "--config", "log.data.yaml", "--input", "log.csv", "--output", "again", "--engine", "polars"),
        "dmoe: --engine polars needs polars: pip install 'dmoe[polars]'",
    ),
    "spark": Feature(
        ("pyspark",),
        ("prepare", "--config", "log.data.yaml", "--input", "log.csv", "--output", "spark", "--engine", "spark"),
        "dmoe: --engine spark needs pyspark: pip install 'dmoe[spark]'",
    ),
    "baselines": Feature(
        ("lightgbm",),
        ("baseline", "data", "--kind", "lightgbm", "--output", "runs/trees"),
        "dmoe: the lightgbm baseline needs LightGBM: pip install 'dmoe[baselines]'",
    ),
    "export": Feature(
        ("onnx", "onnxscript", "onnxruntime", "xxhash"),
        ("export", "runs/first", "-o", "models/first"),
        "dmoe: onnx is not installed; pip install 'dmoe[export]'",
    ),
    "serve": Feature(
        ("onnxruntime", "xxhash", "fastapi", "uvicorn", "httptools", "uvloop", "orjson", "prometheus_client"),
        ("serve", "models/first"),
        "dmoe: fastapi is not installed; pip install 'dmoe[serve]'",
    ),
    "tune": Feature(
        ("optuna",),
        ("tune", "d-moe", "--data", "data", "--trials", "1", "--output", "tuned"),
        "dmoe: `dmoe tune` needs Optuna: pip install 'dmoe[tune]'",
    ),
    "remote": Feature(
        ("fsspec",),
        ("train", "d-moe", "training.epochs=1", "--data", "memory://data", "--output", "runs/remote"),
        "dmoe: fsspec is not installed; pip install 'dmoe[remote]'",
    ),
    "tensorboard": Feature(
        ("tensorboard", "torch.utils.tensorboard"),
        ("train", "d-moe", *_TRACKED, "runs/curves", "--track", "tensorboard"),
        "dmoe: --track tensorboard needs TensorBoard: pip install 'dmoe[tensorboard]'",
    ),
    "mlflow": Feature(
        ("mlflow",),
        ("train", "d-moe", *_TRACKED, "runs/mlflow", "--track", "mlflow"),
        "dmoe: --track mlflow needs MLflow: pip install 'dmoe[mlflow]'",
    ),
}
# Without CUDA nothing asks for triton, and ray is a launcher in Python (docs/distributed.md).
WITHOUT_A_COMMAND = {"gpu", "ray"}
# torch brings fsspec along, and a storage is not at hand; so its absence is tried by the quick test alone.
BROUGHT_ALONG = {"remote"}
