"""Draws the pictures of the README and the site into docs/images; `make pictures` runs it.

model.svg and model-tasks.svg come from presets, speed.svg from the table in docs/performance.md, report.png is a
screen of the report that `dmoe quickstart` writes, and drawing-*.svg are the mermaid fences of the pages. Chromium
takes the last two; mermaid comes from the npm registry, so Node.js is needed for new fences.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MERMAID = "mermaid@11.17.2"
_FENCE = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| *([\w-]*) *\| *([^|]+?) *\| *(\d+) \([^|]*\|[^|]*\|[^|]*\|[^|]*\|$", re.MULTILINE)
_SHOWN = ("cin-crossnet", "dcnv2", "deepfm", "xdeepfm", "dnn")
_PEERS = ("dmoe", "FuxiCTR", "DeepCTR-Torch", "torch-rechub")


def models() -> None:
    from dmoe.config.run import load_config
    from dmoe.report.drawing import model_drawing

    for name, preset in (("model", "d-moe"), ("model-tasks", "ple")):
        (IMAGES / f"{name}.svg").write_text(model_drawing(load_config(preset, [])), encoding="utf-8")


def step_times(page: str) -> dict[str, dict[str, int]]:
    """For each case of a page's tables its contestants' median milliseconds a step, as they stand there."""
    found: dict[str, dict[str, int]] = {}
    case = ""
    for name, contestant, milliseconds in _ROW.findall(page):
        case = name or case
        found.setdefault(case, {})[contestant] = int(milliseconds)
    return found


def speed() -> None:
    from matplotlib.figure import Figure

    from dmoe.report.svg import GROUND, INK, SERIES, drawing, write_figure

    times = step_times((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    with drawing():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained", facecolor=GROUND)
        axes = figure.add_subplot()
        axes.set_facecolor(GROUND)
        for number, peer in enumerate(_PEERS):
            cases = [case for case in _SHOWN if peer in times[case]]
            rows = [10_000 / times[case][peer] for case in cases]
            beside = [[other for other in _PEERS if other in times[case]] for case in cases]
            places = [
                _SHOWN.index(case) + 0.2 * (others.index(peer) - (len(others) - 1) / 2)
                for case, others in zip(cases, beside, strict=True)
            ]
            axes.bar(places, rows, 0.19, color=SERIES[number], label=peer)
            for place, value in zip(places, rows, strict=True):
                axes.text(place, value, f"{value:.0f}", ha="center", va="bottom", fontsize=7.5, color=INK)
        axes.set_xticks(range(len(_SHOWN)), ["CIN + CrossNet,\na table each", "DCNv2", "DeepFM", "xDeepFM", "DNN"])
        axes.set_ylabel("thousand rows a second, training")
        axes.grid(visible=False, axis="x")
        axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.12))
        write_figure(figure, IMAGES / "speed")
    (IMAGES / "speed.png").unlink()


@contextmanager
def browser(width: int, height: int, scale: float = 1) -> Iterator[Any]:
    """A page of a headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium is installed: it takes the screens")
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        running = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield running.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        running.close()


def report() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "quickstart"
        subprocess.run(
            [sys.executable, "-m", "dmoe", "quickstart", "--output", str(made)], check=True, stdout=subprocess.DEVNULL
        )
        with browser(1100, 900) as page:
            page.goto((made / "report.html").as_uri())
            page.screenshot(path=IMAGES / "report.png")


def fences() -> list[str]:
    """The mermaid drawings of all pages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [text for page in pages for text in _FENCE.findall(page.read_text(encoding="utf-8"))]


def drawings() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    from drawings import drawing_name

    wanted = {IMAGES / drawing_name(text): text for text in fences()}
    for path in set(IMAGES.glob("drawing-*.svg")) - set(wanted):
        path.unlink()
    missing = {path: text for path, text in wanted.items() if not path.is_file()}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder, browser(1200, 900) as page:
        subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extract("package/dist/mermaid.min.js", folder, filter="data")
        page.set_content("<body></body>")
        page.add_script_tag(path=Path(folder) / "package" / "dist" / "mermaid.min.js")
        options = {"startOnLoad": False, "theme": "neutral", "htmlLabels": False, "flowchart": {"htmlLabels": False}}
        page.evaluate("options => mermaid.initialize(options)", options)
        for path, text in missing.items():
            path.write_text(page.evaluate("async text => (await mermaid.render('drawing', text)).svg", text) + "\n")


PICTURES: dict[str, Callable[[], None]] = {"models": models, "speed": speed, "drawings": drawings, "report": report}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", nargs="*", choices=[[], *PICTURES], help="which; all without any")
    IMAGES.mkdir(exist_ok=True)
    for name in parser.parse_args().picture or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main()
