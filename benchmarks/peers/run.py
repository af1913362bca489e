"""Compares servers: what serving itself costs, by a JPEG that is left untouched or only decoded, and with a detector.

    python benchmarks/peers/run.py --rounds 5                           # what serving itself costs, of all
    python benchmarks/peers/run.py --works detect --seconds 40          # torchvision's detector, ours beside it
    python benchmarks/peers/run.py --peers mosec,litserve

Each peer has a virtual environment of its own below --environments, made if it is missing. The servers run one at a
time, each for some seconds in every round, so that what else the machine does hits all alike; medians are shown. Needs
wrk and uv in the PATH, and the service installed where this runs.
"""

from __future__ import annotations

import argparse
import base64
import itertools
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from service.bench.pictures import jpeg

HERE = Path(__file__).parent
CONNECTIONS = {"untouched": 16, "decode": 16, "detect": 4}


@dataclass(frozen=True)
class Peer:
    """How a server is begun: {python}, {bin}, {port}, {work} and {Work} are filled in.

    Args:
        package: what to install into its environment; None for this one.
        command: that serves what does nothing.
        detect: the command with a detector, where it is another.
        path: of its route.
        json: the document that carries the image as BASE64, where its documentation shows no raw bodies.
    """

    package: str | None
    command: str
    detect: str = ""
    path: str = "/detect"
    json: str = ""


@dataclass(frozen=True)
class Request:
    """What is posted."""

    body: Path
    media_type: str

    @classmethod
    def of(cls, peer: Peer, image: bytes, folder: Path) -> Request:
        body = folder / "body"
        if not peer.json:
            body.write_bytes(image)
            return cls(body, "image/jpeg")
        body.write_text(peer.json.replace("BASE64", base64.b64encode(image).decode()))
        return cls(body, "application/json")


OURS = "{bin}/frcnn serve --host 127.0.0.1 --port {port} --weights random --device cpu --no-access-log --precision "
PEERS = {
    "plain FastAPI": Peer(
        None,
        "{python} plain_fastapi.py {port}",
        "{python} -m service.bench.processes plain {port} cpu fp32 1 0",
        path="/{work}",
    ),
    "ours": Peer(None, "{python} ours.py {port}", OURS + "fp32"),
    "ours bf16": Peer(None, "", OURS + "bf16"),
    "mosec": Peer(
        "mosec", "{python} mosec_app.py --address 127.0.0.1 --port {port} --timeout 600000", path="/inference"
    ),
    "litserve": Peer("litserve", "{python} litserve_app.py {port}", path="/predict", json='{"image": "BASE64"}'),
    "bentoml": Peer("bentoml", "{bin}/bentoml serve bentoml_app:{Work} --host 127.0.0.1 --port {port}"),
    "mlserver": Peer(
        "mlserver",
        "{bin}/mlserver start mlserver_model",
        path="/v2/models/detector/infer",
        json='{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["BASE64"]}]}',
    ),
    "ray": Peer("ray[serve]", "{python} ray_app.py {port}"),
}


