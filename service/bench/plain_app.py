"""What one would write at first: FastAPI around torchvision's detector, an image at a time."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from PIL import Image
from torchvision.models import detection


def plain_app(model_name: str, device: str) -> FastAPI:
    """With random weights, which are as fast as any."""
    app = FastAPI()
    model = getattr(detection, model_name)(weights=None, weights_backbone=None).eval().to(device)
    one_at_a_time = asyncio.Lock()

    @torch.inference_mode()
    def found(data: bytes) -> dict[str, Any]:
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
        result = model([pixels.to(device).permute(2, 0, 1).float().div(255)])[0]
        return {name: values.tolist() for name, values in result.items()}

    @app.post("/detect")
    async def detect(request: Request) -> dict[str, Any]:
        data = await request.body()
        async with one_at_a_time:
            return await asyncio.to_thread(found, data)

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ok"}

    return app
