"""What each extra is for: a command that needs it, and what is said without it. No test of its own."""

from dataclasses import dataclass
from pathlib import Path

# Extras that bring tools of development, not features.
DEVELOPMENT = {"test", "dev", "docs", "release"}

_ONE_EPOCH = ("training.epochs=1", "--no-baseline")
_TO_DATA = (*_ONE_EPOCH, "--data", "data", "--output")


@dataclass(frozen=True)
class Feature:
    """`modules` are the packages' that are blocked, `command` is given a folder with log.csv, data and a run.

    `{place}` in a command is the folder's absolute path.
    """

    modules: tuple[str, ...]
    command: tuple[str, ...]
    sentence: str

    def words(self, place: Path) -> list[str]:
        return [word.format(place=place) for word in self.command]


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
        ("onnx", "onnxscript", "onnxruntime"),
        ("export", "runs/first", "--data", "data", "-o", "models/first"),
        "dmoe: onnx is not installed; pip install 'dmoe[export]'",
    ),
    "serve": Feature(
        ("onnxruntime", "fastapi", "uvicorn", "httptools", "uvloop", "orjson", "prometheus_client"),
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
        (
            "train",
            "d-moe",
            "training.epochs=1",
            "--no-baseline",
            "--data",
            "file://{place}/data",
            "--output",
            "runs/remote",
        ),
        "dmoe: fsspec is not installed; pip install 'dmoe[remote]'",
    ),
    "tensorboard": Feature(
        ("tensorboard", "torch.utils.tensorboard"),
        ("train", "d-moe", *_TO_DATA, "runs/curves", "--track", "tensorboard"),
        "dmoe: --track tensorboard needs TensorBoard: pip install 'dmoe[tensorboard]'",
    ),
    "mlflow": Feature(
        ("mlflow",),
        ("train", "d-moe", *_TO_DATA, "runs/mlflow", "--track", "mlflow"),
        "dmoe: --track mlflow needs MLflow: pip install 'dmoe[mlflow]'",
    ),
    "ray": Feature(
        ("ray", "ray.train"),
        ("train", "d-moe", *_TO_DATA, "runs/ray", "--processes", "2", "--launcher", "ray"),
        "dmoe: ray is not installed; pip install 'dmoe[ray]'",
    ),
}
# Without CUDA nothing asks for triton.
WITHOUT_A_COMMAND = {"gpu"}
# torch brings fsspec along, so its absence is tried by the quick test alone.
BROUGHT_ALONG = {"remote"}
