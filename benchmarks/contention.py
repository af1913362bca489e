"""How long an image takes alone on the cores and beside a second process, by how OpenMP's threads wait.

    python benchmarks/contention.py [--rounds 5] [--seconds 4] [--size 256] [--backend torch]

OpenMP's threads that have done their part of a loop wait for the others. By libgomp's default they spin for long
before they sleep, which is quickest on quiet cores; beside another process they take the cores that it needs. Every
setting has two processes that stay; they are measured in turns, so that what else runs on the machine meets them all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "GOMP_SPINCOUNT=2000": {"GOMP_SPINCOUNT": "2000"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement")
    parser.add_argument("--size", type=int, default=256, help="shorter side that images are scaled to")
    parser.add_argument("--backend", choices=("torch", "openvino"), default="torch", help="what computes the network")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        work(arguments.size, arguments.backend)
        return
    pairs = {
        name: [start(setting, arguments.size, arguments.backend) for _ in range(2)]
        for name, setting in SETTINGS.items()
    }
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in SETTINGS}
    try:
        for pair in pairs.values():
            for child in pair:
                read(child)  # it is ready
        for _ in range(arguments.rounds):
            for name, pair in pairs.items():
                found[name].append([*measured(pair[:1], arguments.seconds), *measured(pair, arguments.seconds)])
    finally:
        for pair in pairs.values():
            for child in pair:
                child.kill()
                child.wait()
    print(table(found))


def start(setting: dict[str, str], size: int, backend: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _NAMES} | setting
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, __file__, "--child", "--size", str(size), "--backend", backend]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    answer: dict[str, Any] = json.loads(child.stdout.readline())
    return answer


def measured(children: list[subprocess.Popen[str]], seconds: float) -> list[dict[str, Any]]:
    """What each says of the same few seconds."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{seconds}\n")
        child.stdin.flush()
    return [read(child) for child in children]


def work(size: int, backend: str) -> None:
    """Detect on one image for as many seconds as each line of the input says."""
    import torch

    from model.build import from_checkpoint, resolve_checkpoint
    from model.inference.build import serving_model

    model = from_checkpoint(resolve_checkpoint("bundled"), min_size=size, max_size=size * 2)
    form = serving_model(model, device=torch.device("cpu"), precision="fp32", backend=backend)
    image = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8)
    form.detect([image])
    print("{}", flush=True)
    for line in sys.stdin:
        times, ends, processor = [], time.perf_counter() + float(line), time.process_time()
        while time.perf_counter() < ends or not times:
            started = time.perf_counter()
            form.detect([image])
            times.append(time.perf_counter() - started)
        spent = (time.process_time() - processor) / len(times)
        answer = {"ms": 1000 * statistics.median(times), "cpu_ms": 1000 * spent, "images": len(times)}
        print(json.dumps(answer), flush=True)


def table(found: dict[str, list[list[dict[str, Any]]]]) -> str:
    """Medians of the rounds; times the default's are medians of each round's own ratio."""
    default = next(iter(found.values()))
    lines = [
        "| | alone, ms | times default | beside another, ms | times default | processor ms | fairness |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rounds in found.items():
        alone = [one["ms"] for one, _, _ in rounds]
        beside = [(first["ms"] + second["ms"]) / 2 for _, first, second in rounds]
        ratios = [
            statistics.median(own / base for own, base in zip(own_ms, base_ms, strict=True))
            for own_ms, base_ms in (
                (alone, [one["ms"] for one, _, _ in default]),
                (beside, [(first["ms"] + second["ms"]) / 2 for _, first, second in default]),
            )
        ]
        processor = [statistics.median(entry[n]["cpu_ms"] for entry in rounds) for n in (0, 1)]
        counts = [(first["images"], second["images"]) for _, first, second in rounds]
        fairness = statistics.median(min(pair) / max(pair) for pair in counts)
        lines.append(
            f"| {name} | {statistics.median(alone):.0f} | {ratios[0]:.2f} | {statistics.median(beside):.0f} "
            f"| {ratios[1]:.2f} | {processor[0]:.0f} and {processor[1]:.0f} | {fairness:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