def interpreter(peer: Peer, work: str, folder: Path) -> Path:
    """The Python of a peer's environment, to which what it lacks is added."""
    if peer.package is None:
        return Path(sys.executable)
    home = folder / re.sub(r"\W.*", "", peer.package)
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, home], check=True)
    packages = ["pillow", peer.package, *(["torch", "torchvision", "numpy"] if work == "detect" else [])]
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *packages], check=True)
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
            ((work == "detect" and peer.detect) or peer.command).format(**filled).split(),
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
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """With all that it has begun."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(10)


def until_it_answers(url: str, request: Request, child: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    give_up = time.monotonic() + 120
    while True:
        try:
            answer = httpx.post(
                url, content=request.body.read_bytes(), headers={"Content-Type": request.media_type}, timeout=60
            )
            if answer.status_code == 200:
                return
        except httpx.TransportError:
            pass
        if child.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Figures:
    """What wrk measures."""

    per_s: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, shown: str) -> Figures:
        units = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}
        times = {
            share: float(number) * units[unit]
            for share, number, unit in re.findall(r"(50|99)%\s+([\d.]+)([a-z]+)", shown)
        }
        return cls(float(re.search(r"Requests/sec:\s+([\d.]+)", shown)[1]), times["50"], times["99"])  # type: ignore[index]


def measured(url: str, request: Request, connections: int, seconds: int) -> Figures:
    script = request.body.with_name("post.lua")
    script.write_text(
        f'local f = io.open("{request.body}", "rb"); wrk.method = "POST"; wrk.body = f:read("*a"); f:close()\n'
        f'wrk.headers["Content-Type"] = "{request.media_type}"\n'
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "600s"]
    shown = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in shown:
        raise RuntimeError(f"{url} rejected some: {shown}")
    figures = Figures.of(shown)
    if not figures.per_s:
        raise RuntimeError(f"{url} answered nobody within {seconds} s; measure longer (--seconds)")
    return figures


def measure(
    names: list[str], works: list[str], folder: Path, *, rounds: int, seconds: int
) -> tuple[dict[tuple[str, str], list[Figures]], dict[str, str]]:
    """Figures of each peer and work in each round, and why some could not be run."""
    figures: dict[tuple[str, str], list[Figures]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        image = jpeg((480, 640))
        for _, work, name in itertools.product(range(rounds), works, names):
            peer = PEERS[name]
            if name in failed or not (peer.command or work == "detect"):
                continue
            try:
                request = Request.of(peer, image, Path(scratch))
                with serving(peer, work, interpreter(peer, work, folder), request) as url:
                    if work != "detect":
                        measured(url, request, CONNECTIONS[work], 1)  # warm; a detector is so by its first answer
                    got = measured(url, request, CONNECTIONS[work], seconds)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                failed[name] = str(error)
            else:
                figures.setdefault((name, work), []).append(got)
                print(f"{work:10}{name:16}{got}", file=sys.stderr, flush=True)
    return figures, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peers", default=",".join(PEERS), help="with commas between")
    parser.add_argument("--works", default="untouched,decode", help="of untouched, decode and detect")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "frcnn-peers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="a file for a plot, .png or .svg")
    arguments = parser.parse_args()
    names, works = arguments.peers.split(","), arguments.works.split(",")
    figures, failed = measure(names, works, arguments.environments, rounds=arguments.rounds, seconds=arguments.seconds)
    if arguments.json:
        rounds = {f"{name} {work}": [asdict(one) for one in each] for (name, work), each in figures.items()}
        print(json.dumps({"figures": rounds, "failed": failed}, indent=2))
    else:
        show(figures, works, names)
    if arguments.plot:
        plot(figures, works, arguments.plot)
    for name, reason in failed.items():
        print(f"{name} could not be run: {reason}", file=sys.stderr)


def show(figures: Mapping[tuple[str, str], list[Figures]], works: list[str], names: list[str]) -> None:
    """Medians, as a table."""
    print(f"| | {' | '.join(f'{work}, a second | p50 ms | p99 ms' for work in works)} |")
    print("|---|" + "---:|" * 3 * len(works))
    for name in names:
        if not any((name, work) in figures for work in works):
            continue
        cells = []
        for work in works:
            rounds = figures.get((name, work))
            cells += [legible(value) for value in medians(rounds)] if rounds else ["", "", ""]
        print(f"| {name} | {' | '.join(cells)} |")


def legible(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def medians(rounds: list[Figures]) -> list[float]:
    return [statistics.median(column) for column in zip(*(astuple(one) for one in rounds), strict=True)]


def plot(figures: Mapping[tuple[str, str], list[Figures]], works: list[str], file: Path) -> None:
    """Requests a second as bars, a panel for each work; the lines are the rounds' least and most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(works), 3.2), layout="constrained")
    for axes, work in zip(figure.subplots(1, len(works), squeeze=False)[0], works, strict=True):
        rates = {name: [one.per_s for one in rounds] for (name, of), rounds in figures.items() if of == work}
        ranked = sorted(rates, key=lambda name: statistics.median(rates[name]))
        middle = [statistics.median(rates[name]) for name in ranked]
        reach = [
            [centre - min(rates[name]) for name, centre in zip(ranked, middle, strict=True)],
            [max(rates[name]) - centre for name, centre in zip(ranked, middle, strict=True)],
        ]
        colours = ["#c2410c" if name.startswith("ours") else "#94a3b8" for name in ranked]
        bars = axes.barh(ranked, middle, xerr=reach, color=colours, ecolor="#334155", capsize=2)
        axes.bar_label(bars, labels=[legible(rate) for rate in middle], padding=4)
        axes.set(title=work, xlabel="requests a second")
        axes.margins(x=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
