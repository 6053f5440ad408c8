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


def test_help_does_not_wait_for_torch():
    code = "import sys, dmoe, dmoe.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scoring_does_not_wait_for_what_evaluates():
    code = (
        "import sys, dmoe.scoring.predictor; sys.exit(any(name in sys.modules for name in ('sklearn', 'scipy.stats')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
