"""Measures dmoe against FuxiCTR, DeepCTR-Torch, torch-rechub and the hardware's own limits.

Peers are installed into environments of their own on first use. Cases are chosen by name or shell wildcard.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.arguments import DEFAULT_ENVIRONMENTS, positive
from benchmarks.cases import Case, Sizes, all_cases, choose, growth_curves
from benchmarks.report import print_case
from benchmarks.run import Settings, describe_machine, run_case
from dmoe.disk.files import write_json

FORMAT_VERSION = 1


def parse(words: Sequence[str] | None) -> tuple[argparse.Namespace, list[Case]]:
    """The options and the cases that they choose; ends with exit code 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("case", nargs="*", help="names or wildcards, such as 'dcnv2*'; all cases without any")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--repeats", type=positive, default=5, help="rounds of all contestants in turn (5)")
    parser.add_argument("--steps", type=positive, default=4, help="steps of a contestant in each round (4)")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of each contestant")
    parser.add_argument("--only-ours", action="store_true", help="no peers, nothing installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw figures here, after each case")
    parser.add_argument("--environments", type=Path, default=DEFAULT_ENVIRONMENTS, help="where peers are installed")
    size = parser.add_argument_group("sizes, to try things out; figures at other sizes compare with nothing")
    size.add_argument("--vocabulary-rows", type=positive, nargs="+", metavar="N", help="each case at each N")
    size.add_argument("--batch-size", type=positive)
    size.add_argument("--units", type=positive, help="width of every hidden, alignment and tower layer, and of CIN")
    arguments = parser.parse_args(words)
    try:
        cases = choose(arguments.case, all_cases())
    except ValueError as error:
        parser.error(str(error))
    return arguments, _resized(cases, arguments)


def _resized(cases: list[Case], arguments: argparse.Namespace) -> list[Case]:
    """The cases at the sizes of the options; the vocabulary's growth curve takes N as its points."""
    if arguments.vocabulary_rows:
        curve = [case for case in growth_curves(arguments.vocabulary_rows) if case.axis == "vocabulary"]
        has_curve = any(case.axis == "vocabulary" for case in cases)
        others = [case for case in cases if case.axis != "vocabulary"]
        several = len(arguments.vocabulary_rows) > 1
        cases = [
            replace(case, vocabulary_rows=rows, name=f"{case.name}-{rows}" if several else case.name)
            for case in others
            for rows in arguments.vocabulary_rows
        ] + (curve if has_curve else [])
    if arguments.batch_size:
        cases = [case if case.axis == "batch" else replace(case, batch_size=arguments.batch_size) for case in cases]
    if arguments.units:
        units = arguments.units
        sizes = Sizes(hidden_units=(units,) * 3, cin_units=units, expert_units=units)
        cases = [replace(case, sizes=sizes) for case in cases]
    return cases


def main(words: Sequence[str] | None = None) -> int:
    arguments, cases = parse(words)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    settings = Settings(
        repeats=arguments.repeats,
        steps=arguments.steps,
        threads=arguments.threads,
        environments=arguments.environments.expanduser(),
        only_ours=arguments.only_ours,
    )
    # A table in a file or a pipe is not cut to the 80 columns that such a stream claims to have.
    console = Console(width=None if sys.stdout.isatty() else 140)
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(settings.threads),
        "settings": {"repeats": settings.repeats, "steps": settings.steps, "only_ours": settings.only_ours},
        "cases": [],
    }
    for case in cases:
        result = run_case(case, settings)
        print_case(result, console)
        results["cases"].append(result)
        if arguments.json:
            write_json(arguments.json, results)
    failed = [row for case in results["cases"] for row in case["contestants"] if row["worker"] == "dmoe"]
    return 1 if any("left_out" in row for row in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
