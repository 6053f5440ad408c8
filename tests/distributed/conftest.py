"""The data set of trainings on several processes."""

from pathlib import Path

import pytest

from tests.small_runs import write_data

ROWS = {"train": 700, "valid": 300, "test": 200}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data", ROWS)
