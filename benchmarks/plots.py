"""Draws the growth curves of a results file of `benchmarks` or `benchmarks.production`.

$ python -m benchmarks.plots RESULTS.json --output FOLDER
"""

import argparse
from pathlib import Path
from typing import Any

from dmoe.disk.files import read_json

LABELS = {
    "vocabulary": "vocabulary rows",
    "experts": "experts",
    "fields": "fields",
    "batch": "rows in a batch",
    "steps": "steps since the start",
}


def curves(results: dict[str, Any], axis: str) -> dict[str, list[tuple[float, float]]]:
    """For each contestant, (value on the axis, median ms a step) by rising value."""
    found: dict[str, list[tuple[float, float]]] = {}
    for case in results["cases"]:
        if case["axis"] == axis:
            for row in case["contestants"]:
                if "median_ms" in row:
                    found.setdefault(row["name"], []).append((case["value"], row["median_ms"]))
    return {name: sorted(points) for name, points in found.items()}


def draw(results: dict[str, Any], folder: Path, prefix: str = "growth-") -> list[Path]:
    """One SVG for each axis that the results have points on, `prefix` and its name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for axis, label in LABELS.items():
        lines = curves(results, axis)
        if not lines:
            continue
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        scale = "linear" if axis == "experts" else "log"
        axes.set(xlabel=label, ylabel="ms a step (median)", xscale=scale, yscale=scale)
        axes.set_ylim(bottom=0 if scale == "linear" else None)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        path = folder / f"{prefix}{axis}.svg"
        figure.savefig(path)
        pyplot.close(figure)
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prefix", default="growth-", help="of the names of the pictures (growth-)")
    arguments = parser.parse_args()
    for path in draw(read_json(arguments.results), arguments.output, arguments.prefix):
        print(path)


if __name__ == "__main__":
    main()
