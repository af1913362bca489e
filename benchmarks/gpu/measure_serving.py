"""The service over HTTP: its start, the first use of many shapes, and its rate by callers.

Run by `run.py`; alone: `python benchmarks/gpu/measure_serving.py --output serving.json --device cuda`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from record import Record

from model.build import resolve_checkpoint
from model.weights.checkpoints import save_checkpoint
from service.bench.pictures import jpeg

PICTURE_HW = (480, 640)
_LONGEST_START_S = 120.0
_SHAPE_CALLERS = 8
_LOAD = 0.8  # share of the highest rate that the open loop asks for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--callers", default="1,64,192")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--tiny", action="store_true", help="few shapes, to rehearse")
    arguments = parser.parse_args()
    record = Record(arguments.output)
    command = [
        "serve",
        "--weights",
        arguments.weights,
        "--device",
        arguments.device,
        "--precision",
        arguments.precision,
    ]
    with ExitStack() as stack:
        images, others = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        (images / "picture.jpg").write_bytes(jpeg(PICTURE_HW))
        weights = tiny_weights(others) if arguments.tiny else arguments.weights
        server = stack.enter_context(
            serving([*command, "--weights", weights, *(("--max-batch-size", "2") if arguments.tiny else ())])
        )
        record.keep("start_s", server.start_s)
        record.measure("ready", lambda: httpx.get(f"{server.url}/healthz", timeout=10).json())
        record.measure("shapes", lambda: shapes(server.url, 4 if arguments.tiny else 30))
        rates = []
        for callers in (int(count) for count in arguments.callers.split(",")):
            load = ["--concurrency", str(callers)]
            record.measure(f"callers {callers}", partial(loaded, server, images, load, arguments.seconds))
            rates.append(record.values[f"callers {callers}"].get("images_per_s", 0.0))
        rate = _LOAD * max(rates)
        if rate > 0:
            load = ["--rate", f"{rate:.3f}"]
            record.measure("open loop", partial(loaded, server, images, load, arguments.seconds))
    record.keep("exit_code", server.process.returncode)


def tiny_weights(folder: Path) -> str:
    """A file of random weights for small pictures."""
    checkpoint = resolve_checkpoint("random")
    info = replace(checkpoint.info, model_kwargs=checkpoint.info.model_kwargs | {"min_size": 128, "max_size": 192})
    path = folder / "tiny.safetensors"
    save_checkpoint(path, checkpoint.state_dict, info)
    return str(path)


@dataclass(frozen=True, kw_only=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str
    start_s: dict[str, float]


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[Server]:
    """A server of its own, which has answered once.

    Raises:
        RuntimeError: it does not come up.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "service", *arguments, "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(process, url)
        ready_s = time.monotonic() - started
        httpx.post(
            f"{url}/detect", content=jpeg(PICTURE_HW), headers={"content-type": "image/jpeg"}, timeout=60
        ).raise_for_status()
        start_s = {"ready": round(ready_s, 2), "first_answer": round(time.monotonic() - started, 2)}
        yield Server(process=process, url=url, start_s=start_s)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _LONGEST_START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError("the server did not become ready; its log is above")


def shapes(url: str, count: int) -> dict[str, Any]:
    """The slowest request of a mix of shapes, when they first come and when they come again."""
    pictures = [jpeg((480 + 16 * (n % 5), 640 - 16 * n if n % 2 else 640 + 16 * n)) for n in range(count)]

    def once(picture: bytes) -> float:
        started = time.perf_counter()
        client.post(f"{url}/detect", content=picture, headers={"content-type": "image/jpeg"}).raise_for_status()
        return (time.perf_counter() - started) * 1000

    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(_SHAPE_CALLERS) as pool:
        first, again = (sorted(pool.map(once, pictures * rounds)) for rounds in (1, 3))
    return {
        "shapes": count,
        "callers": _SHAPE_CALLERS,
        "first_ms": {"median": round(first[len(first) // 2], 1), "slowest": round(first[-1], 1)},
        "again_ms": {"median": round(again[len(again) // 2], 1), "slowest": round(again[-1], 1)},
    }


def loaded(server: Server, images: Path, load: Sequence[str], seconds: float) -> dict[str, Any]:
    """The load tester's figures, and the cores that the server had meanwhile."""
    workers = max(1, min(6, (os.cpu_count() or 1) // 2)) if load[1] != "1" else 1
    command = [
        sys.executable,
        "-m",
        "service",
        "loadtest",
        f"{server.url}/detect?score_threshold=0.5",
        "--images",
        str(images),
    ]
    command += [*load, "--duration", str(seconds), "--warmup", "2", "--workers", str(workers), "--json"]
    before, started = cpu_seconds(server.process.pid), time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    cores = (cpu_seconds(server.process.pid) - before) / (time.monotonic() - started)
    if finished.returncode:
        raise RuntimeError(finished.stderr[-300:])
    run = json.loads(finished.stdout)["run"]
    return {
        "images_per_s": run["throughput_per_s"],
        "latency_ms": run["latency_ms"],
        "failed": run["failed"],
        "stages_ms": run.get("stages_ms"),
        "batch_sizes": run.get("batch_sizes"),
        "server_cores": round(cores, 2),
    }


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, by the system's books."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
