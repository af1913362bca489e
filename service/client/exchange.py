"""What the synchronous and the asynchronous client share: all but the sending and the waiting.

An exchange is a generator. It yields an `httpx.Request` to be sent, or seconds to be waited, is sent the response (or
httpx's error) in return, and ends with the result. So the order of things is written once, and the two clients differ
in a few lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import httpx

from service.client.errors import (
    BY_STATUS,
    AnswerError,
    ClientError,
    ConnectionLostError,
    DeadlineError,
    ProblemError,
    ServerError,
    UnavailableError,
)
from service.client.results import BoxFormat, DetectionResult, from_json
from service.client.retries import RetryPolicy, retry_after_s

T = TypeVar("T")
Exchange: TypeAlias = "Generator[httpx.Request | float, httpx.Response | httpx.HTTPError | None, T]"
DrawnFormat = Literal["png", "jpeg"]

_CONNECT_S = 5.0  # a lost packet is worth another attempt before the deadline
LONGEST_TIMEOUT_MS = 3_600_000  # that the service takes
# The service itself never answers so without a problem document: it was lost, or is not up.
_LOST_BEHIND_A_PROXY = (500, 502)
_STEPS = ("connect", "read", "write", "pool")


class DetectOptions(TypedDict, total=False):
    """What can be asked of a detection; what is left out is left to the service.

    score_threshold: drop detections that score lower, 0 to 1; "0.5,person:0.8" has another for a class.
    max_detections: keep this many of the best, 1 to 100; with `tile` up to 10,000.
    labels: keep only these classes: names and ids in a sequence, or a text of them, separated by commas.
    iou_threshold: of two detections of a class that overlap more than this, drop the lower; at most the model's own.
    class_agnostic: of two that overlap so, drop the lower whatever their classes.
    tile: look at a large picture in tiles of this many pixels a side.
    tile_overlap: share of its side that a tile has in common with the next.
    tile_whole: whether the picture is looked at as a whole, too; it is by default.
    box_format: xyxy, xywh or cxcywh.
    normalized: boxes as fractions of the image's width and height.
    timeout_s: until when the answer must be there, retries included; the client's own by default.
    """

    score_threshold: float | str
    max_detections: int
    labels: str | Sequence[str | int]
    iou_threshold: float
    class_agnostic: bool
    tile: int
    tile_overlap: float
    tile_whole: bool
    box_format: BoxFormat
    normalized: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    path: str
    accept: str = "application/json"
    params: Mapping[str, str | list[str]] | None = None
    content: bytes | None = None


class TimeLeft(Mapping[str, float]):
    """httpx's timeouts, read again for each step of sending and receiving, so that all steps share one deadline."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock

    def __getitem__(self, step: str) -> float:
        left_s = max(self._deadline - self._clock(), 0.001)
        return min(left_s, _CONNECT_S) if step == "connect" else left_s

    def __iter__(self) -> Iterator[str]:
        return iter(_STEPS)

    def __len__(self) -> int:
        return len(_STEPS)


