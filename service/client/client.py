"""The service from Python: `DetectionClient`, and `AsyncDetectionClient` for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, Unpack

import httpx

from service.client.errors import ClientError
from service.client.exchange import DetectOptions, DrawnFormat, Exchange, Exchanges
from service.client.images import ImageSource, check_several, to_bytes
from service.client.results import DetectionResult
from service.client.retries import RetryPolicy

T = TypeVar("T")
Outcome: TypeAlias = "DetectionResult | ClientError"

# Connections are bounded by the calls at a time; httpx's own limit would let the next call wait in silence.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
# Results keep their order, so a slow one holds back those after it; this many times the concurrency are kept meanwhile.
_LOOKAHEAD = 4


class DetectionClient:
    """Calls the service. Threads may share one. Use it in a `with` statement, or call `close`.

    Args:
        url: address of the service.
        api_key: if the service asks for one.
        timeout_s: until when an answer must be there, retries included. The service gets it as the deadline, and
            stops then.
        retry: when to try again.
        transport: carries the requests, for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._exchanges = Exchanges(url, api_key=api_key, timeout_s=timeout_s, retry=retry)
        self._http = httpx.Client(transport=transport, limits=_LIMITS)

    def detect(self, image: ImageSource, **options: Unpack[DetectOptions]) -> DetectionResult:
        """What is in an image: a path, a file's bytes, a Pillow image, or a uint8 array `[H, W, 3]` in RGB.

        Raises:
            ClientError: see `service.client.errors`.
        """
        return self._run(self._exchanges.detect(to_bytes(image), options))

    def detect_many(
        self, images: Iterable[ImageSource], *, concurrency: int = 8, **options: Unpack[DetectOptions]
    ) -> Iterator[Outcome]:
        """The results of many images in their order, `concurrency` at a time. Images are taken as they are needed.

        A failure is given in its image's place, as the `ClientError` that `detect` would have raised, and the others
        go on. `timeout_s` counts for each image. Nothing is sent before the first result is asked for.
        """
        check_several(images)
        waiting: deque[Future[Outcome]] = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="detect-many")
        try:
            for image in images:
                if len(waiting) == _LOOKAHEAD * concurrency:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(self._outcome, image, options))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def draw(self, image: ImageSource, *, image_format: DrawnFormat = "png", **options: Unpack[DetectOptions]) -> bytes:
        """The image as a file, with the boxes drawn on it."""
        return self._run(self._exchanges.draw(to_bytes(image), image_format, options))

    def labels(self) -> dict[int, str]:
        """The classes that detections can have: id to name."""
        return self._run(self._exchanges.labels())

    def health(self) -> dict[str, Any]:
        """What `/healthz` says, also when it is not `ok`."""
        return self._run(self._exchanges.health())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _outcome(self, image: ImageSource, options: DetectOptions) -> Outcome:
        try:
            return self.detect(image, **options)
        except ClientError as error:
            return error

    def _run(self, exchange: Exchange[T]) -> T:
        outcome: httpx.Response | httpx.HTTPError | None = None
        while True:
            try:
                step = exchange.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, httpx.Request):
                try:
                    outcome = self._http.send(step)
                except httpx.HTTPError as error:
                    outcome = error
            else:
                time.sleep(step)
                outcome = None


class AsyncDetectionClient:
    """`DetectionClient` for asyncio: the same arguments, methods, results and errors.

    Use it in an `async with` statement, or await `aclose`. Cancelling a call closes its connection, and the service
    stops working on it.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._exchanges = Exchanges(url, api_key=api_key, timeout_s=timeout_s, retry=retry)
        self._http = httpx.AsyncClient(transport=transport, limits=_LIMITS)

    async def detect(self, image: ImageSource, **options: Unpack[DetectOptions]) -> DetectionResult:
        """See `DetectionClient.detect`. Files are read and pixels encoded in a thread."""
        return await self._run(self._exchanges.detect(await asyncio.to_thread(to_bytes, image), options))

    async def detect_many(
        self, images: Iterable[ImageSource], *, concurrency: int = 8, **options: Unpack[DetectOptions]
    ) -> AsyncIterator[Outcome]:
        """See `DetectionClient.detect_many`."""
        check_several(images)
        waiting: deque[asyncio.Task[Outcome]] = deque()
        places = asyncio.Semaphore(concurrency)
        try:
            for image in images:
                if len(waiting) == _LOOKAHEAD * concurrency:
                    yield await waiting.popleft()
                waiting.append(asyncio.create_task(self._outcome(image, options, places)))
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def draw(
        self, image: ImageSource, *, image_format: DrawnFormat = "png", **options: Unpack[DetectOptions]
    ) -> bytes:
        """See `DetectionClient.draw`."""
        return await self._run(self._exchanges.draw(await asyncio.to_thread(to_bytes, image), image_format, options))

    async def labels(self) -> dict[int, str]:
        """See `DetectionClient.labels`."""
        return await self._run(self._exchanges.labels())

    async def health(self) -> dict[str, Any]:
        """See `DetectionClient.health`."""
        return await self._run(self._exchanges.health())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _outcome(self, image: ImageSource, options: DetectOptions, places: asyncio.Semaphore) -> Outcome:
        async with places:
            try:
                return await self.detect(image, **options)
            except ClientError as error:
                return error

    async def _run(self, exchange: Exchange[T]) -> T:
        outcome: httpx.Response | httpx.HTTPError | None = None
        while True:
            try:
                step = exchange.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, httpx.Request):
                try:
                    outcome = await self._http.send(step)
                except httpx.HTTPError as error:
                    outcome = error
            else:
                await asyncio.sleep(step)
                outcome = None
