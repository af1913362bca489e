from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TheirBoxCoder

from model.box_coder import MAX_LOG_STRETCH, BoxCoder

Four = tuple[float, float, float, float]
WEIGHTS: list[Four] = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]
REFERENCE = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # 20 wide, 40 high, centre (20, 40)


@pytest.mark.parametrize(
    ("box", "deltas"),
    [
        ((10.0, 20.0, 30.0, 60.0), (0.0, 0.0, 0.0, 0.0)),
        ((15.0, 30.0, 35.0, 70.0), (0.25, 0.25, 0.0, 0.0)),  # moved by a quarter of each side
        ((0.0, 30.0, 40.0, 50.0), (0.0, 0.0, math.log(2), -math.log(2))),  # twice as wide, half as high
    ],
)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_deltas_by_hand(box: Four, deltas: Four, weights: Four) -> None:
    coder = BoxCoder(weights)
    expected = torch.tensor([deltas]) * torch.tensor(weights)
    torch.testing.assert_close(coder.encode(torch.tensor([box]), REFERENCE), expected)
    torch.testing.assert_close(coder.decode(expected, REFERENCE), torch.tensor([box]))


def test_huge_stretches_are_bounded() -> None:
    decoded = BoxCoder((1, 1, 1, 1)).decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), REFERENCE)
    assert pytest.approx(math.log(62.5)) == MAX_LOG_STRETCH
    torch.testing.assert_close(decoded, torch.tensor([[20 - 625.0, 40 - 1250.0, 20 + 625.0, 40 + 1250.0]]))
    assert BoxCoder((1, 1, 1, 1), max_log_stretch=0.0).decode(torch.ones(1, 4), REFERENCE).tolist() == [
        [30, 60, 50, 100]
    ]


def test_class_specific_deltas_broadcast_against_their_proposal() -> None:
    deltas = torch.zeros(3, 5, 4)
    deltas[1, 2, 0] = 1.0
    references = REFERENCE.expand(3, 4)[:, None, :]
    decoded = BoxCoder((1, 1, 1, 1)).decode(deltas, references)
    assert decoded.shape == (3, 5, 4)
    assert decoded[1, 2].tolist() == [30, 20, 50, 60]
    assert decoded[0, 0].tolist() == REFERENCE[0].tolist()


def test_half_precision_deltas_are_decoded_in_float32() -> None:
    decoded = BoxCoder((1, 1, 1, 1)).decode(torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([[0, 0, 1001.0, 9]]))
    assert decoded.dtype is torch.float32
    assert decoded.tolist() == [[0, 0, 1001, 9]]


coordinates = st.floats(0, 1000, width=32)
sides = st.floats(1, 500, width=32)
# `[1, 4]`, in float64.
boxes = st.builds(
    lambda x, y, w, h: torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64), coordinates, coordinates, sides, sides
)


@given(box=boxes, reference=boxes, weights=st.sampled_from(WEIGHTS))
def test_decode_undoes_encode(box: Tensor, reference: Tensor, weights: Four) -> None:
    coder = BoxCoder(weights, max_log_stretch=math.log(1000))
    torch.testing.assert_close(coder.decode(coder.encode(box, reference), reference), box, rtol=1e-9, atol=1e-6)


@given(box=boxes, reference=boxes, weights=st.sampled_from(WEIGHTS))
def test_both_ways_equal_torchvisions(box: Tensor, reference: Tensor, weights: Four) -> None:
    box, reference = box.float(), reference.float()
    deltas = BoxCoder(weights).encode(box, reference)
    theirs = TheirBoxCoder(weights)
    torch.testing.assert_close(deltas, theirs.encode_single(box, reference), rtol=1e-5, atol=1e-5)
    decoded = BoxCoder(weights).decode(deltas, reference)
    torch.testing.assert_close(decoded, theirs.decode_single(deltas, reference), rtol=1e-5, atol=1e-3)
