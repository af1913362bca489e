from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from model.box_coder import BoxCoder
from model.losses.losses import BOX_LOSSES, class_weights, roi_losses, rpn_losses
from model.losses.sampler import BalancedPositiveNegativeSampler
from model.losses.targets import AnchorTargets, RoISamples

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
DRAW_ALL = BalancedPositiveNegativeSampler(100, 1.0)


def smooth_l1(difference: float) -> float:
    """By hand: a parabola up to 1/9, a line beyond."""
    difference = abs(difference)
    return difference**2 / 2 * 9 if difference < 1 / 9 else difference - 1 / 18


def cross_entropy(logits: Sequence[float], label: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[label]


def test_rpn_losses_by_hand() -> None:
    # Two images with three anchors: positive, ignored, negative; and two negatives and a positive.
    logits = torch.tensor([[2.0, 9.0, -1.0], [0.5, 0.0, 1.0]])
    deltas = torch.zeros(2, 3, 4)
    wanted = [
        AnchorTargets(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([[0.05, 0, 0, 2.0], [9, 9, 9, 9], [9, 9, 9, 9]])),
        AnchorTargets(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([[9, 9, 9, 9], [9, 9, 9, 9], [0, -1.0, 0, 0]])),
    ]
    losses = rpn_losses(logits, deltas, wanted, DRAW_ALL)
    assert losses.keys() == {"loss_objectness", "loss_rpn_box_reg"}
    # Of an anchor with the logit z, log(1 + exp(-z)) where it is an object and log(1 + exp(z)) where it is none.
    objectness = sum(math.log1p(math.exp(z)) for z in (-2, -1, 0.5, 0, -1)) / 5
    assert losses["loss_objectness"].item() == pytest.approx(objectness)
    # Over all five sampled anchors, not the two positive ones.
    box_loss = (smooth_l1(0.05) + smooth_l1(2) + smooth_l1(1)) / 5
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(box_loss)


def test_rpn_box_loss_is_zero_without_positives() -> None:
    wanted = [AnchorTargets(torch.zeros(3), torch.full((3, 4), 9.0))]
    assert rpn_losses(torch.zeros(1, 3), torch.ones(1, 3, 4), wanted, DRAW_ALL)["loss_rpn_box_reg"] == 0


def test_roi_losses_by_hand() -> None:
    class_logits = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.25, 0.0]])
    deltas = torch.full((2, 3, 4), 7.0)
    deltas[0, 2] = torch.tensor([0.0, 0.5, 0.0, 0.0])  # only the true class's are trained
    samples = RoISamples(
        proposals=[torch.zeros(2, 4)],
        labels=torch.tensor([2, 0]),
        deltas=torch.tensor([[0.1, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]),
    )
    losses = roi_losses(class_logits, deltas, samples, CODER)
    assert losses.keys() == {"loss_classifier", "loss_box_reg"}
    classifier = (cross_entropy([1, 0, 2], 2) + cross_entropy([0.5, 0.25, 0], 0)) / 2
    assert losses["loss_classifier"].item() == pytest.approx(classifier)
    assert losses["loss_box_reg"].item() == pytest.approx((smooth_l1(0.1) + smooth_l1(0.5)) / 2)


def test_giou_loss_by_hand() -> None:
    """Proposals 10 x 10; the truth of the first lies 5 px to the right, of the second 20 px, beyond a gap of 10."""
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 4.0, 4.0]])
    truth = torch.tensor([[5.0, 0.0, 15.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 0.0, 4.0, 4.0]])
    samples = RoISamples([proposals], torch.tensor([1, 1, 0]), CODER.encode(truth, proposals))
    deltas = torch.zeros(3, 2, 4, requires_grad=True)
    loss = roi_losses(torch.zeros(3, 2), deltas, samples, CODER, box_loss="giou")["loss_box_reg"]
    # 1 - intersection / union + share of the enclosing box that is in neither; 5 is the weight, 3 are the samples.
    assert loss.item() == pytest.approx(5 * ((1 - 50 / 150) + (1 + 100 / 300)) / 3)
    loss.backward()
    assert deltas.grad is not None
    assert (deltas.grad[:2, 1, 0] < 0).all()  # both boxes are drawn to the right,
    assert deltas.grad[2].count_nonzero() == deltas.grad[:, 0].count_nonzero() == 0  # and no others anywhere


def test_giou_loss_is_zero_without_positives() -> None:
    samples = RoISamples([torch.tensor([[0.0, 0.0, 10.0, 10.0]])], torch.tensor([0]), torch.zeros(1, 4))
    deltas = torch.ones(1, 2, 4, requires_grad=True)
    loss = roi_losses(torch.zeros(1, 2), deltas, samples, CODER, box_loss="giou")["loss_box_reg"]
    loss.backward()
    assert deltas.grad is not None
    assert loss == deltas.grad.count_nonzero() == 0


def test_another_box_loss_is_rejected() -> None:
    samples = RoISamples([torch.zeros(1, 4)], torch.tensor([1]), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="one of smooth_l1, giou, not 'GIoU'"):
        roi_losses(torch.zeros(1, 2), torch.zeros(1, 2, 4), samples, CODER, box_loss="GIoU")


def test_losses_of_half_precision_are_float32() -> None:
    samples = RoISamples([torch.zeros(1, 4)], torch.tensor([1]), torch.zeros(1, 4))
    logits, deltas = torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, 4, dtype=torch.bfloat16)
    for box_loss in BOX_LOSSES:
        losses = roi_losses(logits, deltas, samples, CODER, box_loss=box_loss)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_class_weights_scale_both_losses_of_a_sample(box_loss: str) -> None:
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(3, 1)
    samples = RoISamples([proposals], torch.tensor([0, 1, 2]), torch.tensor([[9.0] * 4, [2.0] * 4, [0.5] * 4]))
    logits, deltas = torch.tensor([[0.0, 1.0, 2.0]]).repeat(3, 1), torch.zeros(3, 3, 4)

    def box_losses(*class_weights: float) -> float:
        losses = roi_losses(logits, deltas, samples, CODER, box_loss=box_loss, class_weights=class_weights)
        return losses["loss_box_reg"].item()

    of_first, of_second = box_losses(1, 1, 0), box_losses(1, 0, 1)
    assert of_first > of_second > 0
    assert box_losses(7, 0.5, 4) == pytest.approx(0.5 * of_first + 4 * of_second)
    if box_loss == "smooth_l1":
        assert of_first == pytest.approx(4 * smooth_l1(2) / 3)  # over all samples, whatever they weigh

    losses = roi_losses(logits, deltas, samples, CODER, box_loss=box_loss, class_weights=(7, 0.5, 4))
    of_classes = [weight * cross_entropy([0, 1, 2], label) for label, weight in enumerate((7, 0.5, 4))]
    assert losses["loss_classifier"].item() == pytest.approx(sum(of_classes) / 3)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, (1, 1, 1, 1, 1)),
        (0.5, (1, *(one / (12 * 1 + 3 * 2 + 12**0.5) * 16 for one in (1, 2, 12**0.5)), 1)),
        (1.0, (1, 16 / 36, 16 / 9, 16 / 3, 1)),  # 12 x 16/36 = 3 x 16/9 = 1 x 16/3: each class weighs a third of 16
    ],
)
def test_rare_classes_weigh_more(balance: float, expected: tuple[float, ...]) -> None:
    """12 boxes of class 1, 3 of class 2, 1 of class 3 and none of class 4."""
    labels = torch.tensor([1] * 12 + [2, 3, 2, 2])
    assert class_weights(labels, 5, balance) == pytest.approx(expected)
