"""The page in headless Chromium, at desktop and phone width."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import dmoe
from dmoe.export.onnx_model import OnnxModel
from tests.serving.conftest import Process, rows

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
TOKEN = "0123456789abcdef-token"


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[playwright.Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    width = getattr(request, "param", 1200)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium,
            headless=True,
            viewport={"width": width, "height": 800},
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                  "--disable-background-networking", "--disable-component-update"],
        )  # fmt: skip
        opened = browser.new_page()
        faults: list[str] = []
        opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.faults = faults
        yield opened
        browser.close()


@pytest.mark.parametrize("page", [1200, 390], indirect=True)
def test_a_pasted_row_is_scored_and_explained(
    in_graph: Path, serve: Callable[..., Process], page: playwright.Page, tmp_path: Path
) -> None:
    row = rows(1, seed=4).assign(site="日本", price="-3", age="7", hits="3", user="u1")
    page.goto(serve(in_graph).url)
    page.fill("#paste", row.iloc[0].to_json(force_ascii=False))
    page.click("#fill")
    page.click("#score")
    page.wait_for_selector("#result:not([hidden])")
    model = dmoe.load(in_graph)
    assert isinstance(model, OnnxModel)
    (expected,) = model.predict_proba(row)
    assert page.inner_text("#probability") == f"{expected:.4f}"
    gate = model.score(model.featuriser(model.raw_rows(pa.Table.from_pandas(row), "row")), ["gate_weights"])[
        "gate_weights"
    ][0]
    assert page.locator("#weights tr").all_inner_texts() == [
        f"{name}\t\t{weight:.3f}" for name, weight in zip(("cin", "crossnet"), gate, strict=True)
    ]
    changes = {}
    for name in row:
        (without,) = model.predict_proba(row.assign(**{name: None}))
        changes[name] = float(expected - without)
    shown = [text.split("\t") for text in page.locator("#moves tr").all_inner_texts()]
    assert {name: float(change.replace("−", "-")) for name, _, change in shown} == pytest.approx(
        {name: change for name, change in changes.items() if row[name].iloc[0]}, abs=2e-4
    )
    sizes = [abs(float(change.replace("−", "-"))) for _, _, change in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.faults == []


def test_errors_are_shown_and_hold_no_markup(
    in_graph: Path, serve: Callable[..., Process], page: playwright.Page
) -> None:
    page.goto(serve(in_graph).url)
    page.wait_for_selector("#field-0")
    page.fill("#paste", "1,2")
    page.click("#fill")
    assert "the text holds 2 values, the model has 7 inputs" in page.inner_text("#error")
    page.click("#example")
    page.fill("#field-1", "<img src=x onerror=alert(1)>")
    page.click("#score")
    page.wait_for_selector("#error:has-text('not a number')")
    page.click("#clear")
    page.click("#example")
    page.click("#score")
    page.wait_for_selector("#result:not([hidden])")
    assert page.inner_text("#error") == ""
    page.fill("#paste", '{"site": "<b>bold</b>"}')
    page.click("#fill")
    page.click("#score")
    page.wait_for_selector("#moves:has-text('<b>bold</b>')")
    assert page.locator("#moves b").count() == 0


def test_the_token_is_asked_for(
    in_graph: Path, serve: Callable[..., Process], page: playwright.Page, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    page.goto(serve(in_graph, "--token-file", str(tmp_path / "token")).url)
    page.wait_for_selector("#access:not([hidden])")
    page.fill("#token", TOKEN)
    page.press("#token", "Tab")
    page.wait_for_selector("#field-0")
    page.click("#example")
    page.click("#score")
    page.wait_for_selector("#result:not([hidden])")


def test_the_description_is_shown(in_graph: Path, serve: Callable[..., Process], page: playwright.Page) -> None:
    page.goto(f"{serve(in_graph).url}/docs")
    page.wait_for_selector("text=POST /v2/models/dmoe/infer")
    assert page.faults == []
