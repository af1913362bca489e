"""`/detect?tile=...`: a picture in parts, each of which is an image of the queue."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torch import Tensor

from service.api.selection import Selection
from service.devices.detector import Detections
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

pytestmark = pytest.mark.anyio
HEIGHT, WIDTH, SIDE = 280, 700, 160
# Where an object's red value places it; two lie across the edges of tiles, and one is larger than a tile.
OBJECTS = {
    10: (20, 30, 50, 60),
    20: (150, 20, 176, 44),
    30: (300, 130, 330, 165),
    40: (640, 250, 700, 280),
    50: (400, 60, 690, 260),
}


class SeeingDetector(FakeDetector):
    """Finds the rectangle of each red value, scored by how little of it there is to see."""

    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        super().detect(images)
        return [look(image[0].numpy()) for image in images]


def look(red: npt.NDArray[np.uint8]) -> Detections:
    found = []
    for value, (x1, y1, x2, y2) in OBJECTS.items():
        rows, columns = np.nonzero(red == value)
        if len(rows) > 0.3 * (x2 - x1) * (y2 - y1):
            found.append((1 - len(rows) / 1e6, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    found.sort(reverse=True)
    return Detections(
        boxes=np.array([box for _, box in found], np.float32).reshape(-1, 4),
        labels=np.ones(len(found), np.int64),
        scores=np.array([score for score, _ in found], np.float32),
    )


@pytest.fixture(scope="module")
def large_picture() -> bytes:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for red, (x1, y1, x2, y2) in OBJECTS.items():
        pixels[y1:y2, x1:x2, 0] = red
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def boxes(response: httpx.Response) -> list[tuple[float, ...]]:
    assert response.status_code == 200, response.text
    return sorted(map(tuple, response.json()["boxes"]))


async def test_each_object_is_found_once_and_whole(large_picture: bytes) -> None:
    detector = SeeingDetector()
    async with serving(detector, max_batch_size=4) as client:
        response = await client.post("/detect", params={"tile": SIDE}, content=large_picture)
    assert boxes(response) == sorted(OBJECTS.values())
    assert response.json()["image"] == {"width": WIDTH, "height": HEIGHT}
    looked_at = [size_hw for batch in detector.batches for _, *size_hw in batch]
    assert sorted(looked_at) == [[SIDE, SIDE]] * 12 + [[HEIGHT, WIDTH]]
    assert max(map(len, detector.batches)) == 4
    assert response.headers["server-timing"].endswith('batch;desc="4", tiles;desc="13"')


async def test_without_the_whole_picture_what_is_large_comes_in_pieces(large_picture: bytes) -> None:
    async with serving(SeeingDetector()) as client:
        query = {"tile": f"{SIDE}", "tile_whole": "false", "tile_overlap": "0.25"}
        found = boxes(await client.post("/detect", params=query, content=large_picture))
    small = {box for red, box in OBJECTS.items() if red != 50}
    assert small < set(found)
    assert OBJECTS[50] not in found


async def test_a_picture_no_larger_than_a_tile_is_one_image(large_picture: bytes) -> None:
    detector = SeeingDetector()
    async with serving(detector) as client:
        response = await client.post("/detect", params={"tile": WIDTH}, content=large_picture)
        whole = await client.post("/detect", content=large_picture)
    assert response.json() == whole.json()
    assert "tiles" not in response.headers["server-timing"]
    assert [len(batch) for batch in detector.batches] == [1, 1]


async def test_the_query_chooses_among_all_that_was_found(large_picture: bytes) -> None:
    async with serving(SeeingDetector()) as client:
        best = await client.post("/detect", params={"tile": SIDE, "max_detections": 2}, content=large_picture)
        drawn = await client.post(
            "/detect", params={"tile": SIDE}, content=large_picture, headers={"Accept": "image/png"}
        )
    assert len(boxes(best)) == 2
    with Image.open(io.BytesIO(drawn.content)) as image:
        assert image.size == (WIDTH, HEIGHT)


async def test_an_answer_may_hold_more_than_a_hundred() -> None:
    class Crowd(FakeDetector):
        def detect(self, images: Sequence[Tensor]) -> list[Detections]:
            steps = np.arange(60, dtype=np.float32)
            boxes = np.stack((steps, steps, steps + 0.5, steps + 0.5), axis=1)
            return [Detections(boxes, np.ones(60, np.int64), np.full(60, 0.5, np.float32)) for _ in images]

    async with serving(Crowd()) as client:
        query = {"tile": "64", "tile_overlap": "0", "tile_whole": "false"}
        image = red_png(1, (64, 192))
        assert len(boxes(await client.post("/detect", params=query, content=image))) == 180
        query["max_detections"] = "150"
        assert len(boxes(await client.post("/detect", params=query, content=image))) == 150


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"tile": 63}, "tile: Input should be greater than or equal to 64"),
        ({"tile": 9000}, "tile: Input should be less than or equal to 8192"),
        ({"tile": "large"}, "tile: Input should be a valid integer"),
        ({"tile": SIDE, "tile_overlap": 0.9}, "tile_overlap: Input should be less than or equal to 0.8"),
        ({"tile": SIDE, "tile_overlap": "nan"}, "tile_overlap: "),
        ({"tile": SIDE, "tile_whole": "perhaps"}, "tile_whole: "),
        ({"tile": SIDE, "max_detections": 10_001}, "max_detections: "),
        ({"tile_overlap": 0.3}, "tile is missing"),
        ({"tile_whole": "false"}, "tile is missing"),
        ({"max_detections": 101}, "max_detections: at most 100 without tile"),
        ({"tile": 64}, f"{WIDTH} x {HEIGHT} pixels would be 85 pictures in tiles of 64 px, and at most 20 are taken"),
    ],
)
async def test_what_cannot_be_is_told(query: dict[str, Any], words: str, large_picture: bytes) -> None:
    detector = SeeingDetector()
    async with serving(detector, max_tiles=20) as client:
        response = await client.post("/detect", params=query, content=large_picture)
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0
    assert response.status_code == 422, response.text
    assert words in response.json()["detail"]
    assert not detector.batches


async def test_what_tiles_found_is_chosen_from_beside_the_event_loop(
    large_picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    apply = Selection.apply

    def watched(selection: Selection, found: Detections) -> Detections:
        threads.append(threading.get_ident())
        return apply(selection, found)

    monkeypatch.setattr(Selection, "apply", watched)
    async with serving(FakeDetector()) as client:
        response = await client.post("/detect?tile=64&class_agnostic=true", content=large_picture)
    assert response.status_code == 200
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_a_batch_takes_no_tiles() -> None:
    async with serving(FakeDetector()) as client:
        response = await client.post("/detect/batch", params={"tile": 64}, files={"file": red_png(1)})
    assert response.status_code == 422
    assert "tile: there is no such parameter" in response.json()["detail"]


async def test_each_part_counts_in_the_budgets(large_picture: bytes) -> None:
    detector = SeeingDetector()
    detector.gate.clear()
    async with serving(detector, queue_capacity=24) as client:

        async def in_flight() -> int:
            return int((await client.get("/healthz")).json()["images_in_flight"])

        first = asyncio.create_task(client.post("/detect", params={"tile": SIDE}, content=large_picture))
        while await in_flight() < 13:
            await asyncio.sleep(0.001)
        # 13 of the 18 that low priority may fill: another 13 do not fit, nor by themselves 19.
        second = await client.post("/detect", params={"tile": SIDE}, content=large_picture)
        assert second.status_code == 429
        assert "14 images are being answered, of at most 18" in second.json()["detail"]
        assert int(second.headers["retry-after"]) >= 1
        assert await in_flight() == 13
        many = await client.post("/detect", params={"tile": 128}, content=large_picture)
        assert many.status_code == 422
        assert "at most 18 are taken" in many.json()["detail"]
        detector.gate.set()
        assert (await first).status_code == 200
        assert await in_flight() == 0


async def test_the_parts_leave_the_queue_with_their_caller_s_deadline(large_picture: bytes) -> None:
    detector = SeeingDetector()
    detector.gate.clear()
    async with serving(detector, max_batch_size=1) as client:
        late = await client.post(
            "/detect", params={"tile": SIDE}, content=large_picture, headers={"X-Request-Timeout-Ms": "100"}
        )
        detector.gate.set()
        assert late.status_code == 504
        behind = await client.post("/detect", content=large_picture, headers={"X-Priority": "low"})
        assert behind.status_code == 200
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0
    assert len(detector.batches) <= 2  # the part that ran, if one did, and the picture of the second request


async def test_a_part_that_fails_fails_the_picture(large_picture: bytes) -> None:
    detector = SeeingDetector(fails_on=frozenset({0}))
    async with serving(detector, max_batch_size=1) as client:
        response = await client.post("/detect", params={"tile": SIDE}, content=large_picture)
        assert response.status_code == 500
        assert response.json()["type"].endswith(":inference-failed")
        assert (await client.get("/healthz")).json()["images_in_flight"] == 0


async def test_the_parts_count_in_the_pixels(large_picture: bytes) -> None:
    detector = SeeingDetector()
    detector.gate.clear()
    pixels = 12 * SIDE**2 + 288 * 704  # the whole is padded
    async with serving(detector, queue_capacity_pixels=pixels + 30_000) as client:
        first = asyncio.create_task(client.post("/detect", params={"tile": SIDE}, content=large_picture))
        while (await client.get("/healthz")).json()["images_in_flight"] < 13:
            await asyncio.sleep(0.001)
        assert await asyncio.to_thread(detector.started.wait, 20)
        rejected = await client.post("/detect", params={"tile": WIDTH}, content=large_picture)
        assert rejected.status_code == 429
        assert "pixels are being looked at" in rejected.json()["detail"]
        detector.gate.set()
        assert (await first).status_code == 200
