"""Resizing, normalising and padding by the kernel against the detector's own transform."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.inference.kernels.resize import picture_table, resize_into
from model.structures import SizeHW
from model.transform import GeneralizedRCNNTransform

SIZES = {
    "larger": [(40, 60)],
    "smaller": [(200, 150)],
    "as it is": [(64, 96)],
    "one pixel": [(1, 1)],
    "two sizes of one padded shape": [(60, 80), (61, 83), (120, 160)],
}


def pictures(sizes: list[SizeHW]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_gives_what_the_transform_gives(case: str, interleaved: bool, device: torch.device) -> None:
    transform = GeneralizedRCNNTransform(min_size=64, max_size=96).eval()
    given = pictures(SIZES[case])
    wanted = transform([picture.float() / 255 for picture in given])
    if interleaved:  # as decoders leave them: a pixel's three bytes side by side
        given = [picture.permute(1, 2, 0).contiguous().permute(2, 0, 1) for picture in given]
    given = [picture.to(device) for picture in given]
    got = torch.full_like(wanted.tensors, torch.nan, device=device).contiguous(memory_format=torch.channels_last)
    table = picture_table(given, wanted.image_sizes).to(device)
    resize_into(got, table, mean=transform.image_mean, std=transform.image_std)
    torch.testing.assert_close(got.cpu(), wanted.tensors, rtol=0, atol=5e-5)


def test_other_memory_formats_are_rejected(device: torch.device) -> None:
    batch = torch.empty(1, 3, 8, 8, device=device)
    with pytest.raises(ValueError, match="channels last"):
        resize_into(batch, torch.zeros(1, 8, dtype=torch.int64, device=device), mean=(0, 0, 0), std=(1, 1, 1))
