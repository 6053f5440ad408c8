"""The routes: Open Inference Protocol (KServe v2), metrics, and the page."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as installed_version
from importlib.resources import files
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from dmoe.errors import DmoeError
from dmoe.export.fields import Features
from dmoe.export.manifest import VALUES
from dmoe.machine.limits import usable_threads
from dmoe.serving import openapi
from dmoe.serving.arrow import write_table
from dmoe.serving.batcher import Batcher, Outputs, QueueFull
from dmoe.serving.body import Budget, Reserved, read_body
from dmoe.serving.guard import Guard, log
from dmoe.serving.json_body import output_names, read_request
from dmoe.serving.metrics import Metrics
from dmoe.serving.rows import RequestError, Room
from dmoe.serving.served import Served, Slot
from dmoe.serving.settings import Settings

_MEGABYTE = 1 << 20
# Bodies from here on are parsed and encoded off the event loop, which has other requests to attend to.
_LARGE_BODY = 1 << 16

_PAGES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}


class Application:
    """The routes of one server, behind `guard`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.slot = Slot(settings.model)
        self.batcher = Batcher(
            threads=settings.threads or usable_threads(),
            batch_rows=settings.batch_rows,
            max_queue_rows=settings.max_queue_rows,
            delay_s=settings.batch_delay_ms / 1000,
            observe=self.metrics.batch_rows.observe,
        )
        self._budget = Budget(int(settings.max_inflight_mb * _MEGABYTE))
        self._parsing = ThreadPoolExecutor(1, thread_name_prefix="dmoe-parse")
        self.metrics.queue_rows.set_function(lambda: self.batcher.queued_rows)
        self.metrics.inflight_bytes.set_function(lambda: self._budget.used)
        self.guard = Guard(self._routes(), settings, self.metrics)

    def close(self) -> None:
        """Waits for what is being scored."""
        self.batcher.close()
        self._parsing.shutdown(wait=True)

    async def reload(self) -> Served:
        """Serves what the model path now leads to.

        Raises: DmoeError if it cannot be opened; the present version then stays.
        """
        try:
            served = await self.slot.reload()
        except DmoeError as error:
            self.metrics.swaps.labels("refused").inc()
            log("swap refused", reason=str(error), version=self.slot.current.version)
            raise
        self.metrics.swaps.labels("done").inc()
        log("swapped", version=served.version)
        return served

    def _routes(self) -> FastAPI:
        app = FastAPI(
            title="dmoe",
            version=installed_version("dmoe"),
            description="Click probabilities of raw rows, in the Open Inference Protocol (KServe v2).",
            docs_url=None,
            redoc_url=None,
            openapi_url="/openapi.json",
            default_response_class=Response,
        )
        app.add_exception_handler(RequestError, _request_error)
        app.add_exception_handler(HTTPException, _http_error)
        model = f"/v2/models/{self.settings.name}"
        for path, responses, call in (
            ("/v2", openapi.answer({"type": "object"}), self._server),
            ("/v2/health/live", openapi.answer({"type": "object"}), self._live),
            ("/v2/health/ready", openapi.answer({"type": "object"}) | openapi.responses(503), self._ready),
            (model, openapi.answer({"type": "object"}), self._model),
            (f"{model}/ready", openapi.answer({"type": "object"}) | openapi.responses(503), self._model_ready),
        ):
            app.add_api_route(path, call, methods=["GET"], responses=openapi.responses() | responses)
        app.add_api_route(
            f"{model}/infer",
            self._infer,
            methods=["POST"],
            responses=openapi.infer_answer(self.slot.current.outputs)
            | openapi.responses(400, 408, 413, 415, 429, 503, 504),
            openapi_extra=openapi.infer_body(self._inputs(self.slot.current), self.slot.current.outputs),
        )
        app.add_api_route(
            f"/v2/repository/models/{self.settings.name}/load",
            self._load,
            methods=["POST"],
            responses=openapi.answer({"type": "object"}) | openapi.responses(400, 408, 413, 415, 429),
        )
        app.add_api_route("/metrics", self._metrics, methods=["GET"], include_in_schema=False)
        for path in _PAGES:
            app.add_api_route(path, _page, methods=["GET"], include_in_schema=False)
        return app

    async def _server(self) -> Response:
        """Name, version and extensions of the server, and the model that it has."""
        extensions = ["model_repository", "arrow_stream"]
        return _json(
            {
                "name": "dmoe",
                "version": installed_version("dmoe"),
                "extensions": extensions,
                "models": [self.settings.name],
            }
        )

    async def _live(self) -> Response:
        """Whether the process answers."""
        return _json({"live": True})

    async def _ready(self) -> Response:
        """Whether new requests are welcome; not while the server drains."""
        return _json({"ready": not self.guard.draining}, 503 if self.guard.draining else 200)

    async def _model_ready(self) -> Response:
        """Whether the model takes requests."""
        return await self._ready()

    async def _model(self) -> Response:
        """Inputs (the raw columns), outputs, experts and how equal the model is to its run; of several labels also how
        they depend on each other, and of domains which field says them."""
        served = self.slot.current
        manifest = served.model.manifest
        widths = {task.gate_weights: len(manifest.experts) for task in served.model.outputs}
        more: dict[str, Any] = {}
        if manifest.labels:
            more["labels"] = [label.model_dump() for label in manifest.labels]
        if manifest.domain is not None:
            more["domain"] = manifest.domain.model_dump()
        return _json(
            {
                "name": self.settings.name,
                "versions": [served.version],
                "platform": "onnxruntime_onnx",
                "inputs": self._inputs(served),
                "outputs": [
                    {"name": output, "datatype": "FP32", "shape": [-1, widths.get(output, 1)]}
                    for output in served.outputs
                ],
                "experts": list(manifest.experts),
                "parity": manifest.parity.model_dump(exclude_none=True),
                **more,
            }
        )

    @staticmethod
    def _inputs(served: Served) -> list[dict[str, Any]]:
        """The raw columns of a request, with the datatype that suits each and a frequent value."""
        derived = served.reader.derived
        by_column: dict[str, dict[str, Any]] = {
            column: {"name": column, "datatype": "FP64", "shape": [-1, 1], "example": None}
            for column in served.reader.columns
        }
        for field, one in zip(served.model.inputs, served.model.manifest.inputs, strict=True):
            if one.name in derived or (one.kind != "number" and field.made != "number"):
                by_column[one.column]["datatype"] = "BYTES"
            if one.name not in derived and one.example is not None:
                by_column[one.column]["example"] = one.example
        return [by_column[column] for column in served.reader.columns]

    async def _infer(self, request: Request) -> Response:
        """Scores raw rows: one tensor an input column, or an Arrow stream with those columns."""
        served = self.slot.current
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (openapi.JSON, openapi.ARROW):
            raise RequestError(415, f"send {openapi.JSON} or {openapi.ARROW}")
        if any(name != "outputs" for name in request.query_params) or len(request.query_params.multi_items()) > 1:
            raise RequestError(400, "the query may hold 'outputs' once, and nothing else")
        with self._budget.reserve() as reserved:
            body = await self._body(request, reserved, int(self.settings.max_body_mb * _MEGABYTE))
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self.settings.timeout_s):
                    answer, rows, headers = await self._answer(
                        served, kind, body, request.query_params.get("outputs"), reserved
                    )
            except TimeoutError:
                raise RequestError(504, f"not scored within {self.settings.timeout_s:g} s; send fewer rows") from None
            except QueueFull:
                raise RequestError(429, "the queue is full; try again") from None
        self.metrics.seconds.observe(time.perf_counter() - began)
        self.metrics.rows.inc(rows)
        request.scope.setdefault("state", {})["log"] = {"rows": rows, "version": served.version}
        return Response(answer, media_type=kind, headers=headers)

    async def _body(self, request: Request, reserved: Reserved, max_bytes: int) -> bytes:
        return await read_body(request, reserved, max_bytes=max_bytes, timeout_s=self.settings.read_timeout_s)

    async def _answer(
        self, served: Served, kind: str, body: bytes, outputs: str | None, reserved: Reserved
    ) -> tuple[bytes, int, dict[str, str]]:
        large = len(body) >= _LARGE_BODY
        parse = self._parse_arrow if kind == openapi.ARROW else self._parse_json
        room = Room(int(self.settings.max_decoded_mb * _MEGABYTE), reserved.grow_by)
        if large:
            parsing = self._parsing.submit(parse, served, body, outputs, room)
            reserved.until(parsing)
            features, names, label = await asyncio.wrap_future(parsing)
        else:
            features, names, label = parse(served, body, outputs, room)
        found = await self.batcher.score(served.model, features, [*names, *served.model.counted])
        values_RC = found.pop(VALUES, None)
        for values in found.values():
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
                raise RequestError(400, f"row {row} has no finite score: a number is too far from those of training")
        served.drift.add(found)
        headers = served.unseen.add(features, values_RC)
        for finding in served.unseen.due():
            log("unseen", version=served.version, **finding.values(), message=finding.text())
        encode = _encode_arrow if kind == openapi.ARROW else self._encode_json
        rows = len(next(iter(found.values())))
        if large:
            return await asyncio.wrap_future(self._parsing.submit(encode, served, found, label)), rows, headers
        return encode(served, found, label), rows, headers

    def _parse_json(
        self, served: Served, body: bytes, outputs: str | None, room: Room
    ) -> tuple[Features, list[str], str | None]:
        if outputs is not None:
            raise RequestError(400, "'outputs' goes into the body of a JSON request")
        asked = read_request(body, served.model.outputs, self.settings.max_rows, len(served.reader.columns), room)
        return served.reader.from_json(asked.columns, room), asked.outputs, asked.label

    def _parse_arrow(
        self, served: Served, body: bytes, outputs: str | None, room: Room
    ) -> tuple[Features, list[str], str | None]:
        names = output_names(outputs.split(",") if outputs else [], served.model.outputs)
        return served.reader.from_arrow(body, self.settings.max_rows, room), names, None

    def _encode_json(self, served: Served, found: Outputs, label: str | None) -> bytes:
        answer: dict[str, Any] = {"model_name": self.settings.name, "model_version": served.version}
        if label is not None:
            answer["id"] = label
        answer["outputs"] = [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP32",
                "data": np.ascontiguousarray(values).ravel(),
            }
            for name, values in found.items()
        ]
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    async def _load(self, request: Request) -> Response:
        """Serves the version that the model path now leads to; on an error the present one stays."""
        # A page of another site can send a form, but not this type, without asking first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != openapi.JSON:
            raise RequestError(415, f"send {openapi.JSON}")
        with self._budget.reserve() as reserved:
            body = await self._body(request, reserved, _LARGE_BODY)
        if body.strip() not in (b"", b"{}"):
            raise RequestError(400, "the body must be {}: the model is the one that the server's path leads to")
        try:
            served = await self.reload()
        except DmoeError as error:
            raise RequestError(400, str(error)) from None
        return _json({"name": self.settings.name, "version": served.version})

    async def _metrics(self) -> Response:
        served = self.slot.current
        text = self.metrics.render(served.version, served.drift, served.unseen.counts)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _encode_arrow(served: Served, found: Outputs, label: str | None) -> bytes:  # noqa: ARG001 (as for JSON)
    return write_table(found, {"model_version": served.version})


async def _page(request: Request) -> Response:
    name, kind = _PAGES[request.url.path]
    return Response((files("dmoe.serving") / "pages" / name).read_bytes(), media_type=kind)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type=openapi.JSON)


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    response = _json({"error": str(error)}, error.status)
    if error.status == 429:
        response.headers["retry-after"] = "1"
    return response


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "; GET /v2 for the model, GET /openapi.json for the paths" if error.status_code == 404 else ""
    response = _json({"error": f"{error.detail.lower()}{hint}"}, error.status_code)
    response.headers.update(error.headers or {})
    return response
