"""`dmoe serve`."""

from pathlib import Path
from typing import Annotated

import typer

HELP = """Serve an exported model over HTTP: Open Inference Protocol (KServe v2), Arrow, metrics, and a page at /.

Listens on this machine only, unless --host says otherwise. SIGTERM drains; SIGHUP, or a POST to
/v2/repository/models/NAME/load, exchanges the model for the one that MODEL (a link, say) now leads to.

\b
Examples:
  dmoe serve models/first
  dmoe serve models/current --host 0.0.0.0 --port 8080 --token-file token
"""


def command(
    model: Annotated[Path, typer.Argument(help="Model folder of `dmoe export`, or a link to one.")],
    name: Annotated[str, typer.Option(help="Name of the model in URLs.")] = "dmoe",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any free one.")] = 8000,
    threads: Annotated[int, typer.Option(help="Threads that score; 0 for one a core.")] = 0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token; else the variable DMOE_TOKEN, if set.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Serve other machines without a token.")
    ] = False,
    max_body_mb: Annotated[float, typer.Option(help="Largest request body, MiB; beyond it 413.")] = 16.0,
    max_decoded_mb: Annotated[
        float, typer.Option(help="A body once parsed, every row with its own value, MiB; beyond it 413.")
    ] = 64.0,
    max_inflight_mb: Annotated[
        float, typer.Option(help="Bodies in memory at once, as sent and parsed, MiB; beyond it 429.")
    ] = 256.0,
    max_rows: Annotated[int, typer.Option(help="Most rows of one request; beyond it 413.")] = 10_000,
    max_queue_rows: Annotated[int, typer.Option(help="Rows waiting or being scored; beyond it 429.")] = 40_000,
    batch_rows: Annotated[int, typer.Option(help="Most rows scored in one call of the graph.")] = 256,
    batch_delay_ms: Annotated[
        float, typer.Option(help="How long a row may wait for others to fill a batch while a thread is free.")
    ] = 0.0,
    read_timeout_s: Annotated[float, typer.Option(help="For a request's head, and for its body; then 408.")] = 10.0,
    timeout_s: Annotated[float, typer.Option(help="From a whole request to its answer; then 504.")] = 5.0,
    max_connections: Annotated[int, typer.Option(help="Open connections; beyond it 503.")] = 1000,
    drain_delay_s: Annotated[
        float, typer.Option(help="After SIGTERM: still accepting, but not ready, so that load balancers notice.")
    ] = 1.0,
    drain_timeout_s: Annotated[float, typer.Option(help="After that: for running requests to end.")] = 30.0,
    access_log: Annotated[bool, typer.Option(help="Log a line a request, without values.")] = True,
) -> None:
    from dmoe.export.extra import require
    from dmoe.serving.settings import Settings, read_token

    for module in ("fastapi", "uvicorn", "httptools", "orjson", "prometheus_client", "onnxruntime"):
        require(module, "serve")
    settings = Settings(
        model=model,
        name=name,
        host=host,
        port=port,
        threads=threads,
        token=read_token(token_file),
        allow_anonymous=allow_anonymous,
        max_body_mb=max_body_mb,
        max_decoded_mb=max_decoded_mb,
        max_inflight_mb=max_inflight_mb,
        max_rows=max_rows,
        max_queue_rows=max_queue_rows,
        batch_rows=batch_rows,
        batch_delay_ms=batch_delay_ms,
        read_timeout_s=read_timeout_s,
        timeout_s=timeout_s,
        max_connections=max_connections,
        drain_delay_s=drain_delay_s,
        drain_timeout_s=drain_timeout_s,
        access_log=access_log,
    )
    from dmoe.serving.server import serve

    serve(settings)
