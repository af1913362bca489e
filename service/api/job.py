"""One admitted request: what it may use, how long it may take, and what ends it early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Self, TypeVar

from starlette.requests import Request

from service.api.uploads import UploadLimits
from service.batching.batch_queue import PRIORITIES, Priority
from service.batching.budgets import Permit, release_with
from service.batching.decode_threads import USUAL_COST, Continuation
from service.errors import BadParameterError, DeadlineError, ServiceError
from service.lifecycle import Service
from service.settings import Settings
from service.web.callers import caller_of
from service.wire import LONGEST_TIMEOUT_MS, PRIORITY_HEADER, TIMEOUT_HEADER, timeout_ms

if TYPE_CHECKING:
    from types import TracebackType

_UNWATCHED_S = 0.1

T = TypeVar("T")
Reader = Callable[[Request, UploadLimits], Awaitable[T]]


class ClientGoneError(Exception):
    """The caller closed the connection before the answer was ready."""


def service_of(request: Request) -> Service:
    """The service that a request is for."""
    service: Service = request.app.state.service
    return service


def admit(request: Request, usual: Priority) -> Job:
    """Admit a request, or reject it before its body is read: `async with admit(request, priority) as job`.

    Args:
        request: gives the deadline and the priority in its headers.
        usual: the priority of a request that names none.

    Raises:
        BadParameterError: a header is wrong.
        UnavailableError: the service is loading, draining or failing.
        QueueFullError, TooLateError: see `Admission.check`.
    """
    service = service_of(request)
    milliseconds, priority = _scheduling(request, service.settings, usual)
    return Job(service, request, seconds=milliseconds / 1000, priority=priority)


class Job:
    """A request from its admission to its answer: deadline, priority, reserved units and disconnect, in one scope.

    The scope ends the request's work when the deadline passes or the caller leaves. What is reserved is released then;
    what a decoding thread still uses, when the thread is done with it, and the memory of a picture or of a drawn
    answer, when that is freed (`keep_with`).

    Args:
        service: takes the request.
        request: its body has not been read.
        seconds: until the deadline.
        priority: how soon its turn comes.

    Raises:
        UnavailableError, QueueFullError, TooLateError: see `admit`.
    """

    def __init__(self, service: Service, request: Request, *, seconds: float, priority: Priority) -> None:
        admission = service.admission
        self.batcher = service.batcher  # accepted work still uses it when the service has begun to drain since
        self.service = service
        self.settings = service.settings
        self.request = request
        self.priority = priority
        self.caller = caller_of(request.scope, service.settings.fair_share)
        self._loop = asyncio.get_running_loop()
        self._admitted = self._loop.time()
        self._deadline = self._admitted + seconds
        admission.check(priority=priority, seconds_left=seconds, caller=self.caller)
        self._images = admission.images.permit(priority, self.caller)
        self._bytes = admission.bytes.permit(priority, self.caller)
        self._permits = [self._images, self._bytes]  # released when no thread works for this job any more
        self._threads = 0  # that work for this job
        self._ended = False
        self._scope = asyncio.timeout_at(self._deadline)
        self._client_gone = False
        self._watcher: asyncio.TimerHandle | asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # it keeps the frame that it was cancelled in, which holds this job
        self._ended = True
        self._release()
        try:
            await self._scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise self._ended_by() from None

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self._deadline - self._loop.time()

    def shorten(self, seconds: float) -> None:
        """Move the deadline to `seconds` after the admission, if that is sooner."""
        self._deadline = min(self._deadline, self._admitted + seconds)
        self._end_scope_at(self._deadline)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage of the request."""
        return self.service.stages.stage(name)

    def in_thread(self, work: Callable[[], T | Continuation], *, cost: int = USUAL_COST) -> asyncio.Future[T]:
        """Run work that blocks in a decoding thread. The job's place and memory stay reserved until it is over.

        Args:
            work: see `DecodeThreads.submit`, as is `cost`.
        """
        future = self.service.in_thread(work, on_end=self._thread_ended, caller=self.caller, cost=cost)
        self._threads += 1
        return future

    async def read(self, reader: Reader[T], *, body_bytes: int, files: int = 1) -> T:
        """Read the body, then reserve its images and watch for the caller's disconnect.

        Args:
            reader: one of `uploads`.
            body_bytes: most bytes of the body.
            files: most images in it.

        Raises:
            ServiceError: what `reader` raises, or the rejection of the images.
        """
        limits = UploadLimits(
            body_bytes=body_bytes,
            files=min(files, self.most_images),
            seconds=self.settings.body_timeout_s,
            reserve=self._reserve_bytes,
            in_thread=self.in_thread,
            working=self.working,
        )
        with self.stage("read"):
            found = await reader(self.request, limits)
        count = len(found) if isinstance(found, list) else 1
        self.reserve_images(count)
        # A task costs more than a small part of an answer that comes sooner.
        self._watcher = self._loop.call_later(_UNWATCHED_S, self._watch)
        return found

    @property
    def most_images(self) -> int:
        """Most images that a request of this priority can have in flight."""
        return self.service.admission.images.capacity_for(self.priority)

    def reserve_images(self, count: int) -> None:
        """Reserve so many more. Raises what `Admission.check` raises."""
        self.service.admission.reserve_images(self._images, count, seconds_left=self.seconds_left)

    def pixels_permit(self) -> Permit:
        """A permit for the pixels of one image, released with the job or before."""
        return self._kept(self.service.admission.pixels.permit(self.priority, self.caller))

    def memory_permit(self) -> Permit:
        """A permit for memory beside the body's, released with the job or before."""
        return self._kept(self.service.admission.memory.permit(self.priority, self.caller))

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """Reserve memory that a thread of this job needs, until it is done.

        Raises:
            QueueFullError: there is no memory for it now.
        """
        permit = self.memory_permit()
        if not permit.reserve(size):
            raise self.service.admission.memory_full()
        yield
        permit.release()  # not after a failure, when the thread may still be at work: the job releases it then

    def keep_with(self, thing: object, permit: Permit) -> None:
        """Keep a permit until the thing is freed, if that is after the job."""
        release_with(thing, permit, self._loop)

    async def gather(self, works: Sequence[Awaitable[T]]) -> list[T | ServiceError]:
        """The results in order. A work that fails, or is not done by the deadline, gets its own error instead."""
        tasks = [asyncio.ensure_future(work) for work in works]
        self._end_scope_at(None)  # the wait itself ends at the deadline, and keeps what is done
        try:
            await asyncio.wait(tasks, timeout=max(self.seconds_left, 0))
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        results: list[T | ServiceError] = []
        for outcome in outcomes:
            if isinstance(outcome, asyncio.CancelledError):
                results.append(_deadline_passed())
            elif isinstance(outcome, BaseException) and not isinstance(outcome, ServiceError):
                raise outcome
            else:
                results.append(outcome)
        return results

    def _kept(self, permit: Permit) -> Permit:
        self._permits.append(permit)
        return permit

    def _thread_ended(self) -> None:
        self._threads -= 1
        self._release()

    def _release(self) -> None:
        """Release all, when the job has ended and no thread works for it: a thread that is stuck counts, too."""
        if self._ended and not self._threads:
            for permit in self._permits:
                permit.release()

    def _reserve_bytes(self, count: int) -> None:
        self.service.admission.reserve_bytes(self._bytes, count)

    def _watch(self) -> None:
        self._watcher = self._loop.create_task(self._disconnect())

    async def _disconnect(self) -> None:
        """Wait for the caller to leave, then end the scope."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self._client_gone = True
        self._end_scope_at(self._loop.time())

    def _end_scope_at(self, when: float | None) -> None:
        if not self._scope.expired():
            self._scope.reschedule(when)

    def _ended_by(self) -> Exception:
        return ClientGoneError() if self._client_gone else _deadline_passed()


def _deadline_passed() -> DeadlineError:
    return DeadlineError("the deadline passed before the answer was ready")


def _scheduling(request: Request, settings: Settings, usual: Priority) -> tuple[int, Priority]:
    """The milliseconds until the deadline and the priority, by the headers or else by the settings and the route."""
    text = request.headers.get(TIMEOUT_HEADER)
    milliseconds = settings.request_timeout_ms if text is None else timeout_ms(text)
    if milliseconds is None:
        raise BadParameterError(f"{TIMEOUT_HEADER} must be a whole number from 1 to {LONGEST_TIMEOUT_MS}")
    if PRIORITY_HEADER not in request.headers:
        return milliseconds, usual
    name = ", ".join(request.headers.getlist(PRIORITY_HEADER)).strip().lower()
    if name not in PRIORITIES:
        raise BadParameterError(f"{PRIORITY_HEADER} must be one of {', '.join(PRIORITIES)}")
    return milliseconds, PRIORITIES[name]
