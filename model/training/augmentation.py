"""Random changes to an image and its boxes, so that few images teach more.

Pixels are changed on the device that they are on. All draws come from torch's global CPU generator, which the trainer
seeds for each batch, so they are the same on every device, and the host does not wait for any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from model.boxes import box_area, clip_boxes
from model.structures import Target
from model.training.loading import to_device

# Luma of ITU-R BT.601, as in Pillow's conversion to grey.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to an image.

    Attributes:
        flips: "none"; "horizontal"; "both" for either axis; "dihedral" for quarter turns as well, where up and down
            mean nothing, as under a microscope.
        crop: share of each side that is kept, at a random place; 1.0 keeps all. Objects keep their size in pixels.
        min_visible: a box of which a crop leaves a smaller share than this is dropped.
        colour: brightness, contrast, saturation and each channel are scaled by a factor of 1 +- this.
    """

    flips: str = "horizontal"
    crop: float = 1.0
    min_visible: float = 0.3
    colour: float = 0.0

    def __post_init__(self) -> None:
        if self.flips not in {"none", "horizontal", "both", "dihedral"}:
            raise ValueError(f"flips must be none, horizontal, both or dihedral, not {self.flips!r}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be over 0 and at most 1, not {self.crop}")

    def __call__(self, image: Tensor, target: Target, *, transpose: bool) -> tuple[Tensor, Target]:
        """Change an image and its target.

        Args:
            image: uint8 `[3, H, W]`, on any device.
            target: on the CPU.
            transpose: swap the axes, which is drawn once for a batch so that its images stay alike in shape.

        Returns:
            The image, float in 0..1 and on its device, and the target, on the CPU.
        """
        boxes, labels = target["boxes"], target["labels"]
        if self.crop < 1:
            image, boxes, labels = self._cropped(image, boxes, labels)
        if self.flips != "none" and _coin():
            image, boxes = flip_horizontally(image, boxes)
        if self.flips in {"both", "dihedral"} and _coin():
            image, boxes = flip_vertically(image, boxes)
        if transpose:
            image, boxes = image.transpose(1, 2), boxes[:, [1, 0, 3, 2]]
        image = image.float() / 255  # only now: bytes are quicker to move
        if self.colour > 0:
            image = self._recoloured(image)
        return image, cast(Target, {**target, "boxes": boxes, "labels": labels})

    def draw_transpose(self) -> bool:
        return self.flips == "dihedral" and _coin()

    def _cropped(self, image: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        rows, columns = max(1, round(height * self.crop)), max(1, round(width * self.crop))
        top, left = (int(torch.randint(n, (), device="cpu").item()) for n in (height - rows + 1, width - columns + 1))
        shifted = clip_boxes(boxes - boxes.new_tensor((left, top, left, top)), (rows, columns))
        sides = shifted[:, 2:] - shifted[:, :2]
        kept = (box_area(shifted) >= self.min_visible * box_area(boxes)) & (sides >= 1).all(dim=1)
        return image[:, top : top + rows, left : left + columns], shifted[kept], labels[kept]

    def _recoloured(self, image: Tensor) -> Tensor:
        factors = 1 + self.colour * (2 * torch.rand(6, device="cpu") - 1)
        brightness, contrast, saturation = factors[:3].tolist()
        image = image * to_device(factors[3:], image.device)[:, None, None] * brightness
        image = torch.lerp(image.mean(), image, contrast)
        luma = to_device(torch.tensor(_LUMA, device="cpu"), image.device)
        grey = (image * luma[:, None, None]).sum(0, keepdim=True)
        return torch.lerp(grey.expand_as(image), image, saturation).clamp(0, 1)


def flip_horizontally(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Left for right; `[3, H, W]` and `[G, 4]`."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = image.shape[2]
    return image.flip(2), torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def flip_vertically(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Top for bottom; `[3, H, W]` and `[G, 4]`."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    height = image.shape[1]
    return image.flip(1), torch.stack((x1, height - y2, x2, height - y1), dim=-1)


def _coin() -> bool:
    return bool(torch.rand((), device="cpu") < 0.5)
