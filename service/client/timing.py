"""The Server-Timing header, which says where a request's time went."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_DURATION = re.compile(r"([A-Za-z0-9_.-]+)\s*;\s*dur=([0-9.]+)")
_BATCH = re.compile(r'batch\s*;\s*desc="?(\d+)')


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds in each stage of the service, such as decode, queue and inference; images in the batch."""

    stages_ms: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None

    @classmethod
    def parse(cls, header: str) -> Timing:
        """What a Server-Timing header says; what cannot be understood is left out."""
        batch = _BATCH.search(header)
        stages = {name: float(text) for name, text in _DURATION.findall(header) if text.count(".") <= 1 and text != "."}
        return cls(stages, int(batch[1]) if batch else None)
