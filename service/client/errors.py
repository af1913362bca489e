"""What can go wrong between a caller and the service.

ClientError
+- ImageError            what was given is no image that can be sent; nothing was sent
+- MissingPackageError   a conversion needs a package that is not installed
+- ConnectionLostError   no connection, or one that broke
+- AnswerError           an answer that is not this service's; is the address right?
+- DeadlineError         the caller's time was over before the answer came
+- ProblemError          the service answered with an error; its problem document says why
   +- BadRequestError        400  not an image, or a damaged one
   +- AuthenticationError    401, 403  no key, a wrong one, or one that may not do this
   +- TooLargeError          413  too many bytes or pixels
   +- UnsupportedTypeError   415  not a type of image that is taken
   +- BadParameterError      422  an option is out of range
   +- QueueFullError         429  more work than fits, or than the key may send
   +- ServerError            5xx  the service failed
      +- UnavailableError    503  loading, draining or failing, or no memory for this image now
      +- ServerDeadlineError 504  the service gave up at the deadline; a DeadlineError as well
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of all that this package raises on purpose."""

    lost_midway: bool = False  # the request had been sent, and its fate is unknown


class ImageError(ClientError, ValueError):
    """Not an image that can be sent: a file that cannot be read, an array of the wrong shape or type."""


class MissingPackageError(ClientError, ImportError):
    """A conversion needs a package that is not installed."""


class ConnectionLostError(ClientError):
    """The service could not be reached, or the connection broke before its answer was there."""


class AnswerError(ClientError):
    """An answer that is not this service's."""


class DeadlineError(ClientError, TimeoutError):
    """The caller's time was over before the answer came."""


class ProblemError(ClientError):
    """The service answered with a problem document (RFC 9457).

    Args:
        detail: what is wrong, in words.
        status: HTTP status.
        code: what is wrong, for programs: the last part of the document's `type`, such as `broken-image`.
        request_id: finds the request in the service's log.
        retry_after_s: when the service asks to come back, if it says.
    """

    def __init__(
        self, detail: str, *, status: int, code: str, request_id: str | None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"


class BadRequestError(ProblemError):
    pass


class AuthenticationError(ProblemError):
    pass


class TooLargeError(ProblemError):
    pass


class UnsupportedTypeError(ProblemError):
    pass


class BadParameterError(ProblemError):
    pass


class QueueFullError(ProblemError):
    pass


class ServerError(ProblemError):
    pass


class UnavailableError(ServerError):
    pass


class ServerDeadlineError(ServerError, DeadlineError):
    pass


BY_STATUS: dict[int, type[ProblemError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    413: TooLargeError,
    415: UnsupportedTypeError,
    422: BadParameterError,
    429: QueueFullError,
    503: UnavailableError,
    504: ServerDeadlineError,
}
