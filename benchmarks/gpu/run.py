"""Measure the project on a GPU machine, with or without a network: one command, a table, JSON beside it.

    python benchmarks/gpu/run.py [PART ...] [--data BCCD] [--images DIR] [--output DIR]

Parts: tests, model, http, faults, quality, training; all by default. Each has a time limit of its own and goes on where
another fails. `--device cpu --tiny` rehearses it where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import as_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHEELS = ROOT / ".gpu" / "wheels"
# Seconds, 480 in all; an H100 takes less of most.
LIMITS_S = {"tests": 90, "model": 120, "http": 100, "faults": 70, "quality": 45, "training": 55}
_PRECISIONS = ("fp32", "fp16", "bf16")
Arguments = argparse.Namespace
Environment = Mapping[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(LIMITS_S))
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--data", type=Path, help="BCCD: for average precision, and pictures to train on and to compare"
    )
    parser.add_argument(
        "--images", type=Path, help="folder of pictures to compare on; by default --data, or drawn ones"
    )
    parser.add_argument("--output", type=Path, default=ROOT / ".gpu" / "results")
    parser.add_argument("--tiny", action="store_true", help="small pictures and few repeats, to rehearse")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - LIMITS_S.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(LIMITS_S)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    environment = prepared_environment()
    found: dict[str, Any] = {"machine": machine(environment)}
    for part in arguments.parts or LIMITS_S:
        started = time.monotonic()
        limit_s = LIMITS_S[part] * (10 if arguments.device == "cpu" else 1)
        found[part] = run_part(part, arguments, environment, limit_s)
        found[part]["took_s"] = round(time.monotonic() - started, 1)
        (arguments.output / "results.json").write_text(json.dumps(found, indent=1))
        print(f"{part}: {found[part]['took_s']} s", flush=True)
    table = as_table(found)
    (arguments.output / "table.md").write_text(table)
    print(table)
    return 0


def run_part(name: str, arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    """What a part found, or its error: the others run all the same."""
    try:
        return PARTS[name](arguments, environment, limit_s)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def prepared_environment() -> dict[str, str]:
    """The project on the path, and the wheels that `prepare` collected, if it did."""
    paths = [str(ROOT)]
    if WHEELS.is_dir():
        site = ROOT / ".gpu" / "site"
        if not site.is_dir():
            options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site)]
            wheels = sorted(str(wheel) for wheel in WHEELS.glob("*.whl"))
            subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
        paths.insert(0, str(site))
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def machine(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the figures belong to; neither names nor paths of this machine."""
    code = (
        "import json, torch, torchvision\n"
        "try: import triton; t = triton.__version__\n"
        "except ImportError: t = None\n"
        "g = torch.cuda.is_available()\n"
        "print(json.dumps({'torch': torch.__version__, 'torchvision': torchvision.__version__, 'triton': t,"
        " 'cudnn': torch.backends.cudnn.version() if g else None, 'gpu': torch.cuda.get_device_name() if g else None}))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env=dict(environment), capture_output=True, text=True, check=True
    )
    driver = Path("/proc/driver/nvidia/version")
    version = re.search(r"(\d+\.\d+(?:\.\d+)?)", driver.read_text()) if driver.exists() else None
    machine: dict[str, Any] = json.loads(told.stdout)
    return machine | {
        "driver": version.group(1) if version else None,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    """None in a copy without git."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:
        return None


def run_limited(command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float) -> str | None:
    """Run a program of our own, its output in a log, for at most `limit_s`; what went wrong, if anything did."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=dict(environment),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"cut after {limit_s:.0f} s"
        finally:
            _end_group(process)
    return f"ended with {code}" if code else None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a program and of those that it started; a server first gets the time to drain."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _tests(arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    """The tests that need a GPU, except those of faults, which break its context or use up its memory."""
    return _tested("tests", "gpu and not fault", arguments, environment, limit_s)


def _faults(arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    return _tested("faults", "gpu and fault", arguments, environment, limit_s)


def _tested(name: str, marks: str, arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    log = arguments.output / f"{name}.log"
    # The rehearsal has no GPU: a few other tests show that the part works.
    chosen = ["tests/model/test_boxes.py"] if arguments.device == "cpu" else ["tests", "-m", marks]
    # That machine lacks packages which other tests import.
    options = ["-v", "-W", "ignore", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    error = run_limited(["-m", "pytest", *chosen, *options], log, environment, limit_s)
    return {"error": error} | counted(log.read_text(errors="replace"))


def counted(log: str) -> dict[str, Any]:
    """What pytest reported of each test, also where it was cut off."""
    results = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", log, re.MULTILINE)
    if not results:
        return {"passed": None, "failed": []}
    by_result = {kind: [test for test, result in results if result == kind] for _, kind in results}
    return {
        "passed": len(by_result.get("PASSED", [])),
        "skipped": len(by_result.get("SKIPPED", [])),
        "failed": [*by_result.get("FAILED", []), *by_result.get("ERROR", [])],
    }


def _measured(
    name: str, options: Sequence[str], arguments: Arguments, environment: Environment, limit_s: float
) -> dict[str, Any]:
    """A `measure_*.py` beside this file; its figures so far where its time runs out."""
    output = arguments.output / f"{name}.json"
    output.unlink(missing_ok=True)
    command = [str(HERE / f"measure_{name}.py"), "--output", str(output), "--device", arguments.device, *options]
    if arguments.tiny:
        command.append("--tiny")
    error = run_limited(command, arguments.output / f"{name}.log", environment, limit_s)
    return {"error": error} | (json.loads(output.read_text()) if output.is_file() else {})


def _model(arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    images = arguments.images or (arguments.data and arguments.data / "JPEGImages")
    return _measured("model", ["--images", str(images)] if images else [], arguments, environment, limit_s)


def _http(arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    options = ["--callers", "1,4", "--seconds", "3", "--precision", "fp32"] if arguments.tiny else []
    return _measured("serving", options, arguments, environment, limit_s)


def _quality(arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    """Average precision of the bundled weights, by precision."""
    if arguments.data is None:
        return {"error": "not run: give --data"}
    found: dict[str, Any] = {"error": None}
    ends = time.monotonic() + limit_s
    for precision in _PRECISIONS[: 1 if arguments.device == "cpu" else None]:
        command = ["-m", "service", "evaluate", "--weights", "bundled", "--data", str(arguments.data), "--split", "val"]
        command += ["--device", arguments.device, "--precision", precision, "--json"]
        command += ["--min-size", "128", "--max-size", "192"] if arguments.tiny else []
        log = arguments.output / f"quality-{precision}.log"
        found["error"] = run_limited(command, log, environment, max(1.0, ends - time.monotonic())) or found["error"]
        figures = re.search(r"^\{.*^\}|^\{.*\}$", log.read_text(errors="replace"), re.DOTALL | re.MULTILINE)
        if figures:
            values = json.loads(figures.group())
            found[precision] = {name: round(values[name], 4) for name in ("AP", "AP50", "AP75")}
    return found


def _training(arguments: Arguments, environment: Environment, limit_s: float) -> dict[str, Any]:
    options = ["--data", str(arguments.data)] if arguments.data and not arguments.tiny else []
    return _measured("training", options, arguments, environment, limit_s)


PARTS = {
    "tests": _tests,
    "model": _model,
    "http": _http,
    "faults": _faults,
    "quality": _quality,
    "training": _training,
}


if __name__ == "__main__":
    sys.exit(main())
