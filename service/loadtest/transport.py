"""What the schedule knows of HTTP: a transport sends an image and tells once how that ended."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Protocol, TypeAlias

# What went wrong (empty: nothing), when the request was written to a connection (if it never was, when it was handed
# over), when all was over, both on the monotonic clock, and the Server-Timing header.
OnReply: TypeAlias = Callable[[str, float, float, bytes], None]

LOST, TIMED_OUT, GARBLED = "connection lost", "no answer in time", "answer is not HTTP"
NO_CONNECTION_IN_TIME = "no connection in time"
GRACE_S = 1.0  # after the service's own deadline, for its 504 to arrive


class Transport(Protocol):
    """Sends a plan's images over connections that are kept alive. Open them as needed; never wait for a free one."""

    def send(self, image: int, on_reply: OnReply) -> None:
        """Post the plan's image of this number, and tell how it ended: once, and never before this returns."""

    async def close(self) -> None:
        """Close the connections, none of which is in use."""


def refusal(status: int, body: bytes) -> str:
    """`429 queue-full`, from a problem document; the status alone if the body is none."""
    try:
        return f"{status} {json.loads(body)['type'].rpartition(':')[2]}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return str(status)


def no_connection(error: BaseException) -> str:
    """`no connection: Connection refused`: what came first, in the system's words."""
    while first := error.__cause__ or error.__context__:
        error = first.exceptions[0] if isinstance(first, BaseExceptionGroup) else first  # one of a host's addresses
    words = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message
    return f"no connection: {(words or str(error)).split(':')[0]}"
