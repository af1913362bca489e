"""FastAPI as its documentation shows it, without batching: `python plain_fastapi.py PORT untouched|decode`."""

from __future__ import annotations

import io
import sys

import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool

app = FastAPI()


@app.post("/untouched")
async def untouched(request: Request) -> dict[str, object]:
    await request.body()
    return {"boxes": [], "labels": [], "scores": []}


@app.post("/decode")
async def decode(request: Request) -> dict[str, object]:
    data = await request.body()
    await run_in_threadpool(lambda: Image.open(io.BytesIO(data)).convert("RGB"))
    return {"boxes": [], "labels": [], "scores": []}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
