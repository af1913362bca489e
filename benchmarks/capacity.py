"""How many images a second so many replicas carry, and how long an answer takes: the service's own queue, simulated.

    python benchmarks/capacity.py latency --fixed-ms 20 --batch 8 --cores 2 --decode-ms 4      # latency against load
    python benchmarks/capacity.py replicas --fixed-ms 20 --batch 8 --goal-ms 200               # replicas against load
    python benchmarks/capacity.py against --url http://127.0.0.1:8000 --images DIR ...          # beside a real server

Arrivals are a Poisson process. An image goes to the less busy of two replicas drawn at random; there one of its
cores decodes it, it waits in the `BatchQueue` that the service uses, and is answered with its batch. What a batch and a
decoding take are parameters, to be measured: `frcnn bench model`, `Server-Timing`.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.batching.batch_queue import BatchQueue, Priority, Shape
from service.batching.fairness import Caller

_FULL = 0.9


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What one replica is made of; times in seconds.

    Args:
        fixed_s: of a batch, however small.
        image_s: of each image in it besides.
        max_batch_size: most images in it.
        cores: that decode.
        decode_s: of an image.
        other_s: spent on an image by nobody that others wait for: sockets, proxies, JSON.
        shapes: padded shapes of the images, equally likely; only equal ones share a batch.
    """

    fixed_s: float
    image_s: float = 0.0
    max_batch_size: int = 1
    cores: int = 1
    decode_s: float = 0.0
    other_s: float = 0.0
    shapes: int = 1

    @property
    def most_per_s(self) -> float:
        """Images a second that it cannot exceed, its batches full."""
        batch_s = self.fixed_s + self.max_batch_size * self.image_s
        return min(self.max_batch_size / batch_s, self.cores / self.decode_s if self.decode_s else float("inf"))


@dataclass(frozen=True)
class Outcome:
    """Latencies are those of the images after the warm-up; batches, and how busy the devices were, of all."""

    latencies_s: list[float]
    batch_sizes: list[int]
    device_busy: float  # share of the time, of a replica

    def percentile_s(self, percentage: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(len(ordered) * percentage / 100), len(ordered) - 1)]


@dataclass(eq=False)
class _Image:
    arrived: float  # the queue's: when it lined up
    sent: float
    shape: Shape
    priority: Priority = Priority.NORMAL
    caller: Caller = None  # all are one caller's: each waits its turn by arrival


@dataclass(eq=False)
class _Running:
    """A replica at work."""

    queue: BatchQueue[_Image]
    idle_cores: int
    undecoded: deque[_Image] = field(default_factory=deque)
    working: bool = False
    in_flight: int = 0
    busy_s: float = 0.0


