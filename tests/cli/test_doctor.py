"""`dmoe doctor`: what it says is what is here, and a broken core is told and fails."""

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from dmoe.cli import doctor
from dmoe.cli.main import main
from dmoe.machine import facts, limits, packages

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *words])
    return int(stopped.value.code or 0)


def test_a_whole_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["works"], found["faults"]) == (True, [])
    assert found["packages"]["torch"] == version("torch")
    assert found["processor"]["usable"] == limits.usable_threads()
    assert found["memory"]["limit"] == limits.memory_bytes()
    assert len(found["cuda"]["devices"]) == torch.cuda.device_count()
    assert found["extras"]["serve"]["install"] == "pip install 'dmoe[serve]'"


def test_what_is_missing_or_too_old_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def other(name: str) -> str:
        if name in ("polars", "scipy"):
            raise PackageNotFoundError(name)
        return "1.4.0" if name == "numpy" else version(name)

    def fails() -> None:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(packages, "version", other)
    monkeypatch.setattr(doctor, "_TRIALS", {"training a model": fails})
    assert call() == 1
    said = capsys.readouterr().out
    assert "core          does not work" in said
    assert "numpy>=2.0 is needed, 1.4.0 is installed" in said
    assert "scipy>=1.14 is not installed" in said
    assert "training a model: RuntimeError: no such instruction" in said
    assert re.search(r"pip install 'dmoe\[polars\]' \(polars>=[\d.]+ is not installed\)", said)


def test_each_extra_says_what_it_is_for() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(declared) == {*packages.EXTRAS, *packages.DEVELOPMENT}


def test_instructions_and_memory_as_linux_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_bf16 sse\n")
    meminfo.write_text("MemTotal:       1024 kB\nMemAvailable:    512 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(facts, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(facts, "_MEMINFO", meminfo)
    found = facts.processor()
    assert (found.name, found.instructions, found.bfloat16) == ("Some CPU", ["avx2", "avx512f", "amx_bf16"], True)
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert not facts.processor().bfloat16
    assert (facts.memory().present, facts.memory().free) == (1 << 20, 1 << 19)
    monkeypatch.setattr(facts, "_MEMINFO", tmp_path / "absent")
    assert facts.memory().present is None


def test_java_is_the_one_that_spark_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\" 2023' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert facts.java() == "21.0.1"
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "absent"))
    assert facts.java() is None
