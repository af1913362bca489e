"""When to try again, and how long to wait before."""

from __future__ import annotations

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random

from service.client.errors import ClientError, ConnectionLostError, QueueFullError, UnavailableError

_WORTH_ANOTHER_TRY = (ConnectionLostError, QueueFullError, UnavailableError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Bounded, growing, jittered pauses, never shorter than the service's `Retry-After`.

    Detecting changes nothing in the service, so a request may safely be sent again. That is done when there was no
    connection or it broke, on 429 and 503, and on a proxy's own 500 and 502; nothing else would end differently.

    Args:
        attempts: requests in all; 1 never tries again.
        resends: how often a request whose fate is unknown is sent again: it may be the one that broke the service.
        first_pause_s: bound of the first pause; it doubles with each failure.
        longest_pause_s: bound of any pause, `Retry-After` not counted.
    """

    attempts: int = 5
    resends: int = 2
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.resends, self.first_pause_s, self.longest_pause_s) < 0:
            raise ValueError(f"at least one attempt, and no pause below 0: {self}")

    def pause_s(self, error: ClientError, failures: int, lost: int, random: Random) -> float | None:
        """Seconds to wait after the given number of failures, so many of them lost midway, or None to give up.

        The whole pause is random (after Retry-After, its excess), so that callers who were rejected together do not
        come back together.
        """
        if failures >= self.attempts or lost > self.resends or not isinstance(error, _WORTH_ANOTHER_TRY):
            return None
        asked_s = getattr(error, "retry_after_s", None) or 0.0
        bound_s = min(self.first_pause_s * 2 ** (failures - 1), self.longest_pause_s)
        return float(asked_s + random.uniform(0, bound_s))


def retry_after_s(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for: a number, or the time until a date (RFC 9110, section 10.2.3)."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
