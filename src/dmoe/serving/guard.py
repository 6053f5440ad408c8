"""What stands before every route: host, token, answers to failures, metrics and the log."""

import json
import sys
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmoe.serving.metrics import Metrics
from dmoe.serving.settings import LOOPBACK, Settings

# Reachable without a token: whether the process lives, and the pages' own files, which hold no data.
_OPEN = frozenset(
    {
        "/",
        "/page.js",
        "/page.css",
        "/icon.svg",
        "/docs",
        "/docs.js",
        "/v2/health/live",
        "/v2/health/ready",
    }
)
_SECURITY = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def log(event: str, **facts: Any) -> None:
    """One JSON object a line on stderr. Never called with values of rows."""
    sys.stderr.write(json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n")


class Guard:
    """ASGI middleware. `draining` makes every answer close its connection."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY]
                # An unread rest of a refused body must not be taken for the next request.
                if self.draining or status in (408, 413):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await _answer(send_on, *refusal)
            else:
                await self._app(scope, receive, send_on)
        except Exception as error:
            # The error's own text may hold a value of a row: only where it happened is logged.
            place = traceback.extract_tb(error.__traceback__)[-1]
            log("failure", kind=type(error).__name__, file=place.filename, line=place.lineno)
            if not status:
                await _answer(send_on, 500, "internal error")
        finally:
            seconds = time.perf_counter() - began
            route = scope.get("route")
            self._metrics.requests.labels(getattr(route, "path", "other"), status).inc()
            if self._settings.access_log:
                log(
                    "request",
                    method=scope["method"],
                    route=getattr(route, "path", "other"),
                    status=status,
                    milliseconds=round(seconds * 1000, 3),
                    **scope.get("state", {}).get("log", {}),
                )

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if self._settings.loopback:
            # A page of another site may resolve its own name to this machine; its Host header tells.
            host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]")
            if host not in LOOPBACK:
                return 421, "this server answers to localhost only; pass --host to serve others"
        if self._settings.token is None or scope["path"] in _OPEN:
            return None
        if self._settings.token_matches(headers.get(b"authorization", b"")):
            return None
        return 401, "send the token as 'Authorization: Bearer TOKEN'"


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
