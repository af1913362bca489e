"""What wakes the workers that wait for pictures."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from service.batching.batch_queue import BatchQueue, Priority
from service.batching.shared_queue import QueuedPicture, SharedQueue
from service.errors import InferenceError, UnavailableError
from service.images.pictures import Picture
from tests.support.fakes import red_picture

pytestmark = pytest.mark.anyio


def shared() -> SharedQueue:
    return SharedQueue(BatchQueue(max_batch_size=2))


async def test_all_that_wait_are_woken_and_those_who_come_later_wait_again() -> None:
    queue = shared()
    waiting = [asyncio.create_task(queue.changed(math.inf)) for _ in range(2)]
    await asyncio.sleep(0)
    queue.wake()
    await asyncio.gather(*waiting)
    late = asyncio.create_task(queue.changed(math.inf))
    await asyncio.sleep(0)
    assert not late.done()
    queue.wake()
    await late


async def test_a_wait_ends_at_its_time_without_a_change() -> None:
    async with asyncio.timeout(20):
        await shared().changed(time.perf_counter() + 0.01)


async def test_an_answered_picture_does_not_fail() -> None:
    one = QueuedPicture(Picture(red_picture(1)), (32, 32), Priority.NORMAL, 0.0)
    one.fail(InferenceError("the first"))
    one.fail(UnavailableError("the second"))
    with pytest.raises(InferenceError, match="the first"):
        await one.answer
