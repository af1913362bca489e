"""A job ends its work, and releases what it holds, however the request ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from service.api.job import ClientGoneError, Job, admit
from service.api.uploads import read_body
from service.app import create_app
from service.batching.batch_queue import Priority
from service.devices.cores import usable_cores
from service.errors import BrokenImageError, DeadlineError, QueueFullError, UnavailableError
from service.lifecycle import Service
from service.settings import Settings
from tests.support.fakes import FakeDetector

pytestmark = pytest.mark.anyio

Make = Callable[..., Request]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    app = create_app(Settings(queue_capacity=2), load=lambda _: [FakeDetector()])
    async with app.router.lifespan_context(app):
        await app.state.service.until_loaded()
        yield app.state.service


@pytest.fixture
def make_request(service: Service) -> Make:
    """`make_request(gone, header=value)`: a request whose caller leaves when `gone` is set."""

    def make(gone: asyncio.Event | None = None, **headers: str) -> Request:
        messages = [{"type": "http.request", "body": b"body", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        raw = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
        app = SimpleNamespace(state=SimpleNamespace(service=service))
        return Request({"type": "http", "headers": raw, "app": app, "query_string": b""}, receive)

    return make


async def read(job: Job) -> bytes:
    return await job.read(read_body, body_bytes=100)


async def run(request: Request, work: Callable[[Job], Awaitable[Any]]) -> Any:
    """Read the request's body, then work."""
    async with admit(request, Priority.NORMAL) as job:
        await read(job)
        return await work(job)


async def wait(_: Job) -> None:
    await asyncio.sleep(20)


def in_use(service: Service) -> list[int]:
    admission = service.admission
    return [admission.images.used, admission.pixels.used, admission.bytes.used]


async def test_it_holds_what_it_reserves_until_it_ends(service: Service, make_request: Make) -> None:
    async with admit(make_request(), Priority.LOW) as job:
        assert in_use(service) == [0, 0, 0]
        assert await read(job) == b"body"
        assert job.pixels_permit().reserve(7)
        assert in_use(service) == [1, 7, 4]
    assert in_use(service) == [0, 0, 0]


async def test_the_deadline_ends_it(service: Service, make_request: Make) -> None:
    with pytest.raises(DeadlineError):
        await run(make_request(X_Request_Timeout_Ms="50"), wait)
    assert in_use(service) == [0, 0, 0]


@pytest.mark.parametrize(("first", "seconds"), [("60000", 0.05), ("50", 60)])
async def test_a_shorter_deadline_ends_it_and_a_longer_one_does_not_extend_it(
    first: str, seconds: float, make_request: Make
) -> None:
    async def shorten(job: Job) -> None:
        job.shorten(seconds)
        await asyncio.sleep(20)

    with pytest.raises(DeadlineError):
        await run(make_request(X_Request_Timeout_Ms=first), shorten)


@pytest.mark.parametrize("deadline_too", [False, True])
async def test_the_caller_who_leaves_ends_it(deadline_too: bool, service: Service, make_request: Make) -> None:
    gone = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, gone.set)
    timeout_ms = "50" if deadline_too else "60000"
    with pytest.raises((ClientGoneError, DeadlineError) if deadline_too else ClientGoneError):
        await run(make_request(gone, X_Request_Timeout_Ms=timeout_ms), wait)
    assert in_use(service) == [0, 0, 0]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_server_that_cancels_it_is_obeyed(service: Service, make_request: Make) -> None:
    task = asyncio.create_task(run(make_request(), wait))
    while in_use(service) != [1, 0, 4]:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert in_use(service) == [0, 0, 0]


