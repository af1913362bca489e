"""From pictures of any size to one batch, and boxes back to the pictures' own pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.boxes import scale_boxes
from model.structures import Detection, ImageBatch, SizeHW, Target

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class GeneralizedRCNNTransform(nn.Module):
    """Normalise, resize, and zero-pad to a batch whose sides are multiples of `size_divisible`.

    Args:
        min_size: length in pixels that the shorter side is resized to. Of several, training draws one per image
            and detection takes the last.
        max_size: bound in pixels on the longer side, which wins over `min_size`.
        image_mean: per channel, subtracted from values in 0..1.
        image_std: per channel, divided by.
        size_divisible: the coarsest stride that the padded sides must fit.
        fixed_size: (width, height) to resize to instead, whatever the aspect ratio. The order is torchvision's.
        _skip_resize: leave the size alone in training. The name is torchvision's.

    Raises:
        ValueError: a size under 1, or a deviation of zero.
    """

    def __init__(
        self,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        size_divisible: int = 32,
        fixed_size: tuple[int, int] | None = None,
        _skip_resize: bool = False,
    ) -> None:
        super().__init__()
        smallest = min(min_size) if isinstance(min_size, Sequence) else min_size
        if smallest < 1 or max_size < 1 or size_divisible < 1:
            raise ValueError(
                "sizes must be 1 pixel or more, not "
                f"min_size {min_size}, max_size {max_size}, size_divisible {size_divisible}"
            )
        if not all(image_std):
            raise ValueError(f"image_std must not hold zeros: {list(image_std)}")
        self.min_size = tuple(min_size) if isinstance(min_size, Sequence) else (min_size,)
        self.max_size = max_size
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        self.size_divisible = size_divisible
        self.fixed_size = fixed_size
        self.skip_resize = _skip_resize

    def forward(self, images: Sequence[Tensor]) -> ImageBatch:
        """Images `[C, H, W]`, float in 0..1, each of its own size, to one batch.

        Raises:
            ValueError: an image is not three-dimensional, or there is none.
            TypeError: an image is not floating point.
        """
        return self.batch([self.resize(self.normalise(image)) for image in images])

    def with_targets(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[ImageBatch, list[Target]]:
        """The batch, and the targets with their boxes in its pixels. The given targets are left as they are."""
        batch = self(images)
        resized = [
            cast(Target, {**target, "boxes": scale_boxes(target["boxes"], _size_hw(image), size_hw)})
            for image, target, size_hw in zip(images, targets, batch.image_sizes, strict=True)
        ]
        return batch, resized

    def restore(
        self, detections: Sequence[Detection], image_sizes: Sequence[SizeHW], original_sizes: Sequence[SizeHW]
    ) -> list[Detection]:
        """Detections with their boxes carried from the resized images to the original ones."""
        return [
            Detection(
                boxes=scale_boxes(detection["boxes"], resized_hw, original_hw),
                labels=detection["labels"],
                scores=detection["scores"],
            )
            for detection, resized_hw, original_hw in zip(detections, image_sizes, original_sizes, strict=True)
        ]

    def normalise(self, image: Tensor) -> Tensor:
        if image.dim() != 3:
            raise ValueError(f"an image must have the shape [C, H, W], not {list(image.shape)}")
        if not image.is_floating_point():
            raise TypeError(f"an image must be floating point with values in 0..1, not {image.dtype}")
        mean, std = self.constants(image.dtype, image.device)
        return (image - mean) / std

    def constants(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """`image_mean` and `image_std`, `[C, 1, 1]` each."""
        return _per_channel(self.image_mean, dtype, device), _per_channel(self.image_std, dtype, device)

    def resize(self, image: Tensor) -> Tensor:
        if self.training and self.skip_resize:
            return image
        min_size = self._draw_min_size() if self.training else self.min_size[-1]
        size_hw = self._resized_hw(_size_hw(image), min_size)
        return F.interpolate(image[None], size=size_hw, mode="bilinear", align_corners=False)[0]

    def batch(self, images: Sequence[Tensor]) -> ImageBatch:
        """Copy each image into the top left corner of its slice of one zeroed tensor."""
        if not images:
            raise ValueError("a batch needs at least one image")
        sizes = [_size_hw(image) for image in images]
        height, width = (self._round_up(max(sides)) for sides in zip(*sizes, strict=True))
        tensors = images[0].new_zeros((len(images), images[0].shape[0], height, width))
        for image, padded in zip(images, tensors, strict=True):
            padded[:, : image.shape[1], : image.shape[2]].copy_(image)
        return ImageBatch(tensors, sizes)

    def resized_hw(self, size_hw: SizeHW) -> SizeHW:
        """The size that detection resizes an image of `size_hw` to, before padding."""
        return self._resized_hw(size_hw, self.min_size[-1])

    def padded_hw(self, size_hw: SizeHW) -> SizeHW:
        """The size that an image of `size_hw` has in a batch of its own: images that share it can share a batch
        without changing each other's detections."""
        height, width = self.resized_hw(size_hw)
        return self._round_up(height), self._round_up(width)

    def _resized_hw(self, size_hw: SizeHW, min_size: int) -> SizeHW:
        if self.fixed_size is not None:
            width, height = self.fixed_size
            return height, width
        # In double precision and rounded down, as torchvision does in eager mode (before 0.22 it used float32).
        scale = min(min_size / min(size_hw), self.max_size / max(size_hw))
        height, width = (int(side * scale) for side in size_hw)
        # An image over 1333 times longer than wide would lose its short side; torchvision fails on it.
        return max(height, 1), max(width, 1)

    def _draw_min_size(self) -> int:
        # A torch draw per image even where there is one size: seeds then mean the same as in torchvision.
        return self.min_size[int(torch.empty(1, device="cpu").uniform_(0.0, float(len(self.min_size))).item())]

    def _round_up(self, side: int) -> int:
        return math.ceil(side / self.size_divisible) * self.size_divisible

    def extra_repr(self) -> str:
        return f"min_size={self.min_size}, max_size={self.max_size}, mean={self.image_mean}, std={self.image_std}"


@functools.lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Constants `[C, 1, 1]`, kept: to make them for each image would let the host wait for a GPU each time."""
    with torch.inference_mode(False):  # else one that detection makes could not be trained with
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def _size_hw(image: Tensor) -> SizeHW:
    height, width = image.shape[-2:]
    return height, width
