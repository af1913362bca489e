"""Real answers, for the OpenAPI document: what `--weights bundled --precision fp32` says of `frcnn sample`'s picture.

A test asks for each of them again.
"""

from __future__ import annotations

from typing import Any

_MODEL = {"name": "fasterrcnn_resnet50_fpn", "weights": "bundled", "version": "9bf86393ebff"}
DETECTION: dict[str, Any] = {
    "boxes": [
        [534.6039, 204.2194, 628.0342, 294.7574],
        [251.504, 148.3059, 354.6571, 257.6743],
        [158.7736, 149.2748, 254.3791, 242.3065],
    ],
    "labels": [2, 2, 2],
    "scores": [0.999937, 0.999732, 0.99954],
    "label_names": ["RBC", "RBC", "RBC"],
    "image": {"width": 640, "height": 480},
    "model": _MODEL,
}
PROBLEM: dict[str, Any] = {
    "type": "urn:faster-rcnn-service:broken-image",
    "title": "Bad Request",
    "status": 400,
    "detail": "this is not an image; accepted are JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF",
    "request_id": "861b323140304744981683dbb53f1f42",
}
BATCH: dict[str, Any] = {"results": [DETECTION, PROBLEM]}
LABELS: dict[str, Any] = {
    "labels": [{"id": 1, "name": "Platelets"}, {"id": 2, "name": "RBC"}, {"id": 3, "name": "WBC"}]
}
HEALTH: dict[str, Any] = {
    "status": "ok",
    "detail": "the model is loaded and its device answers",
    "version": "0.1.0",
    "uptime_s": 385.009,
    "model": _MODEL,
    "devices": ["cpu"],
    "precision": "fp32",
    "backend": "torch",
    "max_batch_size": 1,
    "iou_threshold": 0.5,
    "batch_caps": {},
    "images_in_flight": 0,
    "queue_capacity": 256,
}
