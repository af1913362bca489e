"""FastAPI as its documentation shows it, without batching: `python plain_fastapi.py PORT`, with WORK=untouched|decode.

With a detector it is `service.bench.plain_app`.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from works import Answer, work

app = FastAPI()
worked = work()


@app.post("/untouched")
async def untouched(request: Request) -> Answer:
    return worked([await request.body()])[0]


@app.post("/decode")
async def decode(request: Request) -> Answer:
    data = await request.body()
    return (await run_in_threadpool(lambda: worked([data])))[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
