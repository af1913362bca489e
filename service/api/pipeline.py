"""Detection in the images of one job: decode, queue, detect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.api.job import Job
from service.api.reservation import NoRoomError, Reservation
from service.api.tiles import Tiling, merge
from service.batching.budgets import Permit
from service.batching.decode_threads import Continuation, cost_of
from service.batching.shared_queue import Answer
from service.devices.detector import Detections
from service.errors import ServiceError, TooLargeError
from service.images.pictures import OpenedImage, Picture, Region, check_pixels, from_pixels, open_image, upright_rgb


class ImageResult(NamedTuple):
    """The answer to one image.

    Attributes:
        size_hw: height and width of the upright image.
        answer: what the batcher returned.
        decode_s: seconds that it waited for a decoding thread and was decoded.
        parts: how many pictures it became: one, or its tiles.
        picture: the decoded image, if it is still needed.
        memory: what is reserved to draw it.
    """

    size_hw: tuple[int, int]
    answer: Answer
    decode_s: float
    picture: Picture | None
    memory: Permit
    parts: int = 1

    def server_timing(self) -> str:
        """The stages as a Server-Timing header, in milliseconds."""
        answer = self.answer
        tiles = f', tiles;desc="{self.parts}"' if self.parts > 1 else ""
        return (
            f"decode;dur={self.decode_s * 1e3:.2f}, queue;dur={answer.queue_s * 1e3:.2f}, "
            f'inference;dur={answer.inference_s * 1e3:.2f}, batch;desc="{answer.batch_size}"{tiles}'
        )


async def detect_image(job: Job, data: bytes, *, keep_picture: bool = False, patient: bool = False) -> ImageResult:
    """Detect in one image file.

    Args:
        job: holds the image's place.
        data: the file.
        keep_picture: keep the decoded image, and its pixels reserved, until the job ends.
        patient: wait until the image's pixels can be reserved, in place of being rejected.

    Raises:
        ServiceError: what is wrong with the image, or with the service.
    """
    _check_bytes(job, data)
    reservation = Reservation(job, is_drawn=keep_picture)
    decoding = _decode_patiently(job, reservation, data) if patient else _decode(job, reservation, data)
    del data  # it is not needed any more once it is decoded
    return await _detect(job, reservation, decoding, keep_picture=keep_picture)


async def detect_tiles(job: Job, data: bytes, tiling: Tiling, *, keep_picture: bool = False) -> ImageResult:
    """Detect in one image file in parts. Each part is an image of the queue and counts as one in budgets and deadline.

    Args:
        job: holds the image's place; the other parts' are reserved once the file tells its size.
        data: the file.
        tiling: how to divide it.
        keep_picture: keep the decoded image.

    Raises:
        BadParameterError: it would be too many parts.
        ServiceError: what `detect_image` raises; the failure of a part is the image's.
    """
    started = time.perf_counter()
    reservation = Reservation(job, is_drawn=keep_picture)
    decoding = _decode_in_parts(job, reservation, data, tiling)
    del data  # it is not needed any more once it is decoded
    try:
        with job.stage("decode"):
            picture, parts = await decoding
    except NoRoomError as error:
        raise error.rejection() from None
    decode_s = time.perf_counter() - started
    answers = await _of_one_model(job, [picture.part(part) for part in parts])
    found, size_hw = [answer.detections for answer in answers], picture.size_hw
    iou_threshold = answers[0].info.iou_threshold
    merged = await job.in_thread(lambda: merge(parts, found, size_hw, iou_threshold=iou_threshold))
    if not keep_picture:
        reservation.release()
    kept = picture if keep_picture else None
    return ImageResult(size_hw, _summed_up(answers, merged), decode_s, kept, reservation.memory, len(parts))


async def _decode_in_parts(
    job: Job, reservation: Reservation, data: bytes, tiling: Tiling
) -> tuple[Picture, list[Region]]:
    """Decode a file, and tell the parts of its picture, which are reserved."""
    _check_bytes(job, data)
    max_pixels = job.settings.max_image_pixels
    image = await job.in_thread(lambda: open_image(data, max_pixels=max_pixels))
    width, height = image.upright_wh
    parts = tiling.parts((height, width), most=min(job.settings.max_tiles, job.most_images))
    if len(parts) > 1:
        job.reserve_images(len(parts) - 1)
    # All parts lie in the one picture's memory; on the device each is of its own padded shape.
    device_pixels = sum(job.batcher.pixels(part.width, part.height) for part in parts)
    reservation.reserve(image.upright_wh, image.working_bytes, device_pixels=device_pixels)
    picture = await job.in_thread(partial(_decode_pixels, reservation, image), cost=cost_of(image.work))
    return picture, parts


async def _of_one_model(job: Job, pictures: list[Picture]) -> list[Answer]:
    """Submit pictures together, and those again that a model answered which has been replaced meanwhile."""
    answers = await _submit_all(job, pictures)
    while outdated := [at for at, answer in enumerate(answers) if answer.info != job.batcher.info]:
        newer = await _submit_all(job, [pictures[at] for at in outdated])
        for at, answer in zip(outdated, newer, strict=True):
            answers[at] = answer
    return answers


async def _submit_all(job: Job, pictures: list[Picture]) -> list[Answer]:
    """Submit pictures together. When one fails, the others leave the queue."""
    submitted = [asyncio.ensure_future(_submit(job, picture)) for picture in pictures]
    try:
        return await asyncio.gather(*submitted)
    finally:
        for one in submitted:
            one.cancel()


async def _submit(job: Job, picture: Picture) -> Answer:
    """Submit a picture and wait for its answer."""
    return await job.service.stages.detection(job.batcher.submit(picture, priority=job.priority, caller=job.caller))


def _summed_up(answers: Sequence[Answer], merged: Detections) -> Answer:
    """One answer: the wait for the first part, the time from then until the last is done, and the largest batch."""
    queue_s = min(answer.queue_s for answer in answers)
    done_s = max(answer.queue_s + answer.inference_s for answer in answers)
    largest = max(answer.batch_size for answer in answers)
    return Answer(merged, queue_s, done_s - queue_s, largest, answers[0].info)


async def detect_pixels(job: Job, pixels: npt.NDArray[np.uint8]) -> ImageResult:
    """Detect in an image that is sent as pixels: uint8 `[H, W, 3]` RGB.

    Raises:
        ServiceError: it has too many pixels; or what is wrong with the service.
    """
    height, width, _ = pixels.shape
    check_pixels(width, height, max_pixels=job.settings.max_image_pixels)
    reservation = Reservation(job, is_drawn=False)

    def copy() -> Picture:
        reservation.reserve((width, height), 0)
        return reservation.decoded(from_pixels(pixels, allocate=reservation.allocate))

    return await _detect(job, reservation, job.in_thread(copy), keep_picture=False)


async def detect_images(job: Job, files: Sequence[bytes]) -> list[ImageResult | ServiceError]:
    """Detect in several image files at the same time; what is wrong with one stays with it.

    Where they are too large together for the memory, they wait for each other.
    """
    works = [detect_image(job, data, patient=True) for data in files]
    del files  # each is freed when it is decoded
    return await job.gather(works)


def _check_bytes(job: Job, data: bytes) -> None:
    limit = job.settings.max_body_bytes
    if len(data) > limit:
        raise TooLargeError(f"the image has {len(data):,} bytes; at most {limit:,} are taken")


async def _detect(
    job: Job, reservation: Reservation, decoding: Awaitable[Picture], *, keep_picture: bool
) -> ImageResult:
    started = time.perf_counter()
    try:
        with job.stage("decode"):
            picture = await decoding
        decode_s = time.perf_counter() - started
        answer = await _submit(job, picture)
    except NoRoomError as error:
        raise error.rejection() from None
    except Exception:  # not a cancellation, after which a thread may still decode: the job waits for it
        reservation.release()
        raise
    if not keep_picture:
        reservation.release()
    return ImageResult(picture.size_hw, answer, decode_s, picture if keep_picture else None, reservation.memory)


def _decode(job: Job, reservation: Reservation, data: bytes) -> Awaitable[Picture]:
    max_pixels = job.settings.max_image_pixels

    def decode() -> Picture | Continuation:
        image = open_image(data, max_pixels=max_pixels)

        def decode_pixels() -> Picture:
            reservation.reserve(image.upright_wh, image.working_bytes)
            return _decode_pixels(reservation, image)

        return Continuation(cost_of(image.work), decode_pixels)

    return job.in_thread(decode)


async def _decode_patiently(job: Job, reservation: Reservation, data: bytes) -> Picture:
    image = await job.in_thread(lambda: open_image(data, max_pixels=job.settings.max_image_pixels))
    await reservation.reserve_when_free(image.upright_wh, image.working_bytes)  # not in a thread
    return await job.in_thread(partial(_decode_pixels, reservation, image), cost=cost_of(image.work))


def _decode_pixels(reservation: Reservation, image: OpenedImage) -> Picture:
    return reservation.decoded(upright_rgb(image, allocate=reservation.allocate))
