"""One table a case, for people; the JSON file holds everything."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.parts import EMBEDDING_PARTS, OPTIMISER_PARTS

TIMES = {"ms/batch": "median_ms", "min": "min_ms", "max": "max_ms"}


def embedding_and_optimiser_share(profile: dict[str, float]) -> float:
    """The part of a step that tables and optimisers take, 0 to 1."""
    parts = (*EMBEDDING_PARTS, *OPTIMISER_PARTS)
    return sum(profile.get(part, 0.0) for part in parts) / sum(profile.values())


def print_case(result: dict[str, Any], console: Console) -> None:
    """The contestants of one case, then the roofline and where the time of ours goes."""
    console.print(contestants_table(_title(result), result["contestants"], TIMES, ".1f"))
    for row in result["contestants"]:
        if "left_out" in row:
            console.print(f"{row['name']} {'failed later' if 'ms' in row else 'left out'}: {row['left_out']}")
    roofline = result["roofline"]
    ratio = f"; dmoe takes {roofline['ratio']:.2f} times that" if "ratio" in roofline else ""
    console.print(
        f"roofline: {roofline['dense_gflop']:.3g} GFLOP of matrix products at "
        f"{roofline['products_gflop_per_second']:.0f} GFLOP/s is {roofline['dense_ms']:.3g} ms{ratio}; "
        f"copy {roofline['copy_gb_per_second']:.1f} GB/s, gather {roofline['gather_gb_per_second']:.1f} GB/s"
    )
    if result["profile"]:
        parts = sorted(result["profile"].items(), key=lambda item: -item[1])
        console.print("profile: " + ", ".join(f"{name} {time:.1f} ms" for name, time in parts))
        share = embedding_and_optimiser_share(result["profile"])
        console.print(f"embedding and optimisers: {share:.0%} of the step")
        console.print(f"memory bound: {result['memory_bound_bytes'] / 2**30:.2f} GiB")
    console.print()


def _title(result: dict[str, Any]) -> str:
    return (
        f"{result['case']}: {' + '.join(result['experts'])}, {result['vocabulary_rows']:,} vocabulary rows × "
        f"{result['embedding_dim']}, {result['fields']} fields, batch {result['batch_size']:,} "
        f"({result['distinct_rows_of_a_batch']:,} distinct), embedding L2 {result['embedding_l2']:g}"
    )


def contestants_table(title: str, rows: list[dict[str, Any]], times: Mapping[str, str], form: str) -> Table:
    """Those that were measured, one a row; `times` are its columns of milliseconds, each written as `form` says."""
    table = Table(title=title, title_justify="left")
    for column in ("contestant", *times, "rows/s", "peak GiB", "parameters", "ratio", "by round"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    for row in rows:
        if "median_ms" in row:
            table.add_row(row["name"], *(format(row[key], form) for key in times.values()), *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    rounds = row.get("ratio_by_round", [])
    return [
        f"{row['rows_per_second']:,.0f}",
        f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else "",
        f"{row['parameters']:,}",
        f"{row['ratio']:.2f}" if "ratio" in row else "",
        f"{min(rounds):.2f}–{max(rounds):.2f}" if rounds else "",
    ]
