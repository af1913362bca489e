"""The dashboard's queries give figures on what a live service tells, and the configuration around it holds together."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from unittest import mock

import httpx
import pytest

from service import lifecycle
from service.devices.readings import GPUReadings
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import live

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docker" / "observability"
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')


@dataclass
class Busy:
    """A service that has room for two images, on a device that tells what GPUs do."""

    url: str
    detector: FakeDetector

    def make_traffic(self, image: bytes, seconds: float) -> None:
        """Answers, broken images, and rejections, at least one of each."""
        give_up = time.monotonic() + seconds
        with httpx.Client(base_url=self.url) as client, ThreadPoolExecutor(2) as others:
            while True:
                assert client.post("/detect", content=image).status_code == 200
                assert client.post("/detect", content=b"broken").status_code == 400
                self.detector.gate.clear()
                waiting = [others.submit(httpx.post, f"{self.url}/detect", content=image) for _ in range(2)]
                while in_flight(self.url) < 2:
                    time.sleep(0.01)
                assert client.post("/detect", content=image).status_code == 429
                self.detector.gate.set()
                assert [one.result().status_code for one in waiting] == [200, 200]
                if time.monotonic() >= give_up:
                    return


@contextmanager
def busy() -> Iterator[Busy]:
    detector = FakeDetector(seconds=0.01, device="xpu:0")
    told = {"utilization_ratio": 0.5, "power_watts": 300.0, "temperature_celsius": 60.0}
    with (
        mock.patch.object(lifecycle, "GPUReadings", return_value=GPUReadings(lambda _: told)),
        live(detector, max_batch_size=4, queue_capacity=2) as url,
    ):
        yield Busy(url, detector)


def in_flight(url: str) -> int:
    return int(httpx.get(f"{url}/healthz").json()["images_in_flight"])


def is_told(labels: dict[str, str], matchers: str) -> bool:
    """Whether a series with these labels is what a query looks for; Prometheus itself adds the instance."""
    return all(
        re.fullmatch(value if how == "=~" else re.escape(value), labels.get(name, ""))
        for name, how, value in MATCHER.findall(matchers)
        if name != "instance"
    )


def test_every_metric_and_label_of_the_queries_is_told() -> None:
    with busy() as service:
        service.make_traffic(red_png(7), 0.1)
        lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    series: dict[str, list[dict[str, str]]] = {}
    for found in filter(None, (re.match(r"(frcnn_\w+)(?:\{(.*)\})? ", line) for line in lines)):
        series.setdefault(found[1], []).append({name: value for name, _, value in MATCHER.findall(found[2] or "")})
    for query in QUERIES:
        metrics = re.findall(r"\b(frcnn_\w+)\{([^}]*)\}", query)
        assert metrics
        for name, matchers in metrics:
            assert any(is_told(labels, matchers) for labels in series[name]), query
        for labels in re.findall(r"by \(([^)]*)\)", query):
            by_prometheus = {"instance"}  # which it adds to all that it scrapes
            assert set(labels.split(", ")) - by_prometheus <= set(series[metrics[0][0]][0]), query


@contextmanager
def watching(url: str, folder: Path) -> Iterator[str]:
    """A real Prometheus with our configuration, at another address and in more haste."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus")
    config = (FOLDER / "prometheus.yml").read_text()
    assert "detector:8000" in config
    config = config.replace("detector:8000", url.removeprefix("http://")).replace("5s", "500ms")
    (folder / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        give_up = time.monotonic() + 60
        while "1" not in values(f"http://{address}", "up"):
            assert time.monotonic() < give_up
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def values(prometheus: str, query: str) -> list[str]:
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    return [series["value"][1] for series in answer.json().get("data", {}).get("result", [])]


def test_every_query_gives_figures(tmp_path: Path) -> None:
    with busy() as service, watching(service.url, tmp_path) as prometheus:
        service.make_traffic(red_png(7), 4)
        without = [
            query
            for query in QUERIES
            if all(
                isnan(float(value))
                for value in values(prometheus, query.replace("$__rate_interval", "10s").replace("$instance", ".*"))
            )
        ]
    assert without == []


def test_panels_have_places_and_descriptions_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        assert panel["description"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_compose_mounts_files_that_exist() -> None:
    mounts = re.findall(r"- (\./docker/\S+?):(\S+?):ro", (ROOT / "docker-compose.yml").read_text())
    assert len(mounts) == 6
    assert all((ROOT / source).is_file() for source, _ in mounts)
    folder = re.search(r"path: (\S+)", (FOLDER / "dashboards.yml").read_text())
    assert folder is not None
    assert f"{folder[1]}/faster-rcnn-service.json" in [target for _, target in mounts]
