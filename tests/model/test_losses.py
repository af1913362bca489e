from __future__ import annotations

import math

import pytest
import torch

from model.training.losses import roi_losses, rpn_losses
from model.training.sampler import BalancedPositiveNegativeSampler
from model.training.targets import AnchorTargets, RoISamples

DRAW_ALL = BalancedPositiveNegativeSampler(100, 1.0)


def smooth_l1(difference):
    """By hand: a parabola up to 1/9, a line beyond."""
    difference = abs(difference)
    return difference**2 / 2 * 9 if difference < 1 / 9 else difference - 1 / 18


def cross_entropy(logits, label):
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[label]


def test_rpn_losses_by_hand():
    # Two images with three anchors: positive, ignored, negative; and two negatives and a positive.
    logits = torch.tensor([[2.0, 9.0, -1.0], [0.5, 0.0, 1.0]])
    deltas = torch.zeros(2, 3, 4)
    wanted = [
        AnchorTargets(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([[0.05, 0, 0, 2.0], [9, 9, 9, 9], [9, 9, 9, 9]])),
        AnchorTargets(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([[9, 9, 9, 9], [9, 9, 9, 9], [0, -1.0, 0, 0]])),
    ]
    losses = rpn_losses(logits, deltas, wanted, DRAW_ALL)
    assert losses.keys() == {"loss_objectness", "loss_rpn_box_reg"}
    says_object, says_nothing = (lambda z: math.log1p(math.exp(-z))), (lambda z: math.log1p(math.exp(z)))
    objectness = (says_object(2) + says_nothing(-1) + says_nothing(0.5) + says_nothing(0) + says_object(1)) / 5
    assert losses["loss_objectness"].item() == pytest.approx(objectness)
    # Over all five sampled anchors, not the two positive ones.
    box_loss = (smooth_l1(0.05) + smooth_l1(2) + smooth_l1(1)) / 5
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(box_loss)


def test_rpn_box_loss_is_zero_without_positives():
    wanted = [AnchorTargets(torch.zeros(3), torch.full((3, 4), 9.0))]
    assert rpn_losses(torch.zeros(1, 3), torch.ones(1, 3, 4), wanted, DRAW_ALL)["loss_rpn_box_reg"] == 0


def test_roi_losses_by_hand():
    class_logits = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.25, 0.0]])
    deltas = torch.full((2, 3, 4), 7.0)
    deltas[0, 2] = torch.tensor([0.0, 0.5, 0.0, 0.0])  # only the true class's are trained
    samples = RoISamples(
        proposals=[torch.zeros(2, 4)],
        labels=torch.tensor([2, 0]),
        deltas=torch.tensor([[0.1, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]),
    )
    losses = roi_losses(class_logits, deltas, samples)
    assert losses.keys() == {"loss_classifier", "loss_box_reg"}
    classifier = (cross_entropy([1, 0, 2], 2) + cross_entropy([0.5, 0.25, 0], 0)) / 2
    assert losses["loss_classifier"].item() == pytest.approx(classifier)
    assert losses["loss_box_reg"].item() == pytest.approx((smooth_l1(0.1) + smooth_l1(0.5)) / 2)


def test_losses_of_half_precision_are_float32():
    samples = RoISamples([torch.zeros(1, 4)], torch.tensor([1]), torch.zeros(1, 4))
    losses = roi_losses(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, 4, dtype=torch.bfloat16), samples)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
