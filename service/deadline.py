"""Waiting no longer than a request has time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from service.errors import DeadlineError

T = TypeVar("T")


async def in_time(deadline: float, work: Awaitable[T]) -> T:
    """The result of `work`, if it comes before the deadline, on the event loop's clock.

    Raises:
        DeadlineError: it does not.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError as error:
        raise DeadlineError("the time for this request was over before its answer was ready") from error
    finally:
        del work  # with a failure that it holds, it would be a ring that only the collector opens
