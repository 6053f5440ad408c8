"""The server counts values that training never saw, and says so without a value."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from dmoe.export.onnx_model import OnnxModel
from dmoe.serving import unseen
from dmoe.serving.openapi import ARROW
from dmoe.tokens.unseen import ValueCounts
from tests.serving.conftest import INFER, body, client, rows


async def posted(session: httpx.AsyncClient, table: pd.DataFrame, **more: Any) -> httpx.Response:
    answer = await session.post(INFER, json=body(table, **more))
    assert answer.status_code == 200
    return answer


def by_field(model: Path, *tables: pd.DataFrame) -> dict[str, dict[str, Any]]:
    scorer = OnnxModel.open(model)
    counts = scorer.value_counts()
    for table in tables:
        list(scorer.stream(table, counts=counts))
    return {one["field"]: one for one in counts.values()}


@pytest.mark.parametrize("name", ["in_graph", "looked_up"])
def test_headers_and_metrics_say_what_is_unseen(name: str, request: pytest.FixtureRequest) -> None:
    async def ask() -> None:
        model = request.getfixturevalue(name)
        known, other = rows(40), rows(400, 4).assign(site="9 secret", price="")
        async with client(model, batch_rows=64) as (session, _):
            assert not [name for name in (await posted(session, known)).headers if name.startswith("x-dmoe")]
            answer = await posted(session, other, outputs=[{"name": "logit"}])
            assert [one["name"] for one in answer.json()["outputs"]] == ["logit"]
            assert "site;1.00" in answer.headers["x-dmoe-unseen"].split(", ")
            assert answer.headers["x-dmoe-missing"] == "price_part;1.00, price;1.00"
            assert not [name for name in (await posted(session, other[:1])).headers if name.startswith("x-dmoe")]
            sink = pa.BufferOutputStream()
            table = pa.Table.from_pandas(other, preserve_index=False)
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            arrow = await session.post(INFER, content=sink.getvalue().to_pybytes(), headers={"content-type": ARROW})
            assert arrow.headers["x-dmoe-unseen"] == answer.headers["x-dmoe-unseen"]
            text = (await session.get("/metrics")).text
        found = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"
        }
        version = OnnxModel.open(model).manifest.version
        for field, one in by_field(model, known, other, other[:1], other).items():
            for kind in ("missing", "unseen"):
                if kind in one:
                    key = f'{{field="{field}",kind="{kind}",version="{version}"}}'
                    assert found[f"dmoe_field_values{key}"] == one[kind]
                    assert found[f"dmoe_field_expected_share{key}"] == one[f"expected_{kind}"]
            if "unseen" in one:
                seen = found[f'dmoe_field_values{{field="{field}",kind="seen",version="{version}"}}']
                assert seen == one["values"] - one["unseen"]
        assert found[f'dmoe_field_values{{field="site",kind="unseen",version="{version}"}}'] == 801

    asyncio.run(ask())


def test_a_field_is_logged_at_most_once_a_minute_and_never_its_values(
    in_graph: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        now = [1000.0]
        monkeypatch.setattr(unseen, "monotonic", lambda: now[0])

        async def logged(table: pd.DataFrame, seconds: float) -> list[dict[str, Any]]:
            now[0] += seconds
            for start in range(0, len(table), 10):  # requests of too few rows to say anything of their own
                await posted(session, table[start : start + 10])
            return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

        other = rows(100, 4).assign(site="9 secret")
        async with client(in_graph) as (session, application):
            assert await logged(rows(60), 2) == []
            await logged(other, 0)
            first = await logged(other, 2)
            assert {(one["event"], one["kind"]) for one in first} == {("unseen", "unseen")}
            site = next(one for one in first if one["field"] == "site")
            assert site["count"] > 90
            assert site["message"].startswith("column 'site':")
            assert "secret" not in json.dumps(first)
            assert await logged(other, 30) == []
            assert "site" in [one["field"] for one in await logged(other, 31)]
            # Once the clients send known values again, it is forgotten.
            await logged(rows(900, 5), 61)
            await logged(rows(10), 61)
            assert await logged(rows(200, 6), 61) == []
            assert isinstance(application.slot.current.unseen.counts, ValueCounts)

    asyncio.run(ask())


def test_names_that_no_header_can_hold_are_encoded() -> None:
    from dmoe.tokens.unseen import Finding

    found = [Finding(name, name, "unseen", 90, 100, 0.0) for name in ("日 本;", "b\r\nX: y")]
    assert unseen._header(found) == "%E6%97%A5%20%E6%9C%AC%3B;0.90, b%0D%0AX%3A%20y;0.90"
