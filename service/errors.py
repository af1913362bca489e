"""What can go wrong for a caller, and how HTTP says it (RFC 9457).

ServiceError
+- BadRequestError          400  the body or a header cannot be understood
+- BrokenImageError         400  not an image, or a damaged one
+- UnauthorizedError        401  no API key, or a wrong one
+- NotAcceptableError       406  no form of the answer is one that the caller takes
+- BodyTimeoutError         408  the body came too slowly; the connection is closed
+- ReloadError              409  the weights cannot be replaced, or are being replaced; the old ones serve on
+- ReloadMemoryError        409  there is no memory for a second model; a reload with a pause needs less
+- TooLargeError            413  too many bytes, pixels or files
+- UnsupportedTypeError     415  not a type of image, or of body, that is taken
+- BadParameterError        422  a query parameter is out of range
+- QueueFullError           429  more work than fits
+- TooLateError             429  the deadline would pass in the queue
+- HeadTooLargeError        431  the address and the headers are too long; the connection is closed
+- InferenceError           500  the device failed on this image, which is not the image's fault
+- UnavailableError         503  loading, draining or failing, or no memory for this request now
+- DeadlineError            504  the deadline passed before the answer was ready

docs/make.py makes the table of codes in docs/api.md from this tree and the classes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar

PROBLEM_TYPE = "application/problem+json"
_LONGEST_DETAIL = 1000  # it may repeat what the caller sent
RETRY_WITHOUT_MEMORY_S = 5
CLIENT_CLOSED_REQUEST = 499  # nobody reads it: the log and the metrics count it


# Codes of answers that come from no ServiceError, by status, and what they mean.
OTHER_CODES = {
    404: ("no-such-path", "the service has no such path"),
    405: ("wrong-method", "the path takes other methods, which `Allow` lists"),
    500: ("internal", "a fault of the service; its log has the trace"),
}
_AFTER_A_PAUSE = "after a pause (`Retry-After`)"


class ServiceError(Exception):
    """An expected failure, with the status and the code that HTTP gives it."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal"
    close_connection: ClassVar[bool] = False
    retry: ClassVar[str] = "no"  # whether, or when, the same request may succeed

    def __init__(self, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail if len(detail) <= _LONGEST_DETAIL else f"{detail[:_LONGEST_DETAIL]}..."
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with the answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"Connection": "close"} if self.close_connection else {})


class BadRequestError(ServiceError):
    status, code = HTTPStatus.BAD_REQUEST, "bad-request"


class BrokenImageError(ServiceError):
    status, code = HTTPStatus.BAD_REQUEST, "broken-image"


class UnauthorizedError(ServiceError):
    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"

    def __init__(self, detail: str, *, challenge: str) -> None:
        super().__init__(detail)
        self.challenge = challenge  # which key is wanted (RFC 9110, section 11.6.1)

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"WWW-Authenticate": self.challenge}


class NotAcceptableError(ServiceError):
    status, code = HTTPStatus.NOT_ACCEPTABLE, "not-acceptable"


class BodyTimeoutError(ServiceError):
    status, code = HTTPStatus.REQUEST_TIMEOUT, "body-timeout"
    close_connection = True
    retry = "on a new connection"


class ReloadError(ServiceError):
    status, code = HTTPStatus.CONFLICT, "reload-failed"


class ReloadMemoryError(ServiceError):
    status, code = HTTPStatus.CONFLICT, "reload-needs-memory"


class TooLargeError(ServiceError):
    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large"


class UnsupportedTypeError(ServiceError):
    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-type"


class BadParameterError(ServiceError):
    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "bad-parameter"


class QueueFullError(ServiceError):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "queue-full"
    retry = _AFTER_A_PAUSE


class TooLateError(ServiceError):
    status, code = HTTPStatus.TOO_MANY_REQUESTS, "too-late"
    retry = _AFTER_A_PAUSE


class HeadTooLargeError(ServiceError):
    status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large"


class InferenceError(ServiceError):
    status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "inference-failed"
    retry = "once"


class UnavailableError(ServiceError):
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"
    retry = _AFTER_A_PAUSE

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)


class DeadlineError(ServiceError):
    status, code = HTTPStatus.GATEWAY_TIMEOUT, "deadline-passed"
    retry = "with more time"


def problem(*, status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    """A problem document: the body of every answer that is not a success."""
    return {
        "type": f"urn:faster-rcnn-service:{code}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "request_id": request_id,
    }
