"""What Ray Serve costs: a replica of the deployment and the plain service in turns, with a stand-in for the detector.

    python benchmarks/serve_overhead.py                                        # 20 ms a batch, of 1, 2, 4 and 8 images
    python benchmarks/serve_overhead.py --batch-ms 0 --batches 64             # a detector that does nothing
    RAY_SERVE_ENABLE_HA_PROXY=1 python benchmarks/serve_overhead.py           # by Serve's HAProxy, not its own proxy

One JPEG of 100 KB (640x480), closed loop, four times as many callers as fit into a batch, from 16 to 64. Both run on
this machine, and the one that is not measured is idle. Processor time is that of the service's process, the replica's
and that of Serve's proxy. Linux only; needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.weights.categories import Categories
from service.bench.pictures import jpeg
from service.bench.processes import until_ready
from service.devices.detector import Detections, Detector, ModelInfo
from service.loadtest.fleet import run_plan
from service.loadtest.plan import Plan, Target
from service.loadtest.summary import summarise
from service.server import serve as serve_plainly
from service.settings import Settings

HERE = Path(__file__).parent
BATCH_S = "STAND_IN_BATCH_S"
PROCESSES = {
    "plain": ("--plain",),
    "replica": ("ray::ServeReplica",),
    "proxy": ("ray::ProxyActor", "ray::HAProxyManager", "/haproxy "),
}


class StandIn:
    """Finds nothing, and takes so long for a batch of any size. Implements `service.detector.Detector`."""

    info = ModelInfo("stand-in", "none", Categories.of_objects(["thing"]))
    device, precision, backend, best_batch_size = "cpu", "fp32", "none", 1
    _found = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def padded_shape(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return size_hw

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        if self._seconds:
            time.sleep(self._seconds)
        return [self._found] * len(images)


def load(_: Settings) -> list[Detector]:
    return [StandIn(float(os.environ[BATCH_S]))]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def plain(batch: int) -> Iterator[str]:
    port = free_port()
    child = subprocess.Popen([sys.executable, __file__, "--plain", str(port), "--batches", str(batch)])
    url = f"http://127.0.0.1:{port}"
    try:
        until_ready(url)
        yield url
    finally:
        child.terminate()
        child.wait(20)


@contextmanager
def by_ray() -> Iterator[int]:
    """A node with Serve; its port."""
    import ray
    from ray import serve

    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def deployed(port: int, batch: int) -> Iterator[str]:
    from ray import serve

    from service.scale.arguments import ScaleArguments
    from service.scale.deployment import detector

    given = {"detectors": "serve_overhead:load", "device": "cpu", "access_log": False, "decode_threads": 2}
    url = f"http://127.0.0.1:{port}"
    try:
        serve.run(detector(ScaleArguments.model_validate({**given, "max_batch_size": batch, "max_replicas": 1})))
        until_ready(url)
        yield url
    finally:
        serve.delete("default")


def measure(url: str, image: bytes, callers: int, seconds: float) -> dict[str, Any]:
    plan = Plan(
        target=Target.parse(url),
        images=(image,),
        concurrency=callers,
        duration_s=seconds,
        warmup_s=seconds / 4,
    )
    before = processor_s()
    run = summarise(run_plan(plan))
    requests = run["throughput_per_s"] * 1.25 * seconds  # warm-up included
    run["cpu_ms"] = {name: 1e3 * (spent - before[name]) / requests for name, spent in processor_s().items()}
    if run["failed"]:
        raise RuntimeError(f"{run['failed']} requests to {url} failed: {run['failures']}")
    return run


def processor_s() -> dict[str, float]:
    """Processor time of each kind of our processes until now."""
    spent = dict.fromkeys(PROCESSES, 0.0)
    for command, ticks in descendants():
        for name, marks in PROCESSES.items():
            if any(mark in command for mark in marks):
                spent[name] += ticks / os.sysconf("SC_CLK_TCK")
    return spent


def descendants() -> Iterator[tuple[str, int]]:
    """Command line and ticks of the processor of each process that this one has begun, by itself or through others."""
    parents, found = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        pid = int(folder.name)
        parents[pid], found[pid] = int(fields[1]), (command, int(fields[11]) + int(fields[12]))
    for pid in found:
        ancestor = parents[pid]
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            yield found[pid]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-ms", type=float, default=20, help="that a batch takes, of any size")
    parser.add_argument("--batches", default="1,2,4,8", help="most images in one, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--plain", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain is not None:
        settings = Settings(access_log=False, max_batch_size=int(arguments.batches), decode_threads=2)
        sys.exit(serve_plainly(settings, socket.create_server(("127.0.0.1", arguments.plain)), load=load))
    os.environ |= {
        BATCH_S: str(arguments.batch_ms / 1e3),
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    image = jpeg((480, 640))
    print("| batch | callers | plain, images/s | by Ray Serve | ratio | plain, p50 ms | by Ray Serve ", end="")
    print("| processor ms an image, plain | replica | proxy |")
    print("|" + "---:|" * 10)
    with by_ray() as port:
        for batch in map(int, arguments.batches.split(",")):
            callers = min(max(4 * batch, 16), 64)
            with plain(batch) as ours, deployed(port, batch) as theirs:
                runs = [
                    [measure(url, image, callers, arguments.seconds) for url in (ours, theirs)]
                    for _ in range(arguments.rounds)
                ]
            rates = [[run["throughput_per_s"] for run in pair] for pair in runs]
            ratio = statistics.median(other / own for own, other in rates)
            own, other = (statistics.median(column) for column in zip(*rates, strict=True))
            p50 = [statistics.median(pair[i]["latency_ms"]["p50"] for pair in runs) for i in (0, 1)]
            cpu_ms = [
                statistics.median(pair[which]["cpu_ms"][name] for pair in runs)
                for which, name in ((0, "plain"), (1, "replica"), (1, "proxy"))
            ]
            cells = [batch, callers, f"{own:.0f}", f"{other:.0f}", f"{ratio:.2f}", f"{p50[0]:.0f}", f"{p50[1]:.0f}"]
            print(f"| {' | '.join(map(str, [*cells, *(f'{ms:.1f}' for ms in cpu_ms)]))} |", flush=True)


if __name__ == "__main__":
    main()
