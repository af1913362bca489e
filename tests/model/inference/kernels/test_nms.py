"""Suppression by the kernel against plain PyTorch, and that against torchvision's operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from model.inference.kernels.nms import nms_mask
from tests.support.plain_nms import reference_nms_mask


def crowded(groups: int, count: int, seed: int = 0) -> Tensor:
    """Boxes, many of which overlap, best first."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(groups, count, 2, generator=generator) * 60
    return torch.cat((corner, corner + 5 + 25 * torch.rand(groups, count, 2, generator=generator)), dim=-1)


@pytest.mark.parametrize("count", [1, 64, 65, 130])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_keeps_what_torchvision_keeps(count: int, threshold: float, device: torch.device) -> None:
    boxes = crowded(2, count)
    valid = torch.ones(2, count, dtype=torch.bool)
    got = nms_mask(boxes.to(device), valid.to(device), threshold).cpu()
    reference = reference_nms_mask(boxes, valid, threshold)
    scores = torch.arange(count, 0, -1).float()
    for of_group, of_reference, of_boxes in zip(got, reference, boxes, strict=True):
        wanted = nms(of_boxes, scores, threshold).sort().values
        assert of_group.nonzero()[:, 0].tolist() == wanted.tolist()
        assert of_reference.nonzero()[:, 0].tolist() == wanted.tolist()


@pytest.mark.parametrize("last_valid", [0, 70, 299])
def test_blocks_without_valid_boxes(last_valid: int, device: torch.device) -> None:
    """Nothing is written for them, and they are not kept."""
    boxes = crowded(2, 300)
    valid = torch.zeros(2, 300, dtype=torch.bool)
    valid[0, [0, 1, 2, last_valid]] = True
    got = nms_mask(boxes.to(device), valid.to(device), 0.3).cpu()
    assert got.equal(reference_nms_mask(boxes, valid, 0.3))
    assert got[0].any()


def test_many_boxes(device: torch.device) -> None:
    """More blocks than one warp takes."""
    boxes, valid = crowded(1, 1100), torch.ones(1, 1100, dtype=torch.bool)
    wanted = nms(boxes[0], torch.arange(1100, 0, -1).float(), 0.5)
    got = nms_mask(boxes.to(device), valid.to(device), 0.5).cpu()
    assert got[0].nonzero()[:, 0].tolist() == wanted.sort().values.tolist()


def test_labels_and_invalid_boxes(device: torch.device) -> None:
    boxes, count = crowded(2, 150), 150
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(2, count, generator=generator) > 0.3
    labels = torch.randint(0, 3, (2, count), generator=generator, dtype=torch.int32)
    got = nms_mask(boxes.to(device), valid.to(device), 0.4, labels=labels.to(device)).cpu()
    assert got.equal(reference_nms_mask(boxes, valid, 0.4, labels=labels))
    for group in range(2):
        (at,) = torch.where(valid[group])
        kept = batched_nms(boxes[group, at], torch.arange(len(at), 0, -1).float(), labels[group, at], 0.4)
        assert got[group].nonzero()[:, 0].tolist() == at[kept].sort().values.tolist()
    assert not nms_mask(boxes.to(device), torch.zeros_like(valid).to(device), 0.4).any()


def test_a_chain_in_which_every_other_box_survives(device: torch.device) -> None:
    """Each box overlaps its neighbours alone, so that what becomes of the last depends on all before it."""
    left = torch.arange(130.0)
    boxes = torch.stack((left, torch.zeros(130), left + 2, torch.ones(130)), dim=1)[None]
    got = nms_mask(boxes.to(device), torch.ones(1, 130, dtype=torch.bool, device=device), 0.3)
    assert got[0].nonzero()[:, 0].tolist() == list(range(0, 130, 2))


def test_an_overlap_of_just_the_threshold_is_kept(device: torch.device) -> None:
    boxes = torch.tensor([[[0.0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1]]])
    got = nms_mask(boxes.to(device), torch.ones(1, 3, dtype=torch.bool, device=device), 0.5)
    assert got[0].tolist() == [True, True, False]


def test_boxes_without_area_suppress_nothing(device: torch.device) -> None:
    boxes = torch.zeros(1, 5, 4, device=device)
    assert nms_mask(boxes, torch.ones(1, 5, dtype=torch.bool, device=device), 0.5).all()


def test_no_boxes(device: torch.device) -> None:
    assert nms_mask(
        torch.zeros(2, 0, 4, device=device), torch.zeros(2, 0, dtype=torch.bool, device=device), 0.5
    ).shape == (2, 0)
