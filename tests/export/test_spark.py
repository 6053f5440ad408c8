"""The recipe for Spark in docs/export.md, in Spark."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import dmoe

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None, reason="needs pyspark and Java"
)
def test_map_in_arrow_gives_the_models_scores(in_graph: Path, log: Path, tmp_path: Path) -> None:
    recipe = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "def scored" in block
    )
    functions = recipe[: recipe.index("log = csv")].replace('"models/first"', repr(str(in_graph)))
    program = f"""{functions}
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
frame = spark.read.csv({str(log)!r}, header=True)
table = frame.mapInArrow(scored, "probability float").toPandas()
table.to_parquet({str(tmp_path / "scores.parquet")!r})
spark.stop()
"""
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    subprocess.run([sys.executable, tmp_path / "program.py"], cwd=tmp_path, env=environment, check=True, timeout=300)
    found = pd.read_parquet(tmp_path / "scores.parquet")["probability"].to_numpy()
    assert sorted(found) == pytest.approx(sorted(dmoe.load(in_graph).predict_proba(log)), abs=1e-6)