class Exchanges:
    """Builds requests, reads answers, decides about retries. Sends nothing.

    Args:
        url: address of the service.
        api_key: sent as a bearer token.
        timeout_s: for calls that set none.
        retry: when to try again.
        clock: seconds, for deadlines.
        random: for jitter.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        retry: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")) or not httpx.URL(url).host:
            raise ValueError(f"{url!r} is no address of a service; it begins with http:// or https://")
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": "faster-rcnn-service-client"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = _seconds(timeout_s)
        self._retry = retry
        self._clock = clock
        self._random = random or Random()  # noqa: S311 - jitter is no secret

    def detect(self, image: bytes, options: DetectOptions) -> Exchange[DetectionResult]:
        call = _Call("POST", "/detect", params=_query(options), content=image)
        response = yield from self._answered(call, options.get("timeout_s"))
        return from_json(
            _json(response),
            box_format=options.get("box_format", "xyxy"),
            normalized=options.get("normalized", False),
            headers=response.headers,
        )

    def draw(self, image: bytes, image_format: DrawnFormat, options: DetectOptions) -> Exchange[bytes]:
        call = _Call("POST", "/detect", f"image/{image_format}", _query(options), image)
        response = yield from self._answered(call, options.get("timeout_s"))
        if response.headers.get("content-type") != call.accept:
            raise AnswerError(f"{response.url} did not answer with {call.accept}; is this the right address?")
        return response.content

    def labels(self) -> Exchange[dict[int, str]]:
        response = yield from self._answered(_Call("GET", "/labels"), None)
        try:
            return {label["id"]: label["name"] for label in _json(response)["labels"]}
        except (KeyError, TypeError) as error:
            raise AnswerError(f"{response.url} is not what /labels gives; is this the right address?") from error

    def health(self) -> Exchange[dict[str, Any]]:
        outcome = yield self._request(_Call("GET", "/healthz"), self._clock() + self._timeout_s)
        if not isinstance(outcome, httpx.Response):
            raise _transport_error(outcome)
        body = _json(outcome)
        if not isinstance(body, dict) or "status" not in body:
            raise AnswerError(f"{outcome.url} is not what /healthz gives; is this the right address?")
        return body

    def _answered(self, call: _Call, timeout_s: float | None) -> Exchange[httpx.Response]:
        """The response to a call that succeeds, in time, after as many attempts as the policy allows."""
        deadline = self._clock() + _seconds(self._timeout_s if timeout_s is None else timeout_s)
        lost = 0
        for failures in count(1):
            outcome = yield self._request(call, deadline)
            if isinstance(outcome, httpx.Response):
                if outcome.status_code == 200:
                    return outcome
                error: ClientError = _problem(outcome)
            else:
                error = _transport_error(outcome)
            lost += error.lost_midway
            pause_s = self._retry.pause_s(error, failures, lost, self._random)
            # The error tells the caller more than that another try would have been too late.
            if pause_s is None or self._clock() + pause_s >= deadline:
                raise error
            yield pause_s
        raise AssertionError("counting never ends: this is a bug")

    def _request(self, call: _Call, deadline: float) -> httpx.Request:
        left_ms = int((deadline - self._clock()) * 1000)
        headers = {
            **self._headers,
            "Accept": call.accept,
            "X-Request-Timeout-Ms": str(min(max(left_ms, 1), LONGEST_TIMEOUT_MS)),
        }
        if call.content is not None:
            headers["Content-Type"] = "application/octet-stream"
        return httpx.Request(
            call.method,
            f"{self._url}{call.path}",
            params=call.params,
            headers=headers,
            content=call.content,
            extensions={"timeout": TimeLeft(deadline, self._clock)},
        )


def _query(options: DetectOptions) -> dict[str, str | list[str]]:
    query: dict[str, str | list[str]] = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if name not in {"labels", "timeout_s"}
    }
    if "labels" in options:
        labels = options["labels"]
        query["labels"] = labels if isinstance(labels, str) else _labels(labels)
    return query


def _labels(wanted: Sequence[str | int]) -> str | list[str]:
    """Ids with their mark, as a class may have a number for its name; names with commas in parameters of their own."""
    texts = [one if isinstance(one, str) else f"#{one}" for one in wanted]
    return texts if any("," in text for text in texts) else ",".join(texts)


def _seconds(timeout_s: float) -> float:
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise ValueError(f"timeout_s is a number of seconds over 0, not {timeout_s!r}")
    return timeout_s


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise AnswerError(f"{response.url} did not answer with JSON; is this the right address?") from error


def _problem(response: httpx.Response) -> ClientError:
    status = response.status_code
    if status < 400:
        return AnswerError(f"{response.url} answered {status} {response.reason_phrase}; is this the right address?")
    document: Any = None
    lost = False
    kind = BY_STATUS.get(status, ServerError if status >= 500 else ProblemError)
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        document = _json(response)
    if not isinstance(document, dict):  # of a proxy between
        document = {"detail": f"{response.url} answered {status} {response.reason_phrase}"}
        lost = status in _LOST_BEHIND_A_PROXY
        if lost:
            kind = UnavailableError
    error = kind(
        str(document.get("detail", "")),
        status=status,
        code=str(document.get("type", "about:blank")).rpartition(":")[2],
        request_id=document.get("request_id", response.headers.get("x-request-id")),
        retry_after_s=retry_after_s(response.headers.get("retry-after")),
    )
    error.lost_midway = lost
    return error


def _transport_error(error: httpx.HTTPError | None) -> ClientError:
    assert error is not None, "a request was answered by nothing: this is a bug"
    in_words = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        failure: ClientError = DeadlineError("the time for this request was over before its answer came")
    else:
        failure = ConnectionLostError(f"{error.request.url.copy_with(path='/', query=None)}: {in_words}")
        failure.lost_midway = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    failure.__cause__ = error
    return failure
