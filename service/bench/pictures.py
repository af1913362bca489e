"""What servers are measured with; light, so that who sends it does not load what answers it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def jpeg(size_hw: tuple[int, int]) -> bytes:
    """A picture that compresses about as a photograph does: 104 KB at 480 x 640."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width]
    waves = 128 + 100 * np.stack([np.sin(x / 37 + y / 91), np.cos(y / 53), np.sin((x + y) / 71)], axis=-1)
    pixels = waves + 16 * np.random.default_rng(0).normal(size=waves.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
