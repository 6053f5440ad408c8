"""constraints.txt covers what pyproject.toml asks for, and is completed without changing what is pinned."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.release.constraints import HEADER, PINS, merged, name_of

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))


def pinned() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in PINS.read_text(encoding="utf-8").splitlines()[1:]:
        found.setdefault(name_of(line), []).append(re.split(r"==|;", line)[1].strip())
    return found


def test_every_requirement_is_pinned_to_a_version_that_fits():
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)]
    pins = pinned()
    for requirement in map(Requirement, wanted):
        if requirement.name != "dmoe":
            versions = pins.get(name_of(requirement.name))
            assert versions, f"{requirement.name}: `make constraints` pins it"
            assert all(requirement.specifier.contains(one) for one in versions), requirement


def test_the_server_group_is_a_part_of_the_core_and_the_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    group = PROJECT["dependency-groups"]["server"]
    assert set(group) <= {*PROJECT["project"]["dependencies"], *extras["serve"]}
    assert set(extras["serve"]) <= set(group)


def test_what_is_pinned_stays_as_it_is_written():
    kept = ["Jinja2==3.1.6", "gone==1.0", "typing_extensions==4.16.0"]
    resolved = ["jinja2==3.1.6", "docutils==0.22 ; python_full_version < '3.13'", "nvidia-nccl-cu13==2.29",
                "docutils==0.23 ; python_full_version >= '3.13'", "typing-extensions==4.16.0"]  # fmt: skip
    assert merged(kept, resolved) == [
        HEADER,
        "docutils==0.22 ; python_full_version < '3.13'",
        "docutils==0.23 ; python_full_version >= '3.13'",
        "Jinja2==3.1.6",
        "typing_extensions==4.16.0",
    ]
