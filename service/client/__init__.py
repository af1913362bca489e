"""The service from Python. Needs httpx and numpy; neither torch nor the server's own dependencies."""

from service.client.client import AsyncDetectionClient, DetectionClient
from service.client.errors import (
    AnswerError,
    AuthenticationError,
    BadParameterError,
    BadRequestError,
    ClientError,
    ConnectionLostError,
    DeadlineError,
    ImageError,
    MissingPackageError,
    ProblemError,
    QueueFullError,
    ServerDeadlineError,
    ServerError,
    TooLargeError,
    UnavailableError,
    UnsupportedTypeError,
)
from service.client.results import Detection, DetectionResult
from service.client.retries import RetryPolicy
from service.client.timing import Timing

__all__ = [
    "AnswerError",
    "AsyncDetectionClient",
    "AuthenticationError",
    "BadParameterError",
    "BadRequestError",
    "ClientError",
    "ConnectionLostError",
    "DeadlineError",
    "Detection",
    "DetectionClient",
    "DetectionResult",
    "ImageError",
    "MissingPackageError",
    "ProblemError",
    "QueueFullError",
    "RetryPolicy",
    "ServerDeadlineError",
    "ServerError",
    "Timing",
    "TooLargeError",
    "UnavailableError",
    "UnsupportedTypeError",
]
