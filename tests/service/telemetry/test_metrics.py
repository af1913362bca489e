from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import Histograms, Metrics, RejectionReason
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"


def samples(text: str) -> dict[str, dict[str, float]]:
    """Name to labels to value."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_what_has_not_happened_is_told_as_none() -> None:
    told = samples(Metrics().exposition()[0].decode())["frcnn_images_rejected_total"]
    assert told == {f"reason={name}": 0 for name in get_args(RejectionReason)}


@pytest.mark.anyio
async def test_what_an_operator_asks_is_told() -> None:
    async with serving(FakeDetector(fails_on=frozenset({9})), queue_capacity=77) as client:
        for red in (1, 2, 9):
            await client.post("/detect", content=red_png(red))
        await client.post("/detect", content=red_png(3), headers={"Accept": "image/png"})
        await client.post("/detect/batch", files=[("file", red_png(1)), ("file", b"junk")])
        await client.post("/detect", content=b"junk")
        for path in ("/nowhere/1", "/nowhere/2", "/etc/passwd", "/page/main.js", "/page/nowhere"):
            await client.get(path)
        told = samples((await client.get("/metrics")).text)
    assert told["frcnn_requests_total"]["route=/detect,status=200"] == 3
    assert told["frcnn_requests_total"]["route=/detect,status=500"] == 1
    assert told["frcnn_requests_total"]["route=/detect/batch,status=200"] == 1
    assert told["frcnn_requests_total"]["route=none,status=404"] == 3
    assert told["frcnn_requests_total"]["route=/page,status=200"] == 1
    assert told["frcnn_problems_total"] == {
        "code=inference-failed": 1,
        "code=broken-image": 2,
        "code=no-such-path": 4,
    }
    assert told["frcnn_requests_in_flight"][""] == 1  # the scrape itself
    assert told["frcnn_images_in_flight"][""] == told["frcnn_images_queued"][""] == 0
    assert told["frcnn_images_capacity"][""] == 77
    stages = told["frcnn_stage_seconds_count"]
    assert (stages["stage=read"], stages["stage=decode"], stages["stage=encode"]) == (6, 7, 4)
    assert stages["stage=queue"] == stages["stage=inference"] == 4
    assert told["frcnn_batch_size_count"][""] == 5
    assert told["frcnn_ready"][""] == 1
    (model,) = told["frcnn_model_info"]
    assert model.startswith("model=fasterrcnn_resnet50_fpn,version=")
    assert model.endswith("weights=fake,weights_version=fa4e01234567")
    assert told["frcnn_device_info"] == {"device=cpu,name=cpu,precision=fp32": 1}
    assert "frcnn_device_memory_bytes" not in told
    assert told["process_resident_memory_bytes"][""] > 1e6


@pytest.mark.anyio
async def test_rejections_are_counted_by_reason() -> None:
    async with serving(FakeDetector(), queue_capacity=1) as client:
        files = [("file", red_png(1)), ("file", red_png(2))]
        assert (await client.post("/detect/batch", files=files)).status_code == 413
        told = samples((await client.get("/metrics")).text)
    assert told["frcnn_problems_total"] == {"code=too-large": 1}


def test_a_gpus_memory_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    sizes = {"cuda:0": {"allocated": 1, "total": 9}, "cpu": {}}
    metrics.watch_memory(lambda: sizes)
    name = "frcnn_device_memory_bytes"
    first = samples(metrics.exposition()[0].decode())[name]
    assert first == {"device=cuda:0,kind=allocated": 1, "device=cuda:0,kind=total": 9}
    sizes["cuda:0"]["allocated"] = 5
    assert samples(metrics.exposition()[0].decode())[name]["device=cuda:0,kind=allocated"] == 5


def test_only_a_device_that_ran_out_of_memory_has_a_batch_cap() -> None:
    metrics = Metrics()
    caps: dict[str, int] = {}
    metrics.watch_batch_caps(lambda: caps)
    assert "frcnn_device_batch_cap" not in samples(metrics.exposition()[0].decode())
    caps["cuda:0"] = 4
    assert samples(metrics.exposition()[0].decode())["frcnn_device_batch_cap"] == {"device=cuda:0": 4}


def test_two_services_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.requests.labels("/detect", "200").inc()
    assert "frcnn_requests_total" in samples(one.exposition()[0].decode())
    assert "frcnn_requests_total" not in samples(other.exposition()[0].decode())


def test_histograms_are_told_as_prometheus_own() -> None:
    registry, theirs = CollectorRegistry(), CollectorRegistry()
    bounds = (0.001, 0.5, 1, 10)
    mine = Histograms("seconds", "How long.", bounds, "stage", registry)
    reference = Histogram("seconds", "How long.", ["stage"], registry=theirs, buckets=bounds)
    for stage, value in (
        ("read", 0.001),
        ("read", 0.0011),
        ("read", 100),
        ("decode", 0),
        ("decode", 1.0),
        ("read", 0.5),
    ):
        mine.labels(stage).observe(value)
        reference.labels(stage).observe(value)
    told = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(registry).decode().splitlines() == told


def test_the_page_names_every_metric() -> None:
    metrics = Metrics()
    metrics.watch_memory(lambda: {"cuda:0": {"allocated": 1}})
    metrics.watch_batch_caps(lambda: {"cuda:0": 4})
    told = ("utilization_ratio", "power_watts", "temperature_celsius")
    metrics.watch_readings(lambda: {"cuda:0": dict.fromkeys(told, 1.0)})
    families = {family.name for family in text_string_to_metric_families(metrics.exposition()[0].decode())}
    ours = {name for name in families if name.startswith("frcnn_") and not name.endswith("_created")}
    named = {name.removesuffix("_total") for name in re.findall(r"`(frcnn_[a-z_]+)", DOCUMENT.read_text())}
    assert named == ours


@pytest.mark.parametrize(
    ("metric", "label"), [("frcnn_images_rejected_total", "reason"), ("frcnn_reloads_total", "result")]
)
def test_the_page_names_every_value_of_a_label(metric: str, label: str) -> None:
    told = {labels.removeprefix(f"{label}=") for labels in samples(Metrics().exposition()[0].decode())[metric]}
    (row,) = re.findall(rf"^\| `{metric}` \| `{label}` \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", row)) == told


def test_the_page_explains_only_rejections_that_are_counted() -> None:
    explained = re.findall(r"^\| rejections by `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert explained
    assert set(explained) <= set(get_args(RejectionReason))
