"""The process: bounds on connections, signals, and a drain that loses no request."""

import asyncio
import logging
import select
import signal
from contextlib import suppress
from types import FrameType
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dmoe.errors import DmoeError, UserError
from dmoe.serving.app import Application
from dmoe.serving.guard import log
from dmoe.serving.settings import Settings

_MAX_HEAD_BYTES = 64 * 1024
_LAST_REQUESTS_S = 1.0
_LOOK_AGAIN_S = 0.01


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with a bound on the time and bytes of a request's head, which it has not."""

    head_timeout_s: ClassVar[float]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse_head(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()

    @property
    def request_on_its_way(self) -> bool:
        """Whether bytes wait to be read, or a request's head is expected: a new connection's, or the rest of one."""
        if self.transport.is_closing():
            return False
        return self._head_timer is not None or _readable(self.transport.get_extra_info("socket").fileno())

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._refuse_head, b"408 Request Timeout")

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_head(self, status: bytes) -> None:
        self._head_arrived()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()


def bounded_protocol(head_timeout_s: float) -> type[BoundedProtocol]:
    """The protocol with its bound; uvicorn makes one of the class for each connection."""
    return type("BoundedProtocol", (BoundedProtocol,), {"head_timeout_s": head_timeout_s})


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Server(uvicorn.Server):
    """SIGTERM and SIGINT drain, a second one stops at once; SIGHUP exchanges the model."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        address = self.servers[0].sockets[0].getsockname()
        served = self._application.slot.current
        log("ready", host=address[0], port=address[1], model=self._application.settings.name, version=served.version)

    async def shutdown(self, sockets: Any = None) -> None:
        # The kernel resets what waits in the queue of a listening socket that closes, and a connection that closes
        # before what has arrived is read: both are taken in first.
        until = self._loop.time() + _LAST_REQUESTS_S
        for server in self.servers:
            while any(_readable(one.fileno()) for one in server.sockets) and self._loop.time() < until:
                await asyncio.sleep(0)
            server.close()
        while self._requests_on_their_way() and self._loop.time() < until:
            await asyncio.sleep(_LOOK_AGAIN_S)
        await super().shutdown(sockets)

    def _requests_on_their_way(self) -> bool:
        return any(isinstance(one, BoundedProtocol) and one.request_on_its_way for one in self.server_state.connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._application.guard.draining:
            self.should_exit = self.force_exit = True
            return
        log("draining")
        self._application.guard.draining = True
        # Time for load balancers to see that it is no longer ready, before connections are refused.
        self._loop.call_later(self._application.settings.drain_delay_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    def _start_reload(self) -> None:
        task = self._loop.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        with suppress(DmoeError):  # is logged; the present version stays
            await self._application.reload()


class _JsonLines(logging.Handler):
    """uvicorn's own warnings in the form of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log("server", level=record.levelname.lower(), message=record.getMessage())


def check_system() -> None:
    """Raises: UserError where there are no signals to drain and to exchange the model by, as on Windows."""
    if not (hasattr(signal, "SIGHUP") and hasattr(select, "poll")):
        raise UserError("dmoe serve drains and exchanges its model by signals, so it needs Linux or macOS; use WSL")


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then answers what has arrived and returns.

    Raises: DataError if the model folder is not whole; DmoeError if the address cannot be listened at; UserError where
        the system has no such signals.
    """
    check_system()
    application = Application(settings)
    warnings = logging.getLogger("uvicorn.error")
    warnings.setLevel(logging.WARNING)
    warnings.propagate = False
    warnings.handlers = [_JsonLines()]
    config = uvicorn.Config(
        application.guard,
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(settings.read_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    server = Server(config, application)
    try:
        server.run()
    except SystemExit:
        raise DmoeError(f"cannot listen at {settings.host}:{settings.port}; choose another --port") from None
    finally:
        application.close()
    log("stopped")
