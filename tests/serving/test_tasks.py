"""A model of several labels: one named output each, in JSON and Arrow, in metadata, description, metrics and page."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

import dmoe
from dmoe.weights.run import Run
from tests.export.test_tasks import NAMES, predicted, raw
from tests.serving.conftest import INFER, Process, body, client
from tests.serving.test_page import page  # noqa: F401 (fixture)

PROBABILITIES = [f"probability.{name}" for name in NAMES]
OTHERS = [f"{kind}.{label}" for kind in ("logit", "gate_weights") for label in ("click", "conversion", "like")]


def outputs(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}


def test_answers_have_every_probability_unless_others_are_asked_for(
    several: Run,
    several_in_graph: Path,
) -> None:
    table = raw(several, 60)
    expected = predicted(several.path, table)

    async def ask() -> None:
        async with client(several_in_graph) as (session, _):
            found = outputs((await session.post(INFER, json=body(table))).json())
            assert list(found) == PROBABILITIES
            for name in NAMES:
                np.testing.assert_allclose(found[f"probability.{name}"][:, 0], expected[name], atol=1e-6)
            asked = [{"name": name} for name in (*OTHERS, "probability.click+conversion")]
            some = outputs((await session.post(INFER, json=body(table, outputs=asked))).json())
            assert list(some) == [*OTHERS, "probability.click+conversion"]
            assert some["gate_weights.like"].shape == (60, 2)
            np.testing.assert_allclose(some["gate_weights.like"].sum(1), 1, atol=1e-6)
            np.testing.assert_allclose(1 / (1 + np.exp(-some["logit.like"][:, 0])), expected["like"], atol=1e-6)
            refused = await session.post(INFER, json=body(table, outputs=[{"name": "probability"}]))
            assert refused.status_code == 400
            assert refused.json()["error"] == f"an output is unknown; known: {', '.join([*PROBABILITIES, *OTHERS])}"

            arrow = pa.Table.from_pandas(table, preserve_index=False)
            sink = pa.BufferOutputStream()
            with ipc.new_stream(sink, arrow.schema) as writer:
                writer.write_table(arrow)
            kind = {"content-type": "application/vnd.apache.arrow.stream"}
            for query, names in (("", PROBABILITIES), ("?outputs=probability.like,gate_weights.click", None)):
                response = await session.post(INFER + query, content=sink.getvalue().to_pybytes(), headers=kind)
                columns = ipc.open_stream(response.content).read_all()
                assert columns.column_names == (names or ["probability.like", "gate_weights.click"])
                np.testing.assert_allclose(columns["probability.like"].to_numpy(), expected["like"], atol=1e-6)

    asyncio.run(ask())


def test_the_model_says_its_labels_and_domains(several_in_graph: Path) -> None:

    async def ask() -> None:
        async with client(several_in_graph) as (session, _):
            found = (await session.get("/v2/models/dmoe")).json()
            assert [one["name"] for one in found["outputs"]] == [*PROBABILITIES, *OTHERS]
            assert [one["shape"] for one in found["outputs"]] == [[-1, 1]] * 7 + [[-1, 2]] * 3
            assert found["labels"][1] == {"name": "conversion", "given": "click"}
            assert found["domain"]["field"] == "slot"
            assert found["domain"]["unseen"] in found["domain"]["names"]
            described = str((await session.get("/openapi.json")).json())
            assert "probability.click+conversion" in described
            assert "By default all probabilities." in described

    asyncio.run(ask())


def test_metrics_have_the_mean_of_each_probability(several: Run, several_in_graph: Path) -> None:
    table = raw(several, 40)

    async def ask() -> None:
        async with client(several_in_graph) as (session, _):
            found = outputs((await session.post(INFER, json=body(table))).json())
            text = (await session.get("/metrics")).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("dmoe_output_mean{"))
        by_output = {key.split('"')[1]: float(value) for key, value in lines.items()}
        assert by_output == pytest.approx({name: found[name].mean() for name in PROBABILITIES}, abs=1e-6)

    asyncio.run(ask())


@pytest.mark.parametrize("page", [1280, 400], indirect=True)
def test_the_page_shows_every_label_and_explains_the_chosen_one(
    several: Run,
    several_in_graph: Path,
    serve: Callable[..., Process],
    page: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    row = raw(several, 1)
    expected = {name: float(one[0]) for name, one in predicted(several_in_graph, row).items()}
    page.goto(serve(several_in_graph).url)
    page.wait_for_selector("#field-0")
    page.fill("#paste", row.iloc[0].to_json())
    page.click("#fill")
    page.click("#score")
    page.wait_for_selector("#result:not([hidden])")
    words = ["click", "conversion, given click", "click and conversion", "like"]
    shown = [text.split("\t") for text in page.locator("#scores tr").all_inner_texts()]
    assert [(one[0], one[-1]) for one in shown] == [
        (word, f"{value:.4f}") for word, value in zip(words, expected.values(), strict=True)
    ]
    moves = page.locator("#moves tr").all_inner_texts()
    page.select_option("#shown", "probability.like")
    assert page.inner_text("#probability") == f"{expected['like']:.4f}"
    assert page.inner_text("#of") == "probability of like"
    assert page.locator("#moves tr").all_inner_texts() != moves
    without = dmoe.load(several_in_graph).predict_proba(row.assign(site=None))
    assert isinstance(without, dict)
    change = expected["like"] - float(without["like"][0])
    told = {text.split("\t")[0]: text.split("\t")[2] for text in page.locator("#moves tr").all_inner_texts()}
    assert float(told["site"].replace("−", "-")) == pytest.approx(change, abs=2e-4)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.faults == []
