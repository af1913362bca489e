"""Detection in the images of one job: decode, queue, detect."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.api.job import Job
from service.batching.admission import Permit
from service.batching.device_worker import Answer
from service.errors import ServiceError, TooLargeError
from service.images.pictures import Picture, check_pixels, from_pixels, open_image, upright_rgb


class NoRoomError(Exception):
    """The pixels of an image could not be reserved."""


class ImageResult(NamedTuple):
    """The answer to one image.

    Attributes:
        size_hw: height and width of the upright image.
        answer: what the batcher returned.
        decode_s: seconds that it waited for a decoding thread and was decoded.
        picture: the decoded image, if it is still needed.
    """

    size_hw: tuple[int, int]
    answer: Answer
    decode_s: float
    picture: Picture | None

    def server_timing(self) -> str:
        """The stages as a Server-Timing header, in milliseconds."""
        answer = self.answer
        return (
            f"decode;dur={self.decode_s * 1e3:.2f}, queue;dur={answer.queue_s * 1e3:.2f}, "
            f'inference;dur={answer.inference_s * 1e3:.2f}, batch;desc="{answer.batch_size}"'
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
    limit = job.settings.max_body_bytes
    if len(data) > limit:
        raise TooLargeError(f"the image has {len(data):,} bytes; at most {limit:,} are taken")
    permit = job.pixels_permit()
    decoding = _decode_patiently(job, permit, data) if patient else _decode(job, permit, data)
    del data  # it is not needed any more once it is decoded
    return await _detect(job, permit, decoding, keep_picture=keep_picture)


async def detect_pixels(job: Job, pixels: npt.NDArray[np.uint8]) -> ImageResult:
    """Detect in an image that is sent as pixels: uint8 `[H, W, 3]` RGB.

    Raises:
        ServiceError: it has too many pixels; or what is wrong with the service.
    """
    height, width, _ = pixels.shape
    check_pixels(width, height, max_pixels=job.settings.max_image_pixels)
    permit = job.pixels_permit()
    if not permit.reserve(job.batcher.pixels(width, height)):
        raise job.service.admission.pixels_full()
    decoding = job.in_thread(lambda: job.batcher.upload_early(from_pixels(pixels, allocate=job.batcher.allocate)))
    return await _detect(job, permit, decoding, keep_picture=False)


async def detect_images(job: Job, files: Sequence[bytes]) -> list[ImageResult | ServiceError]:
    """Detect in several image files at the same time; what is wrong with one stays with it.

    Where they are too large together for the memory, they wait for each other.
    """
    return await job.gather([detect_image(job, data, patient=True) for data in files])


async def _detect(job: Job, permit: Permit, decoding: Awaitable[Picture], *, keep_picture: bool) -> ImageResult:
    started = time.perf_counter()
    try:
        with job.stage("decode"):
            picture = await decoding
        decode_s = time.perf_counter() - started
        answer = await job.service.stages.detection(job.batcher.submit(picture, priority=job.priority))
    except NoRoomError:
        raise job.service.admission.pixels_full() from None
    except Exception:  # not a cancellation, after which a thread may still decode: the job waits for it
        permit.release()
        raise
    if not keep_picture:
        permit.release()
    return ImageResult(picture.size_hw, answer, decode_s, picture if keep_picture else None)


def _decode(job: Job, permit: Permit, data: bytes) -> Awaitable[Picture]:
    max_pixels = job.settings.max_image_pixels

    def decode() -> Picture:
        image = open_image(data, max_pixels=max_pixels)
        if not permit.reserve(job.batcher.pixels(*image.upright_wh)):
            raise NoRoomError
        return job.batcher.upload_early(upright_rgb(image, allocate=job.batcher.allocate))

    return job.in_thread(decode)


async def _decode_patiently(job: Job, permit: Permit, data: bytes) -> Picture:
    image = await job.in_thread(lambda: open_image(data, max_pixels=job.settings.max_image_pixels))
    await permit.reserve_when_free(job.batcher.pixels(*image.upright_wh))  # not in a thread
    return await job.in_thread(lambda: job.batcher.upload_early(upright_rgb(image, allocate=job.batcher.allocate)))
