"""This API's part of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.api import openapi

IMAGE_FIELD, CONFIDENCE_FIELD, KEY_FIELD = "image", "min_confidence", "api_key"
USUAL_CONFIDENCE = 0.4  # DeepStack's own


class Prediction(BaseModel):
    """One object; its box in pixels of the upright image."""

    label: str
    confidence: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class Predictions(BaseModel):
    """What was found, best first, and the seconds that took."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "success": True,
                    "predictions": [
                        {"label": "RBC", "confidence": 0.999937, "x_min": 535, "y_min": 204, "x_max": 628, "y_max": 295}
                    ],
                    "duration": 0.61,
                }
            ]
        }
    )

    success: bool
    predictions: list[Prediction]
    duration: float


_FORM = {
    "type": "object",
    "required": [IMAGE_FIELD],
    "properties": {
        IMAGE_FIELD: {"type": "string", "format": "binary"},
        CONFIDENCE_FIELD: {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": USUAL_CONFIDENCE,
            "description": "Drop detections that score lower.",
        },
        KEY_FIELD: {"type": "string", "description": "An API key, where one is needed; before the image."},
    },
}
REQUEST: dict[str, Any] = {
    "parameters": openapi.DETECT_REQUEST["parameters"],
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
}
RESPONSES = openapi.deepstack_errors(400, 408, 413, 415, 422, 429, 500, 503, 504)
