"""One image's way through the service: bytes, pixels, queue, detections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from service.admission import Room
from service.batch_queue import Priority
from service.batcher import Batcher
from service.deadline import in_time
from service.device_worker import Answer
from service.errors import ServiceError, TooLargeError
from service.exchange import exchange_of
from service.images import Picture, check_pixels, from_pixels, open_image, upright_rgb
from service.lifecycle import Service

T = TypeVar("T")


class ClientGoneError(Exception):
    """The caller closed the connection before the answer was ready."""


class Found(NamedTuple):
    """The answer to one image, with what it was found in and how long that took."""

    picture: Picture
    answer: Answer
    decode_s: float

    def server_timing(self) -> str:
        """The stages as a Server-Timing header, in milliseconds."""
        answer = self.answer
        return (
            f"decode;dur={self.decode_s * 1e3:.2f}, queue;dur={answer.queue_s * 1e3:.2f}, "
            f'inference;dur={answer.inference_s * 1e3:.2f}, batch;desc="{answer.batch_size}"'
        )


async def find(
    service: Service, batcher: Batcher, data: bytes, *, deadline: float, priority: Priority, patient: bool = False
) -> Found:
    """Decode, queue, detect. The caller holds a place in the quota.

    Args:
        service: for its limits and threads.
        batcher: that of the door: what was accepted goes on to it even when the service has begun to drain since.
        data: the image file.
        deadline: on the event loop's clock.
        priority: who goes first in the queue.
        patient: wait for memory instead of being refused.

    Raises:
        ServiceError: what is wrong with the image, or with the service.
    """
    limit = service.settings.max_body_bytes
    if len(data) > limit:
        raise TooLargeError(f"the image has {len(data):,} bytes; at most {limit:,} are taken")
    with batcher.admission.room() as room:
        decode = _decode_patiently if patient else _decode
        decoding = decode(service, batcher, room, data)
        del data  # as soon as it is decoded, nothing needs it
        try:
            return await _detected(service, batcher, decoding, deadline=deadline, priority=priority)
        finally:
            del decoding  # it may hold a failure, which holds this frame


def _decode(service: Service, batcher: Batcher, room: Room, data: bytes) -> Awaitable[Picture]:
    max_pixels = service.settings.max_image_pixels

    def decode() -> Picture:
        image = open_image(data, max_pixels=max_pixels)
        room.take(batcher.pixels(*image.upright_wh))
        return batcher.sent_ahead(upright_rgb(image, allocate=batcher.allocate))

    return service.in_thread(decode)


async def _decode_patiently(service: Service, batcher: Batcher, room: Room, data: bytes) -> Picture:
    max_pixels = service.settings.max_image_pixels
    image = await service.in_thread(lambda: open_image(data, max_pixels=max_pixels))
    await room.wait_for(batcher.pixels(*image.upright_wh))  # not in a thread
    return await service.in_thread(lambda: batcher.sent_ahead(upright_rgb(image, allocate=batcher.allocate)))


async def find_in_pixels(
    service: Service, batcher: Batcher, pixels: npt.NDArray[np.uint8], *, deadline: float, priority: Priority
) -> Found:
    """`find`, for an image that comes as pixels: uint8 `[H, W, 3]` RGB.

    Raises:
        ServiceError: it has too many; or what is wrong with the service.
    """
    height, width, _ = pixels.shape
    check_pixels(width, height, max_pixels=service.settings.max_image_pixels)
    with batcher.admission.room() as room:
        room.take(batcher.pixels(width, height))
        decoding = service.in_thread(lambda: batcher.sent_ahead(from_pixels(pixels, allocate=batcher.allocate)))
        return await _detected(service, batcher, decoding, deadline=deadline, priority=priority)


async def _detected(
    service: Service, batcher: Batcher, decoding: Awaitable[Picture], *, deadline: float, priority: Priority
) -> Found:
    started = time.perf_counter()
    try:
        with service.stages.stage("decode"):
            picture = await in_time(deadline, decoding)
    finally:
        del decoding
    decode_s = time.perf_counter() - started
    answer = await service.stages.detection(batcher.submit(picture, deadline=deadline, priority=priority))
    return Found(picture, answer, decode_s)


async def find_all(
    service: Service, batcher: Batcher, files: Sequence[bytes], *, deadline: float, priority: Priority
) -> list[Found | ServiceError]:
    """`find` for each file, in order, at the same time; what is wrong with one stays with it.

    Where they are too large together for the memory, they wait for each other.
    """
    outcomes = await asyncio.gather(
        *(find(service, batcher, data, deadline=deadline, priority=priority, patient=True) for data in files),
        return_exceptions=True,
    )
    results: list[Found | ServiceError] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, ServiceError):
            raise outcome
        results.append(outcome)
    return results


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the caller hangs up. The request's body must have been read.

    Raises:
        ClientGoneError: the caller hung up.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    # As asyncio.timeout does it: the work stays in this task, which is cancelled from outside and told apart by count.
    forget = _call_when_gone(request, leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelled_before:
            raise ClientGoneError from None
        raise
    finally:
        forget()


def _call_when_gone(request: Request, callback: Callable[[], None]) -> Callable[[], object]:
    """Have `callback` called if the caller hangs up. Returns what to call when that is no longer wanted."""
    exchange = exchange_of(request.scope)
    if exchange is not None:
        exchange.tell_when_gone(callback)
        return lambda: exchange.tell_when_gone(None)
    watcher = asyncio.ensure_future(_disconnected(request))
    watcher.add_done_callback(lambda done: None if done.cancelled() else callback())
    return watcher.cancel


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
