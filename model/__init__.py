"""Faster R-CNN ResNet-50 FPN: torch in, torch out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.build import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2

__all__ = ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]


def __getattr__(name: str) -> Any:
    """Import torch only when the detector is asked for: a command that prints its help does not wait for it."""
    if name in __all__:
        from model import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
