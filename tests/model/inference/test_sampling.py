"""The pixels that are read give what all pixels give."""

from __future__ import annotations

import pytest
import torch

from model.inference.sampling import reads_few_pixels, sample
from model.structures import SizeHW
from model.transform import GeneralizedRCNNTransform


@pytest.mark.parametrize("size_hw", [(233, 517), (517, 233), (256, 512), (1, 700), (700, 3), (401, 401)])
@pytest.mark.parametrize("lies_as", ["rows of pixels", "planes"])
def test_it_resizes_as_the_transform_does(size_hw: SizeHW, lies_as: str) -> None:
    pixels = torch.randint(256, (*size_hw, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = pixels.permute(2, 0, 1) if lies_as == "rows of pixels" else pixels.permute(2, 0, 1).contiguous()
    transform = GeneralizedRCNNTransform(min_size=40, max_size=67).eval()
    mean, std = transform.constants(torch.float32, torch.device("cpu"))
    expected = transform.resize(transform.normalise(image.float() / 255))
    found = sample(image, transform.resized_hw(size_hw), mean=mean, std=std)
    # Where the processor rounds a position twice, it is 3e-5 pixels away, and a pixel is up to 4.5 from the next.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-4)


def test_only_pictures_that_become_much_smaller_are_sampled() -> None:
    assert reads_few_pixels((3000, 2000), (1199, 800))
    assert not reads_few_pixels((1080, 1920), (749, 1333))
