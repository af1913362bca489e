"""Names that callers and the service agree on: headers, and the paths of probes."""

from __future__ import annotations

import re

KEY_HEADER = "X-API-Key"
REQUEST_ID_HEADER = "X-Request-ID"
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
PRIORITY_HEADER = "X-Priority"
LENGTH_HEADER = "Inference-Header-Content-Length"  # the Open Inference Protocol's
LONGEST_TIMEOUT_MS = 3_600_000
DEEPSTACK_PATH = "/v1/vision/detection"

# Orchestrators and load balancers ask these without an API key, and often.
PROBE_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})


def timeout_ms(text: str) -> int | None:
    """Read a caller's X-Request-Timeout-Ms, in milliseconds; None where its value is not taken."""
    milliseconds = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    return milliseconds if 1 <= milliseconds <= LONGEST_TIMEOUT_MS else None
