"""Boxes as deltas against reference boxes (anchors or proposals): what the two regression layers really predict.

Faster R-CNN paper, section 3.1.2, Eqn. (2). A network's outputs are unbounded reals, so it never predicts
coordinates: it predicts how far to move the reference's centre, in units of its sides, and by which factor to
stretch them, as a logarithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.boxes import at_least_float32

# exp(dw) may enlarge a 16 px reference to 1000 px at most: larger deltas come from untrained weights and overflow.
MAX_LOG_STRETCH = math.log(1000.0 / 16)


class BoxCoder:
    """Encode boxes as deltas and decode deltas to boxes.

    Args:
        weights: factors (wx, wy, ww, wh) on the four deltas. They bring the regression targets near unit variance:
            (1, 1, 1, 1) in the RPN, (10, 10, 5, 5) in the RoI heads.
        max_log_stretch: upper bound on dw and dh when decoding.
    """

    def __init__(self, weights: tuple[float, float, float, float], max_log_stretch: float = MAX_LOG_STRETCH) -> None:
        self.weights = weights
        self.max_log_stretch = max_log_stretch

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas `[..., 4]` (dx, dy, dw, dh) that carry `references` to `boxes`, both `[..., 4]`."""
        wx, wy, ww, wh = self.weights
        box_width, box_height, box_x, box_y = _sides_and_centre(boxes)
        width, height, centre_x, centre_y = _sides_and_centre(references)
        return torch.stack(
            (
                wx * (box_x - centre_x) / width,
                wy * (box_y - centre_y) / height,
                ww * torch.log(box_width / width),
                wh * torch.log(box_height / height),
            ),
            dim=-1,
        )

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes `[..., 4]` that `deltas` make of `references`.

        The two broadcast: class-specific deltas `[R, K, 4]` decode against proposals `[R, 1, 4]`.
        Computed in float32 or better, whatever the precision of the deltas.
        """
        deltas = at_least_float32(deltas)
        wx, wy, ww, wh = self.weights
        width, height, centre_x, centre_y = _sides_and_centre(references.to(deltas.dtype))
        dx, dy, dw, dh = deltas.unbind(-1)
        x = dx / wx * width + centre_x
        y = dy / wy * height + centre_y
        half_width = 0.5 * (torch.exp((dw / ww).clamp(max=self.max_log_stretch)) * width)
        half_height = 0.5 * (torch.exp((dh / wh).clamp(max=self.max_log_stretch)) * height)
        return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def _sides_and_centre(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return width, height, x1 + 0.5 * width, y1 + 0.5 * height
