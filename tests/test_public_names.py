"""The names that the package promises, and what importing it costs."""

import subprocess
import sys

import pytest

import dmoe


@pytest.mark.parametrize("name", dmoe.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(dmoe, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dmoe.nothing  # noqa: B018


def test_importing_the_package_and_its_help_waits_for_nothing_heavy():
    # Together these take seconds; importing dmoe without them takes hundredths of one.
    heavy = {"torch", "numpy", "scipy", "sklearn", "numba", "duckdb", "pyarrow", "pydantic", "matplotlib", "pandas"}
    code = (
        "import sys, dmoe; bare = sorted(set(sys.modules)); import dmoe.cli.main; "
        f"print({heavy} & set(bare), {heavy} & set(sys.modules), [m for m in bare if m.startswith('dmoe.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() set() []"


def test_scoring_does_not_wait_for_what_evaluates():
    code = (
        "import sys, dmoe.scoring.predictor; sys.exit(any(name in sys.modules for name in ('sklearn', 'scipy.stats')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
