"""litserve around the torch run; rows come as objects.

$ python -m benchmarks.workers.serving_litserve RUN PORT
"""

import os
import sys
from typing import Any

import litserve as ls
import pandas as pd

import dmoe


class API(ls.LitAPI):  # type: ignore[misc]
    """litserve sends this class to a worker process, so the run's folder comes through the environment."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (litserve's signature)
        self.model = dmoe.load(os.environ["SERVED_RUN"], device="cpu")

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["rows"]

    def predict(self, rows: Any) -> list[float]:
        probabilities: list[float] = self.model.predict_proba(pd.DataFrame(rows)).tolist()
        return probabilities

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"probability": output}


if __name__ == "__main__":
    os.environ["SERVED_RUN"] = sys.argv[1]
    server = ls.LitServer(API(api_path="/infer"), accelerator="cpu", timeout=60)
    server.run(port=int(sys.argv[2]), log_level="error", generate_client_file=False)