async def test_a_deadline_and_a_departure_at_once_leave_no_exception_behind(
    service: Service, make_request: Make
) -> None:
    loop, reported = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))

    async def answered_late(job: Job) -> None:
        answer: asyncio.Future[None] = loop.create_future()

        def give_up() -> None:
            if not answer.done():
                answer.set_exception(UnavailableError("no device answers"))

        loop.call_later(0.01, give_up)
        await answer

    async def in_thread(job: Job) -> None:
        def fail() -> None:
            time.sleep(0.01)
            raise BrokenImageError("broken")

        await job.in_thread(fail)

    works: list[Callable[[Job], Awaitable[Any]]] = [
        answered_late,
        in_thread,
        lambda job: job.gather([answered_late(job), in_thread(job)]),
    ]
    endings = set()
    for number in range(60):
        gone = asyncio.Event()
        loop.call_later(0.01, gone.set)
        try:
            await run(make_request(gone, X_Request_Timeout_Ms="10"), works[number % 3])
        except (ClientGoneError, DeadlineError, UnavailableError, BrokenImageError) as error:
            endings.add(type(error))
    while in_use(service) != [0, 0, 0]:
        await asyncio.sleep(0.001)
    gc.collect()  # asyncio reports an exception that nobody has read when its future is freed
    await asyncio.sleep(0)
    assert reported == []
    assert endings


async def test_memory_stays_reserved_while_a_thread_uses_it(service: Service, make_request: Make) -> None:
    begun, proceed, gone = threading.Event(), threading.Event(), asyncio.Event()

    def decode() -> None:
        begun.set()
        assert proceed.wait(20)

    async def work(job: Job) -> None:
        assert job.pixels_permit().reserve(7)
        await job.in_thread(decode)

    task = asyncio.create_task(run(make_request(gone), work))
    assert await asyncio.to_thread(begun.wait, 20)
    assert in_use(service) == [1, 7, 4]
    gone.set()
    with pytest.raises(ClientGoneError):
        await task
    assert in_use(service) == [1, 7, 4]
    proceed.set()
    async with asyncio.timeout(20):
        while in_use(service) != [0, 0, 0]:
            await asyncio.sleep(0.001)


async def test_work_that_is_cancelled_before_its_turn_releases_its_memory(service: Service, make_request: Make) -> None:
    proceed, ran = threading.Event(), []
    threads = service.settings.decode_threads or usable_cores()

    async def work(job: Job) -> None:
        assert job.pixels_permit().reserve(7)
        for _ in range(threads):
            job.in_thread(lambda: proceed.wait(20))
        await job.in_thread(lambda: ran.append(True))

    with pytest.raises(DeadlineError):
        await run(make_request(X_Request_Timeout_Ms="50"), work)
    assert in_use(service) == [1, 7, 4]
    proceed.set()
    async with asyncio.timeout(20):
        while in_use(service) != [0, 0, 0]:
            await asyncio.sleep(0.001)
    assert not ran


async def test_a_failure_of_the_work_is_its_own(service: Service, make_request: Make) -> None:
    async def fail(_: Job) -> None:
        raise error

    for error in (BrokenImageError("broken"), TimeoutError("of something else")):
        with pytest.raises(type(error)):
            await run(make_request(), fail)
        assert in_use(service) == [0, 0, 0]


async def test_of_several_works_each_ends_as_it_does(service: Service, make_request: Make) -> None:
    async def work(seconds: float, error: Exception | None = None) -> float:
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return seconds

    works: list[Awaitable[float]] = [work(0), work(20), work(0.01, BrokenImageError("broken"))]
    outcomes = await run(make_request(X_Request_Timeout_Ms="200"), lambda job: job.gather(works))
    assert outcomes[0] == 0
    assert [type(outcome) for outcome in outcomes[1:]] == [DeadlineError, BrokenImageError]
    with pytest.raises(ValueError, match="a bug"):
        await run(make_request(), lambda job: job.gather([work(0), work(0, ValueError("a bug"))]))


async def test_several_works_end_when_the_caller_leaves(make_request: Make) -> None:
    gone, ended = asyncio.Event(), []

    async def work() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.append(True)

    asyncio.get_running_loop().call_later(0.05, gone.set)
    with pytest.raises(ClientGoneError):
        await run(make_request(gone), lambda job: job.gather([work(), work()]))
    assert ended == [True, True]


async def test_it_is_rejected_before_its_body_is_read(service: Service, make_request: Make) -> None:
    permit = service.admission.images.permit(Priority.NORMAL)
    assert permit.reserve(2)
    with pytest.raises(QueueFullError):
        admit(make_request(), Priority.NORMAL)
    permit.release()
    service.stop_accepting()
    with pytest.raises(UnavailableError):
        admit(make_request(), Priority.NORMAL)
