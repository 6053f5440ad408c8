"""The documentation site is built without a warning, its links lead somewhere, and its tutorials run.

Slow, and skipped where the extra `docs` is not installed; `make test-all` installs it.
"""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import dmoe.decorrelation

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md") if path.stem != "index")
_EXECUTE = """
import sys
from pathlib import Path
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient
from nbformat import from_dict
text = Path(sys.argv[1]).read_text(encoding="utf-8")
notebook = read_myst_markdown_notebook(text)
NotebookClient(from_dict(notebook), timeout=600, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
"""


class Page(HTMLParser):
    """The links and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if (tag, name) in {("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")} and value:
                self.links.append(value)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_site_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="sphinx is not installed: pip install 'dmoe[docs]'")
    command = [sys.executable, "-m", "sphinx", "--nitpicky", "--fail-on-warning", "--keep-going", "-b", "html"]
    command += ["-D", "nb_execution_mode=off", "-d", str(tmp_path / "trees"), "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 60
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                # What a page needs itself must come from the site; a link may lead elsewhere.
                assert link.startswith("https://") or "://127.0.0.1" in link, f"{path}: {link}"
            elif not parts.scheme:
                target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
                assert target.is_file(), f"{path.relative_to(site)}: {link}"
                if target in pages and parts.fragment:
                    assert unquote(parts.fragment) in pages[target].ids, f"{path.relative_to(site)}: {link}"
    reference = {id for path, page in pages.items() if path.parent.name == "reference" for id in page.ids}
    losses = set(dmoe.decorrelation.__all__)
    promised = {f"dmoe.decorrelation.{name}" if name in losses else f"dmoe.{name}" for name in dmoe.__all__}
    assert promised <= reference, promised - reference
    for text in ((site / "reference" / f"{name}.html").read_text(encoding="utf-8") for name in ("dmoe", "experts")):
        assert "performed at every call" not in text, "torch's text of forward"
        assert ">Type<" not in text, "a colon in the text of an attribute is taken for the end of its type"
    assert (site / "external-links.txt").stat().st_size > 0
    assert "cdn." not in (site / "architecture.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_a_tutorial_runs(tutorial: str, tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="myst-nb is not installed: pip install 'dmoe[docs]'")
    if tutorial == "criteo" and "DMOE_DATA" not in os.environ:
        pytest.skip("the real log is not here; set DMOE_DATA to the folder that holds criteo/train.txt.gz")
    command = [sys.executable, "-c", _EXECUTE, str(ROOT / "docs" / "tutorials" / f"{tutorial}.md")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_every_page_is_reached_and_every_drawing_is_drawn() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    from benchmarks.pictures import IMAGES, fences
    from drawings import drawing_name

    assert {drawing_name(text) for text in fences()} == {path.name for path in IMAGES.glob("drawing-*.svg")}
    index = (ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    assert all(f"]({name}.md)" in index for name in TUTORIALS)
