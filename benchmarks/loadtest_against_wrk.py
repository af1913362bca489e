"""Holds `frcnn loadtest` against wrk on the same work: closed loop, a server with random delays that are known.

    python benchmarks/loadtest_against_wrk.py --rounds 8

The tools take turns, so that what else the machine does hits both, and medians are compared. Needs wrk in the PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

LEAST_S, MEAN_MORE_S = 0.05, 0.05  # a delay is the least and an exponential
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
FIGURES = ("answers/s", "mean", "p50", "p75", "p90", "p99")


class RandomDelays(asyncio.Protocol):
    """Answers a POST after the next delay, and a GET at once."""

    def __init__(self, delays_s: Iterator[float]) -> None:
        self.delays_s = delays_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head.lower())
        if end and len(body) >= int(length[1] if length else 0):
            self.data = b""
            delay_s = next(self.delays_s) if head.startswith(b"POST") else 0
            asyncio.get_running_loop().call_later(delay_s, self.transport.write, ANSWER)


def serve(ready: Connection, seed: int) -> None:
    delays_s = cycle((LEAST_S + np.random.default_rng(seed).exponential(MEAN_MORE_S, 100_003)).tolist())

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: RandomDelays(delays_s), "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def served(seed: int) -> Iterator[str]:
    """The address of such a server. The same seed gives each tool the same delays."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, seed), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        server.terminate()
        server.join()


def by_wrk(url: str, image: Path, callers: int, seconds: int, folder: Path) -> dict[str, float]:
    script = folder / "post.lua"
    script.write_text(f'local f = io.open("{image}", "rb"); wrk.method = "POST"; wrk.body = f:read("*a"); f:close()\n')
    command = ["wrk", "-t1", f"-c{callers}", f"-d{seconds}", "--latency", "-s", str(script), f"{url}/detect"]
    shown = _output(command)
    labels = {"mean": "Latency", "p50": "50%", "p75": "75%", "p90": "90%", "p99": "99%"}
    found = {name: re.search(rf"{label}\s+([\d.]+)(us|ms|s)", shown) for name, label in labels.items()}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    assert rate is not None
    assert "Non-2xx" not in shown
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    return {"answers/s": float(rate[1]), **{name: float(m[1]) * unit[m[2]] for name, m in found.items() if m}}


def by_ours(url: str, image: Path, callers: int, seconds: int) -> dict[str, float]:
    load = ["--images", str(image), "--concurrency", str(callers), "--duration", str(seconds), "--warmup", "1"]
    command = [sys.executable, "-m", "service", "loadtest", url, *load, "--json"]
    run = json.loads(_output(command))["run"]
    assert run["failed"] == 0
    busy = {"busy %": 100 * run["generator"]["busy"]}
    return {"answers/s": run["throughput_per_s"], **run["latency_ms"], **busy}


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--callers", type=int, default=16)
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {"wrk": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "image.jpg"
        image.write_bytes(np.random.default_rng(2).bytes(60_000))
        for seed in range(arguments.rounds):
            with served(seed) as url:
                runs["wrk"].append(by_wrk(url, image, arguments.callers, arguments.seconds, Path(name)))
            with served(seed) as url:
                runs["ours"].append(by_ours(url, image, arguments.callers, arguments.seconds))
    true_ms = {f"p{q}": 1000 * (LEAST_S - MEAN_MORE_S * math.log(1 - q / 100)) for q in (50, 75, 90, 99)}
    true_ms["mean"] = 1000 * (LEAST_S + MEAN_MORE_S)
    print(f"{'':10}{'true':>9}{'wrk':>9}{'ours':>9}  ours to wrk")
    for figure in FIGURES:
        wrk, own = (statistics.median(run[figure] for run in runs[tool]) for tool in ("wrk", "ours"))
        true = f"{true_ms[figure]:9.1f}" if figure in true_ms else " " * 9
        print(f"{figure:10}{true}{wrk:9.1f}{own:9.1f}  {own / wrk - 1:+.1%}")
    busy = statistics.median(run["busy %"] for run in runs["ours"])
    print(f"ours used {busy:.0f} % of a processor core")


if __name__ == "__main__":
    main()