class Simulation:
    """Events in the order of their times: an image is sent, is decoded, a batch is done.

    Args:
        replica: what each is made of.
        replicas: how many.
        rate: images a second, to all of them together.
        seed: of the arrivals and of the draws.
    """

    def __init__(self, replica: Replica, *, replicas: int = 1, rate: float, seed: int = 0) -> None:
        self._replica = replica
        self._rate = rate
        self._random = random.Random(seed)
        self._replicas = [
            _Running(BatchQueue(max_batch_size=replica.max_batch_size), replica.cores) for _ in range(replicas)
        ]
        self._events: list[tuple[float, int, str, _Running | None, list[_Image]]] = []
        self._number = itertools.count()
        self._batch_sizes: list[int] = []

    def run(self, images: int) -> Outcome:
        """Answer so many images; the first tenth warms up."""
        latencies: list[float] = []
        sent, now = 0, 0.0
        self._at(0.0, "sent", None, [])
        while self._events and len(latencies) < images:
            now, _, kind, where, batch = heapq.heappop(self._events)
            if kind == "sent" and sent < images:
                sent += 1
                self._send(now)
                self._at(now + self._random.expovariate(self._rate), "sent", None, [])
            elif kind == "decoded" and where is not None:
                self._decoded(where, batch[0], now)
            elif kind == "done" and where is not None:
                where.working = False
                where.in_flight -= len(batch)
                latencies += [now + self._replica.other_s - image.sent for image in batch]
                self._begin(where, now)
        busy_s = statistics.fmean(where.busy_s for where in self._replicas)
        return Outcome(latencies[images // 10 :], self._batch_sizes, busy_s / now)

    def _at(self, time: float, kind: str, where: _Running | None, images: list[_Image]) -> None:
        heapq.heappush(self._events, (time, next(self._number), kind, where, images))

    def _send(self, now: float) -> None:
        drawn = self._random.sample(self._replicas, min(2, len(self._replicas)))
        where = min(drawn, key=lambda replica: replica.in_flight)
        where.in_flight += 1
        where.undecoded.append(_Image(now, now, (self._random.randrange(self._replica.shapes), 0)))
        self._decode(where, now)

    def _decode(self, where: _Running, now: float) -> None:
        if where.idle_cores and where.undecoded:
            where.idle_cores -= 1
            self._at(now + self._replica.decode_s, "decoded", where, [where.undecoded.popleft()])

    def _decoded(self, where: _Running, image: _Image, now: float) -> None:
        where.idle_cores += 1
        image.arrived = now
        where.queue.put(image)
        self._begin(where, now)
        self._decode(where, now)

    def _begin(self, where: _Running, now: float) -> None:
        """A device that is free takes what is there, as the service's batcher does."""
        if where.working or not (batch := where.queue.take(now)):
            return
        where.working = True
        self._batch_sizes.append(len(batch))
        seconds = self._replica.fixed_s + len(batch) * self._replica.image_s
        where.busy_s += seconds
        self._at(now + seconds, "done", where, batch)


def highest_rate(
    replica: Replica, goal_s: float, *, pool: int = 1, percentage: float = 99, images: int = 20_000
) -> float:
    """Images a second and replica at which that share of them is answered within the goal; 0 where none is.

    Never more than 90 % of the most: what is fuller than that has nothing left for a replica that is lost.

    Args:
        pool: replicas that one router chooses among.
    """
    low, high = 0.0, _FULL * replica.most_per_s
    for _ in range(10):
        rate = (low + high) / 2
        outcome = Simulation(replica, replicas=pool, rate=pool * rate).run(images)
        met = outcome.percentile_s(percentage) <= goal_s
        low, high = (rate, high) if met else (low, rate)
    return low


def waiting_in_theory_s(replica: Replica, rate: float) -> float:
    """Mean time in the queue of a device that takes one image at a time (M/D/1, Pollaczek and Khinchine)."""
    service_s = replica.fixed_s + replica.image_s
    load = rate * service_s
    return load * service_s / (2 * (1 - load))


def measured(url: str, images: str, rate: float, seconds: float) -> dict[str, float]:
    """By `frcnn loadtest` in open loop."""
    load = ["--rate", f"{rate:g}", "--duration", f"{seconds:g}", "--warmup", "2", "--json"]
    command = [sys.executable, "-m", "service", "loadtest", url, "--images", images, *load]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    run = json.loads(shown)["run"]
    sizes = {int(size): count for size, count in run["batch_sizes"].items()}
    batches = sum(count / size for size, count in sizes.items())  # each answer tells the size of the batch it shared
    return {
        **run["latency_ms"],
        "failed": run["failed"],
        "batch": sum(sizes.values()) / batches,
    }


def latency_rows(replica: Replica, loads: Sequence[float]) -> Iterator[str]:
    yield "| load | images/s | batch | p50 ms | p90 ms | p99 ms |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for load in loads:
        rate = load * replica.most_per_s
        outcome = Simulation(replica, rate=rate).run(40_000)
        p50, p90, p99 = (1e3 * outcome.percentile_s(q) for q in (50, 90, 99))
        batch = statistics.fmean(outcome.batch_sizes)
        yield f"| {load:.0%} | {rate:.4g} | {batch:.1f} | {p50:.0f} | {p90:.0f} | {p99:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("latency", "replicas", "against"))
    parser.add_argument("--fixed-ms", type=float, required=True, help="of a batch, however small")
    parser.add_argument("--image-ms", type=float, default=0, help="of each image in it besides")
    parser.add_argument("--batch", type=int, default=1, help="most images in one")
    parser.add_argument("--cores", type=int, default=1, help="that decode")
    parser.add_argument("--decode-ms", type=float, default=0)
    parser.add_argument("--other-ms", type=float, default=0, help="sockets, proxies, JSON")
    parser.add_argument("--shapes", type=int, default=1, help="padded shapes of the images")
    parser.add_argument("--goal-ms", type=float, default=200, help="that 99 %% are to be answered within")
    parser.add_argument("--pool", type=int, default=1, help="replicas that one router chooses among")
    parser.add_argument("--rates", default="10,100,1000,10000,100000", help="images a second")
    parser.add_argument("--loads", default="0.1,0.3,0.5,0.7,0.8,0.9,0.95", help="shares of the most")
    parser.add_argument("--url", help="of a server to hold it against")
    parser.add_argument("--images", help="folder of pictures for it")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    replica = Replica(
        fixed_s=arguments.fixed_ms / 1e3,
        image_s=arguments.image_ms / 1e3,
        max_batch_size=arguments.batch,
        cores=arguments.cores,
        decode_s=arguments.decode_ms / 1e3,
        other_s=arguments.other_ms / 1e3,
        shapes=arguments.shapes,
    )
    loads = [float(load) for load in arguments.loads.split(",")]
    if arguments.what == "latency":
        print("\n".join(latency_rows(replica, loads)))
    elif arguments.what == "replicas":
        each = highest_rate(replica, arguments.goal_ms / 1e3, pool=arguments.pool)
        print(f"one: {each:.3g} images/s of at most {replica.most_per_s:.3g}, 99 % within {arguments.goal_ms:g} ms")
        for rate in map(float, arguments.rates.split(",")):
            print(f"{rate:>10,.0f} images/s: {math.ceil(rate / each):,} replicas" if each else "none is fast enough")
    else:
        print("| images/s |" + "".join(f" {what}, model | measured |" for what in ("batch", "p50", "p90", "p99")))
        print("|---:|" + "---:|" * 8)
        for rate in (load * replica.most_per_s for load in loads):
            real = measured(arguments.url, arguments.images, rate, arguments.seconds)
            outcome = Simulation(replica, rate=rate).run(40_000)
            pairs = [f"{statistics.fmean(outcome.batch_sizes):.1f} | {real['batch']:.1f}"]
            pairs += [f"{1e3 * outcome.percentile_s(q):.0f} | {real[f'p{q}']:.0f}" for q in (50, 90, 99)]
            print(
                f"| {rate:.0f} | {' | '.join(pairs)} |" + (f" {real['failed']:g} failed" if real["failed"] else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
