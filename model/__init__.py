"""Faster R-CNN ResNet-50 FPN: torch in, torch out."""

from model.build import fasterrcnn_resnet50_fpn

__all__ = ["fasterrcnn_resnet50_fpn"]
