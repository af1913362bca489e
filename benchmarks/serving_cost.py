"""What the HTTP side costs: a detector that finds nothing, this checkout against another, with and without traces.

    git worktree add --detach ../base 2437b5b
    python benchmarks/serving_cost.py --base ../base --rounds 4 --seconds 3

One JPEG of 640x480 is decoded, 16 connections by wrk. Each variant has a server of its own; in each round they are
measured one after the other. Medians are shown. Processor time is the server's, from /proc, so Linux only. Needs wrk.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from service.bench.pictures import jpeg

ROOT = Path(__file__).parents[1]


class Collector(BaseHTTPRequestHandler):
    """Takes traces and drops them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class Server:
    """`benchmarks/peers/ours.py` of a checkout, running."""

    def __init__(self, checkout: Path, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        peers = checkout / "benchmarks" / "peers"
        self._child = subprocess.Popen(
            [sys.executable, "ours.py", str(port)],
            cwd=peers,
            env=os.environ | environment | {"PYTHONPATH": f"{checkout.resolve()}:{peers.resolve()}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def until_ready(self) -> None:
        give_up = time.monotonic() + 600
        while time.monotonic() < give_up:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError("the server is not ready")

    def processor_s(self) -> float:
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self._child.terminate()
        self._child.wait(30)


def measure(server: Server, script: Path, seconds: float) -> tuple[float, float]:
    """Requests a second, and microseconds of the server's processor time for each."""
    before = server.processor_s()
    command = ["wrk", "-t1", "-c16", f"-d{seconds:g}s", "-s", str(script), f"{server.url}/detect"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        raise RuntimeError(said)
    count = int(re.findall(r"(\d+) requests in", said)[0])
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    return rate, (server.processor_s() - before) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--work", default="decode", choices=("decode", "untouched"))
    arguments = parser.parse_args()
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        (folder / "body").write_bytes(jpeg((480, 640)))
        script = folder / "post.lua"
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = io.open("{folder}/body", "rb"):read("*a")\n'
            'wrk.headers["Content-Type"] = "image/jpeg"\n'
        )
        work = {"WORK": arguments.work}
        servers = {"base": Server(arguments.base, **work)} if arguments.base else {}
        servers["h11"] = Server(ROOT, **work)
        servers["httptools"] = Server(ROOT, **work, HTTP="httptools")
        servers["h11, traces"] = Server(ROOT, **work, **traces)
        for server in servers.values():
            held.callback(server.end)
        for server in servers.values():
            server.until_ready()
            measure(server, script, 1)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for _ in range(arguments.rounds):
            for name, server in servers.items():
                runs[name].append(measure(server, script, arguments.seconds))
    first = next(iter(runs.values()))
    print("| | requests/s | of the first | processor time a request, us | of the first |")
    print("|---|---:|---:|---:|---:|")
    for name, pairs in runs.items():
        rates, costs = zip(*pairs, strict=True)
        ratios = [
            statistics.median(one / other for one, other in zip(own, base, strict=True))
            for own, base in zip((rates, costs), zip(*first, strict=True), strict=True)
        ]
        print(
            f"| {name} | {statistics.median(rates):,.0f} | {ratios[0]:.2f} "
            f"| {statistics.median(costs):,.0f} | {ratios[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
