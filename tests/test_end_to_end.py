"""The main job: photographs over HTTP to our service, compared with torchvision's own model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn as oracle_fasterrcnn
from torchvision.transforms.functional import to_tensor

from model.build import random_checkpoint
from model.weights.checkpoints import CheckpointInfo, save_checkpoint
from service.app import create_app
from service.settings import Settings
from tests.support.servers import served

# Small enough for many photographs on a CPU; the arithmetic does not depend on it.
SIZES = {"min_size": 256, "max_size": 420}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights that find a hundred things in anything, with scores that do not all round to 1."""
    state_dict = dict(random_checkpoint().state_dict)
    state_dict["roi_heads.box_predictor.cls_score.weight"] = state_dict["roi_heads.box_predictor.cls_score.weight"] * 8
    path = tmp_path_factory.mktemp("weights") / "lively.safetensors"
    save_checkpoint(path, state_dict, CheckpointInfo(model_kwargs=SIZES))
    return path


@pytest.fixture(scope="module")
def url(weights: Path) -> Iterator[str]:
    # By torch: untrained weights amplify how another library rounds, which tests of OpenVINO measure on trained ones.
    settings = Settings(
        weights=str(weights), device="cpu", backend="torch", max_batch_size=4, request_timeout_ms=300_000
    )
    with served(create_app(settings)) as address:
        yield address


def noise(seed: int, size_hw: tuple[int, int]) -> bytes:
    """A picture of blurred noise as a PNG file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def detect(client: httpx.Client, url: str, data: bytes) -> dict[str, Any]:
    response = client.post(f"{url}/detect", content=data, timeout=300)
    assert response.status_code == 200, response.text
    return {**response.json(), "timing": response.headers["server-timing"]}


def batch_size(answer: dict[str, Any]) -> int:
    return int(answer["timing"].rsplit('"', 2)[1])


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The stated tolerance: a convolution over several images may add up in another order.

    These weights are not trained, so scores nearly tie: rounding decides which comes first, and which of two boxes is
    suppressed. Nearly all detections have one of their own class and place in the other answer.
    """
    for a, b in ((one, other), (other, one)):
        is_near = np.abs(np.array(a["boxes"])[:, None] - np.array(b["boxes"])).max(-1) <= 0.05
        is_near &= np.abs(np.array(a["scores"])[:, None] - np.array(b["scores"])) <= 1e-4
        is_near &= np.array(a["labels"])[:, None] == np.array(b["labels"])
        assert is_near.any(1).mean() >= 0.9


def alone_then_in_company(url: str, files: list[bytes]) -> None:
    with httpx.Client() as client:
        alone = [detect(client, url, data) for data in files]
        with ThreadPoolExecutor(16) as callers:
            together = list(callers.map(lambda data: detect(client, url, data), files))
    assert all(batch_size(answer) == 1 for answer in alone)
    assert max(batch_size(answer) for answer in together) > 1, "nothing was batched, so nothing was shown"
    for one, other in zip(alone, together, strict=True):
        assert len(one["boxes"]) > 20
        same(one, other)


def test_the_same_answer_alone_and_in_company(url: str) -> None:
    # Five sizes that pad to two shapes: company of one's own size, and of another.
    sizes = [(240, 320), (236, 316), (320, 240), (318, 239), (239, 318)]
    alone_then_in_company(url, [noise(seed, sizes[seed % 5]) for seed in range(15)])


@pytest.mark.slow
def test_real_photographs_alone_and_in_company(url: str, coco_photos: list[Path]) -> None:
    alone_then_in_company(url, [path.read_bytes() for path in coco_photos])


Oracle = Callable[[bytes], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def oracle(weights: Path) -> Oracle:
    from safetensors.torch import load_file

    model = oracle_fasterrcnn(weights=None, weights_backbone=None, **SIZES)
    model.load_state_dict(load_file(weights), strict=False)  # live batch norm has counters besides
    model.eval()

    @torch.inference_mode()
    def answer(data: bytes) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = model([to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))])[0]
        return found

    return answer


def check_against(oracle: Oracle, url: str, files: list[bytes]) -> None:
    """Nearly each detection of torchvision's is found.

    What scores alike may change places, as folding rounds elsewhere, and an overlap may fall on the other side of the
    threshold. `tests/model/inference/test_serving.py` compares exactly, in float64.
    """
    with httpx.Client() as client:
        for data in files:
            ours, theirs = detect(client, url, data), oracle(data)
            assert len(ours["labels"]) == len(theirs["labels"]) > 20
            is_same = torch.tensor(ours["labels"]) == theirs["labels"][:, None]
            is_same &= (torch.tensor(ours["boxes"]) - theirs["boxes"][:, None]).abs().amax(-1) <= 0.01
            is_same &= (torch.tensor(ours["scores"]) - theirs["scores"][:, None]).abs() <= 5e-5
            # At the end of a full list the last may be others, which score alike as well.
            is_clear = theirs["scores"] > theirs["scores"].min() + (1e-4 if len(theirs["scores"]) == 100 else -1)
            assert is_same.any(1)[is_clear].float().mean() >= 0.95


def test_a_served_picture_equals_the_oracle(url: str, oracle: Oracle) -> None:
    check_against(oracle, url, [noise(seed, size) for seed, size in enumerate([(240, 320), (300, 100), (64, 64)])])


@pytest.mark.slow
def test_served_photographs_equal_the_oracle(url: str, oracle: Oracle, coco_photos: list[Path]) -> None:
    check_against(oracle, url, [path.read_bytes() for path in coco_photos[:10]])


def test_odd_images_get_an_answer_or_a_reason_and_leave_the_service_well(url: str, odd_images: list[Path]) -> None:
    with httpx.Client(timeout=300) as client:
        for path in odd_images:
            response = client.post(f"{url}/detect", content=path.read_bytes())
            if response.status_code != 200:
                assert 400 <= response.status_code < 500, path.name
                assert response.headers["content-type"] == "application/problem+json"
            assert client.get(f"{url}/healthz").json()["status"] == "ok", path.name


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 1000), (3000, 2), (8000, 30), (5000, 4000)])
def test_extreme_sizes_are_answered(size_hw: tuple[int, int], url: str) -> None:
    with httpx.Client() as client:
        answer = detect(client, url, noise(1, size_hw))
    assert answer["image"] == {"height": size_hw[0], "width": size_hw[1]}
    boxes = np.reshape(answer["boxes"], (-1, 4))
    assert (boxes >= 0).all()
    assert (boxes <= [size_hw[1], size_hw[0]] * 2).all()
