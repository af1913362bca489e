"""Compares the cost of serving itself: every server does nothing but take a JPEG, untouched or decoded.

    python benchmarks/peers/run.py --rounds 5                    # all of them; makes what environments are missing
    python benchmarks/peers/run.py --peers mosec,litserve

Each peer has a virtual environment of its own below --environments. The servers run one at a time, each for a few
seconds in every round, so that what else the machine does hits all alike; medians are shown, and the share of plain
FastAPI's. Needs wrk in the PATH, and the service installed where this runs.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
WORKS = ("untouched", "decode")
CONNECTIONS = 16


@dataclass(frozen=True)
class Peer:
    """How a server is begun: {python}, {bin}, {port}, {work} and {Work} are filled in.

    Args:
        package: what to install into its environment; None for this one.
        path: of its route.
        json: the document that carries the image as BASE64, where its documentation shows no raw bodies.
    """

    package: str | None
    command: str
    path: str = "/detect"
    json: str = ""


@dataclass(frozen=True)
class Request:
    """What is posted."""

    body: Path
    media_type: str

    @classmethod
    def of(cls, peer: Peer, jpeg: bytes, folder: Path) -> Request:
        body = folder / "body"
        if not peer.json:
            body.write_bytes(jpeg)
            return cls(body, "image/jpeg")
        body.write_text(peer.json.replace("BASE64", base64.b64encode(jpeg).decode()))
        return cls(body, "application/json")


PEERS = {
    "plain FastAPI": Peer(None, "{python} plain_fastapi.py {port}", path="/{work}"),
    "ours": Peer(None, "{python} ours.py {port} {work}"),
    "mosec": Peer("mosec", "{python} mosec_app.py --address 127.0.0.1 --port {port}", path="/inference"),
    "litserve": Peer("litserve", "{python} litserve_app.py {port}", "/predict", json='{"image": "BASE64"}'),
    "bentoml": Peer("bentoml", "{bin}/bentoml serve bentoml_app:{Work} --host 127.0.0.1 --port {port}"),
    "mlserver": Peer(
        "mlserver",
        "{bin}/mlserver start mlserver_{work}",
        path="/v2/models/detector/infer",
        json='{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["BASE64"]}]}',
    ),
    "ray": Peer("ray[serve]", "{python} ray_app.py {port}"),
}


def interpreter(peer: Peer, folder: Path) -> Path:
    """The Python of a peer's environment, which is made if it is missing."""
    if peer.package is None:
        return Path(sys.executable)
    home = folder / re.sub(r"\W.*", "", peer.package)
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "pillow", peer.package], check=True)
    return python


@contextmanager
def serving(peer: Peer, work: str, python: Path, request: Request) -> Iterator[str]:
    """The address of a peer that answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    filled = {"python": python, "bin": python.parent, "port": port, "work": work, "Work": work.capitalize()}
    log = request.body.with_name("server.log")
    with log.open("wb") as output:
        child = subprocess.Popen(
            peer.command.format(**filled).split(),
            cwd=HERE,
            env=os.environ
            | {
                "WORK": work,
                "MLSERVER_HTTP_PORT": str(port),
                "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE))),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}{peer.path.format(**filled)}"
    try:
        until_it_answers(url, request, child, log)
        yield url
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def until_it_answers(url: str, request: Request, child: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    give_up = time.monotonic() + 60
    while True:
        try:
            answer = httpx.post(
                url, content=request.body.read_bytes(), headers={"Content-Type": request.media_type}, timeout=10
            )
            if answer.status_code == 200:
                return
        except httpx.TransportError:
            pass
        if child.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def requests_per_s(url: str, request: Request, seconds: float) -> float:
    script = request.body.with_name("post.lua")
    script.write_text(
        f'local f = io.open("{request.body}", "rb"); wrk.method = "POST"; wrk.body = f:read("*a"); f:close()\n'
        f'wrk.headers["Content-Type"] = "{request.media_type}"\n'
    )
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script), url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in shown:
        raise RuntimeError(f"{url} refused some: {shown}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1])  # type: ignore[index]


def jpeg_of_100_kb() -> bytes:
    """640x480, waves and as much noise as brings it to 100 KB."""
    y, x = np.mgrid[:480, :640]
    waves = 128 + 100 * np.stack([np.sin(x / 37 + y / 91), np.cos(y / 53), np.sin((x + y) / 71)], axis=-1)
    noise = np.random.default_rng(0).normal(size=waves.shape)
    buffer = io.BytesIO()
    for strength in range(2, 60):
        buffer = io.BytesIO()
        pixels = (waves + strength * noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        if buffer.tell() >= 100_000:
            break
    return buffer.getvalue()


def measure(
    names: list[str], folder: Path, *, rounds: int, seconds: float
) -> tuple[dict[tuple[str, str], list[float]], dict[str, str]]:
    """Requests per second of each peer and work in each round, and why some could not be run."""
    rates: dict[tuple[str, str], list[float]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        jpeg = jpeg_of_100_kb()
        for _ in range(rounds):
            for work in WORKS:
                for name in names:
                    if name in failed:
                        continue
                    peer = PEERS[name]
                    try:
                        request = Request.of(peer, jpeg, Path(scratch))
                        with serving(peer, work, interpreter(peer, folder), request) as url:
                            requests_per_s(url, request, 1)  # warm
                            rate = requests_per_s(url, request, seconds)
                    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                        failed[name] = str(error)
                    else:
                        rates.setdefault((name, work), []).append(rate)
                        print(f"{work:10}{name:16}{rate:8.0f}", file=sys.stderr, flush=True)
    return rates, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--peers", default=",".join(PEERS), help="with commas between")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "frcnn-peers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = arguments.peers.split(",")
    rates, failed = measure(names, arguments.environments, rounds=arguments.rounds, seconds=arguments.seconds)
    if arguments.json:
        print(json.dumps({"rates": {f"{n} {w}": r for (n, w), r in rates.items()}, "failed": failed}, indent=2))
        return
    print(f"| {'requests/s, median of ' + str(arguments.rounds):28} | untouched | decoded |\n|---|---:|---:|")
    for name in names:
        cells = [f"{statistics.median(r):,.0f}" if (r := rates.get((name, work))) else "not run" for work in WORKS]
        print(f"| {name} | {' | '.join(cells)} |")
    for name, reason in failed.items():
        print(f"{name} could not be run: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
