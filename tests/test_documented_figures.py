"""Figures in the documents are those of the code, of what deploys it, and of what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a page says and the file that decides it, both with @ in the place of the figure; and the page's units in one of
# the file's.
FIGURES: list[tuple[str, str, str, str, float]] = [
    ("README.md", "up to @ MiB and", "service/settings.py", "max_body_bytes: int = Field(@ * MIB", 1),
    ("docs/deployment.md", "Bodies over @ MB wait in `/tmp`", "docker/nginx.conf", "client_body_buffer_size @m", 1),
    ("docs/deployment.md", "bounds: bodies of @ MB", "docker/nginx.conf", "client_max_body_size @m;  # of /detect", 1),
    ("docs/deployment.md", "and @ MB for `/detect/batch`",
     "docker/nginx.conf", "client_max_body_size @m; limit_conn", 1),
    ("docs/deployment.md", "for each address @ requests at a time", "docker/nginx.conf", "limit_conn requests @;", 1),
    ("docs/deployment.md", "requests at a time, @ of them", "docker/nginx.conf", "limit_conn batches @;", 1),
    ("docs/deployment.md", "which is memory: @ GB at most", "docker-compose.yml", "/tmp:size=@g,mode=1777", 1),
    ("docs/deployment.md", "draining, failing), within @ seconds", "docker/nginx.conf", "next_upstream_timeout @s", 1),
    ("docs/deployment.md", "| @g, all | limits", "docker-compose.yml", "${FRCNN_MEMORY:-@g}", 1),
    ("docs/deployment.md", "| @, exit, text |", "docker-compose.yml", "${FRCNN_DRAIN_DELAY_S:-@}", 1),
    ("docs/deployment.md", "Compose kills after @ s", "docker-compose.yml", "stop_grace_period: @s", 1),
    ("docs/deployment.md", "answered for 5 s; then what was accepted is finished: @ s in all",
     "docker/kubernetes/gpu/deployment.yaml", "terminationGracePeriodSeconds: @", 1),
    ("docs/deployment.md", "| autoscaling | @ to 10 replicas",
     "docker/kubernetes/gpu/horizontalpodautoscaler.yaml", "minReplicas: @", 1),
    ("docs/deployment.md", "| autoscaling | 2 to @ replicas",
     "docker/kubernetes/gpu/horizontalpodautoscaler.yaml", "maxReplicas: @", 1),
    ("docs/operations.md", "take more than @ % of", "service/batching/admission.py", "_SAFE_SHARE = @", 100),
    ("docs/operations.md", "(1 to @ seconds)", "service/batching/admission.py", "_LONGEST_RETRY_S = @", 1),
    ("docs/operations.md", "up to @ letters, digits", "service/web/middleware.py", "[A-Za-z0-9._:/+=-]{1,@}", 1),
    ("docs/operations.md", "tried after every @ full ones", "service/devices/batch_cap.py", "_BATCHES_TO_RAISE = @", 1),
    ("docs/operations.md", "does not find at least @ % of", "model/inference/build.py", "_LEAST_AGREEMENT = @", 100),
    ("docs/operations.md", "what is left, for up to @ s", "service/telemetry/tracing.py", "_LONGEST_FAREWELL_S = @", 1),
    ("docs/model.md", "after @ batches its graph", "model/inference/graphs.py", "_OFTEN = @", 1),
    ("docs/model.md", "at start (@ MiB", "service/devices/model_detector.py", "_MOST_STAGED_BYTES = @ << 20", 1),
    ("docs/model.md", "follows @ ms before", "service/batching/pace.py", "_AHEAD_S = @", 1000),
    ("docs/scaling.md", "Serve admits @ more requests", "service/scale/arguments.py", "_ROOM_FOR_REJECTIONS = @", 1),
    ("docs/scaling.md", "narrows the range until @ % are", "service/loadtest/search.py", "_CLOSE_ENOUGH = 1.@", 1),
    ("docs/scaling.md", "pauses for @ s after one", "service/loadtest/generator.py", "_PAUSE_AFTER_FAILURE_S = @", 1),
    ("docs/configuration.md", "answers; by default @ MiB and",
     "service/lifecycle.py", "_FIXED_MEMORY, _MEMORY_OF_THREAD = @ << 20", 1),
    ("docs/configuration.md", "and @ MiB for each decoding",
     "service/lifecycle.py", "_FIXED_MEMORY, _MEMORY_OF_THREAD = 768 << 20, @ << 20", 1),
    ("SECURITY.md", "256 KiB in one read; @ s |", "service/web/protocol.py", "patience_s: ClassVar[float] = @", 1),
    ("SECURITY.md", "an answer's time | @ KiB in", "service/web/protocol.py", "_LEAST_PROGRESS = @", 1 / 1024),
    ("SECURITY.md", "| 64 KiB in @ s (5 s", "service/web/protocol.py", "patience_s: ClassVar[float] = @", 1),
    ("SECURITY.md", "KiB in 20 s (@ s at shutdown)", "service/web/protocol.py", "_LAST_READ_S = @", 1),
    ("SECURITY.md", "memory; over @ s `/healthz`", "service/lifecycle.py", "_STUCK_S = @", 1),
    ("SECURITY.md", "all in @ s |", "service/web/protocol.py", "answer_s: ClassVar[float] = @", 1),
    ("SECURITY.md", "| parts of a file | @ segments or chunks", "model/images/jpeg.py", "_MOST_PARTS = @", 1),
    ("SECURITY.md", "(of a PNG's pixels @ more)", "model/images/png.py", "_MOST_PIXEL_CHUNKS = @", 1),
    ("SECURITY.md", "more), @ GIF blocks", "model/images/gif.py", "_MOST_BLOCKS = @", 1),
    ("SECURITY.md", "`max_image_pixels`; @ pixels a side", "model/images/decoding.py", "LONGEST_SIDE = @", 1),
]  # fmt: skip


_NUMBER = r"\d[\d,._]*\d|\d"


def figure(path: str, phrase: str) -> float:
    """The number in the place of @ in a phrase of a file."""
    return in_text((ROOT / path).read_text(encoding="utf-8"), phrase)


def in_text(text: str, phrase: str) -> float:
    before, after = (re.escape(part).replace("\\ ", r"\s+") for part in phrase.split("@"))
    found = {number.replace(",", "").replace("_", "") for number in re.findall(rf"{before}({_NUMBER}){after}", text)}
    assert len(found) == 1, f"{phrase!r} is there with {found or 'no figure'}"
    return float(found.pop())


@pytest.mark.parametrize(("page", "says", "source", "decides", "factor"), FIGURES)
def test_a_figure_is_that_of_the_code(page: str, says: str, source: str, decides: str, factor: float) -> None:
    assert figure(page, says) == pytest.approx(figure(source, decides) * factor)


BENCHMARKS = "benchmarks/README.md"


@pytest.mark.parametrize(
    ("page", "says", "measured"),
    [
        ("README.md", "bf16, batch of 1 | @ |", "| ours, bf16 | @ |"),
        ("README.md", "bf16, batch of 1 | 1.09 | @ |", "| torchvision, eager, fp32 | @ | 1.00 |"),
        ("README.md", "the same, int8 | @ |", "| ours, int8 | @ |"),
        ("docs/scaling.md", "fp32, bf16, int8 | @, 1.09 or 1.79 images", "| ours, fp32 | @ | 1.32 |"),
        ("docs/scaling.md", "fp32, bf16, int8 | 0.56, @ or 1.79 images", "| ours, bf16 | @ | 2.58 |"),
        ("docs/scaling.md", "fp32, bf16, int8 | 0.56, 1.09 or @ images", "| ours, int8 | @ | 4.24 |"),
    ],
)
def test_rates_are_those_of_the_measured_seconds(page: str, says: str, measured: str) -> None:
    model = (ROOT / BENCHMARKS).read_text(encoding="utf-8").split("## The model")[1].split("## Over HTTP")[0]
    assert figure(page, says) == pytest.approx(1 / in_text(model, measured), abs=0.0051)


@pytest.mark.parametrize(
    ("page", "says", "measured"),
    [
        ("README.md", "the model alone | @ |", "| ours, fp16 | 270 | 389 | 499 | 573 | 589 | @ |"),
        ("README.md", "the model alone | 692 | @ (batch of 1)", "| torchvision, eager, fp32 | @ | | | 42.0 |"),
        (
            "docs/scaling.md",
            "fp16, batch 32 or 1 | @ or 270 images",
            "| ours, fp16 | 270 | 389 | 499 | 573 | 589 | @ |",
        ),
        ("docs/scaling.md", "fp16, batch 32 or 1 | 692 or @ images", "| ours, fp16 | @ | 389 |"),
        ("docs/scaling.md", "over HTTP @ a second", "| 64 | @ | 125 |"),
        ("docs/scaling.md", "over HTTP: @ ms for one", "| 1 | 101 | 9.9 | 16 | 4.7 | @ |"),
        ("docs/scaling.md", "for one, @ ms for 32", "| 64 | 501 | 125 | 179 | 48 | @ |"),
    ],
)
def test_rates_are_the_measured_ones(page: str, says: str, measured: str) -> None:
    assert figure(page, says) == figure(BENCHMARKS, measured)
