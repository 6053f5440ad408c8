"""What one writes without `dmoe serve`: FastAPI around the torch run; rows come as objects.

$ python -m benchmarks.workers.serving_fastapi RUN PORT
"""

import sys

import pandas as pd
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

import dmoe


class Rows(BaseModel):
    rows: list[dict[str, str | float | None]]


def main(run: str, port: int) -> None:
    app, model = FastAPI(), dmoe.load(run, device="cpu")

    def infer(body: Rows) -> dict[str, list[float]]:
        return {"probability": model.predict_proba(pd.DataFrame(body.rows)).tolist()}

    app.post("/infer")(infer)
    uvicorn.run(app, port=port, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
