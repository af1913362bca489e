"""What a load test does: where to, what, how much, how long."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

# Open loop: arrivals come at random at a mean rate, whether or not answers keep up. Closed loop: each of some callers
# waits for an answer before it sends again, so a slow service gets fewer requests.

_GOAL = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*(?:=|<=?)\s*(\d+(?:\.\d+)?)\s*(ms|s)")


class PlanError(ValueError):
    """A plan that cannot be carried out; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Args:
        path: of the detection, with the query.
        prefix: of all paths of the service, where a proxy gives it one.
    """

    host: str
    port: int
    path: str
    tls: bool
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Target:
        """The address of a service, with or without a path prefix, `/detect` and a query.

        Raises:
            PlanError: no http or https address.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise PlanError(f"{url}: {error}") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise PlanError(f"{url} is no address of a service; it looks like http://127.0.0.1:8000")
        prefix = parts.path.rstrip("/").removesuffix("/detect")
        path = f"{prefix}/detect?{parts.query}" if parts.query else f"{prefix}/detect"
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), path, tls, prefix)

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """Of the service, as its client takes it."""
        return self.origin + self.prefix

    def ssl_context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.tls else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run.

    Args:
        images: the files to send, in turn.
        rate: mean arrivals a second (open loop), or None.
        concurrency: callers (closed loop), or None.
        duration_s: what is measured, after `warmup_s` of the same load that is not.
        timeout_s: an answer that takes longer counts as failed. The service gets it as the deadline.
        most_in_flight: requests of one process at a time in open loop; arrivals beyond it are dropped, and counted.
        seed: of the arrivals and of the images' order.
    """

    target: Target
    images: tuple[bytes, ...]
    duration_s: float
    rate: float | None = None
    concurrency: int | None = None
    warmup_s: float = 2.0
    timeout_s: float = 60.0
    api_key: str | None = None
    most_in_flight: int = 1000
    seed: int = 0

    def headers(self) -> list[tuple[str, str]]:
        """What every request says, whatever its image."""
        headers = [
            ("User-Agent", "frcnn-loadtest"),
            ("Accept", "application/json"),
            ("Content-Type", "application/octet-stream"),
            ("X-Request-Timeout-Ms", str(max(int(self.timeout_s * 1000), 1))),
        ]
        if self.api_key is not None:
            headers.append(("Authorization", f"Bearer {self.api_key}"))
        return headers

    def order(self) -> list[int]:
        """The images' numbers as they are sent, time and again."""
        order: list[int] = np.random.default_rng(self.seed).permutation(len(self.images)).tolist()
        return order

    def arrivals(self) -> Iterator[float]:
        """Seconds from the start, of warm-up and measurement: a Poisson process."""
        assert self.rate is not None, "only the open loop has arrivals: this is a bug"
        random = np.random.default_rng([self.seed, 1])
        at = 0.0
        while True:
            for gap in random.exponential(1 / self.rate, 1000).tolist():
                at += gap
                if at >= self.warmup_s + self.duration_s:
                    return
                yield at


@dataclass(frozen=True, slots=True)
class Goal:
    """A share of the requests that must be answered, with success, within a time.

    Args:
        quantile: 0 to 1.
    """

    quantile: float
    limit_s: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """From such as `p99=200ms` or `p99.9=1.5s`.

        Raises:
            PlanError: it is not of this form.
        """
        found = _GOAL.fullmatch(text.strip())
        if found is None or float(found[2]) <= 0:
            raise PlanError(f"{text!r} is no goal; it looks like p99=200ms or p99.9=1.5s")
        return cls(round(float(found[1]) / 100, 9), float(found[2]) / (1000 if found[3] == "ms" else 1))

    def __str__(self) -> str:
        return f"p{self.quantile * 100:g} within {self.limit_s * 1000:g} ms"
