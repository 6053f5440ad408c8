"""The report on a phone, in headless Chromium: the page does not scroll sideways, and its texts can be read."""

import shutil
from pathlib import Path

import pytest

from dmoe.cli.main import main
from tests.report.conftest import MakeRun

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
# The last pixel of what stands in no box that scrolls by itself, and the smallest text.
MEASURE = """() => {
  let right = 0, smallest = 99;
  for (const one of document.querySelectorAll('body *')) {
    const box = one.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    let above = one.parentElement;
    while (above && !['auto', 'scroll'].includes(getComputedStyle(above).overflowX)) above = above.parentElement;
    if (!above && !one.ownerSVGElement) right = Math.max(right, box.right);
    if ([...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) {
      const scale = one instanceof SVGElement ? Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b) : 1;
      smallest = Math.min(smallest, parseFloat(getComputedStyle(one).fontSize) * scale);
    }
  }
  return [document.documentElement.scrollWidth, right, smallest];
}"""


@pytest.mark.parametrize("several", [False, True])
def test_a_report_fits_a_phone(make_run: MakeRun, tmp_path: Path, several: bool) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    runs = [make_run("first", alpha=10.0, field="f" * 60)] + ([make_run("second", labels=True)] if several else [])
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, runs), "-o", str(tmp_path / "report.html")])
    assert not stopped.value.code
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, is_mobile=True)
        page.goto(f"file://{tmp_path / 'report.html'}")
        width, right, smallest = page.evaluate(MEASURE)
        captions = page.evaluate(
            "[...document.querySelectorAll('caption')].map(one => one.getBoundingClientRect().width)"
        )
        browser.close()
    assert width <= 390
    assert right <= 391
    assert smallest >= 8
    assert max(captions) <= 390, "what is said above a table is cut off where the table goes on"
