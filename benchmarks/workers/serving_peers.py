"""What one writes without `dmoe serve`: FastAPI around the torch run, or litserve around it. Rows come as objects.

$ python -m benchmarks.workers.serving_peers fastapi|litserve RUN PORT
"""

import sys
from typing import Any

import pandas as pd
import torch

import dmoe


def scorer(run: str) -> Any:
    torch.set_num_threads(2)
    return dmoe.load(run, device="cpu")


def plain_fastapi(run: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Rows(BaseModel):
        rows: list[dict[str, str | float | None]]

    app, model = FastAPI(), scorer(run)

    def infer(body: Rows) -> dict[str, list[float]]:
        return {"probability": model.predict_proba(pd.DataFrame(body.rows)).tolist()}

    app.post("/infer")(infer)
    uvicorn.run(app, port=port, log_level="error")


def litserve(run: str, port: int) -> None:
    import litserve as ls

    class API(ls.LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:  # noqa: ARG002 (litserve's signature)
            self.model = scorer(run)

        def decode_request(self, request: dict[str, Any]) -> Any:
            return request["rows"]

        def predict(self, rows: Any) -> list[float]:
            probabilities: list[float] = self.model.predict_proba(pd.DataFrame(rows)).tolist()
            return probabilities

        def encode_response(self, output: list[float]) -> dict[str, list[float]]:
            return {"probability": output}

    server = ls.LitServer(API(api_path="/infer"), accelerator="cpu", timeout=60)
    server.run(port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    {"fastapi": plain_fastapi, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
