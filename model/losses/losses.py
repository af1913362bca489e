"""The four losses (Faster R-CNN paper, Eqn. (1); Fast R-CNN paper, Eqn. (1)).

Both box losses are smooth L1 over deltas with the corner at 1/9, divided by the number of *all* sampled candidates, so
that an image with few objects does not weigh each of them more. That of the RoI heads may be one minus the generalized
IoU of the decoded boxes instead (Rezatofighi et al. 2019), which is nearer to what AP measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from model.box_coder import BoxCoder
from model.boxes import at_least_float32
from model.losses.sampler import BalancedPositiveNegativeSampler
from model.losses.targets import AnchorTargets, RoISamples

SMOOTH_L1_CORNER = 1 / 9
BOX_LOSSES = ("smooth_l1", "giou")
_GIOU_WEIGHT = 5.0  # about as large as smooth L1 where boxes are nearly right


def rpn_losses(
    logits: Tensor, deltas: Tensor, targets: Sequence[AnchorTargets], sampler: BalancedPositiveNegativeSampler
) -> dict[str, Tensor]:
    """Is there an object at the sampled anchors, and where.

    Args:
        logits: `[N, A']` objectness of all anchors of all levels.
        deltas: `[N, A', 4]`.
        targets: one for each image.
        sampler: draws anchors of one image.

    Returns:
        `loss_objectness`: mean binary cross-entropy over the sampled anchors of the batch;
        `loss_rpn_box_reg`: smooth L1 over the positive ones, summed, over the number of sampled anchors.
    """
    anchors_per_image = logits.shape[1]
    positives, negatives = zip(*(sampler(target.labels) for target in targets), strict=True)
    positive = torch.cat([p + n * anchors_per_image for n, p in enumerate(positives)])
    negative = torch.cat([q + n * anchors_per_image for n, q in enumerate(negatives)])
    sampled = torch.cat((positive, negative))
    logits, deltas = at_least_float32(logits).flatten(), at_least_float32(deltas).flatten(0, 1)
    labels = torch.cat([target.labels for target in targets])
    target_deltas = torch.cat([target.deltas for target in targets])
    box_loss = F.smooth_l1_loss(deltas[positive], target_deltas[positive], beta=SMOOTH_L1_CORNER, reduction="sum")
    return {
        "loss_objectness": F.binary_cross_entropy_with_logits(logits[sampled], labels[sampled]),
        "loss_rpn_box_reg": box_loss / sampled.numel(),
    }


def roi_losses(
    class_logits: Tensor,
    deltas: Tensor,
    samples: RoISamples,
    coder: BoxCoder,
    *,
    box_loss: str = "smooth_l1",
    class_weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Which class the sampled proposals show, and where exactly.

    Args:
        class_logits: `[S, K]` for the S samples of all images.
        deltas: `[S, K, 4]`, one set for each class; only that of the true class is trained.
        samples: the proposals and what should be said of them.
        coder: decodes the deltas.
        box_loss: one of `BOX_LOSSES`.
        class_weights: K factors on both losses of a sample, by the class it truly shows; by default 1.

    Returns:
        `loss_classifier`: mean cross-entropy over the samples, background included;
        `loss_box_reg`: the box loss of the positive ones, summed, over the number of samples.

    Raises:
        ValueError: there is no such box loss.
    """
    class_logits, deltas = at_least_float32(class_logits), at_least_float32(deltas)
    positive = torch.where(samples.labels > 0)[0]
    found, wanted = deltas[positive, samples.labels[positive]], samples.deltas[positive]
    if box_loss == "smooth_l1":
        of_boxes = F.smooth_l1_loss(found, wanted, beta=SMOOTH_L1_CORNER, reduction="none").sum(1)
    elif box_loss == "giou":
        proposals = torch.cat(samples.proposals)[positive]
        boxes, truth = coder.decode(found, proposals), coder.decode(wanted, proposals)
        # Its gradient towards other sides vanishes where `decode` bounds them, which smooth L1's does not.
        of_boxes = _GIOU_WEIGHT * generalized_box_iou_loss(boxes, truth)
    else:
        raise ValueError(f"box_loss must be one of {', '.join(BOX_LOSSES)}, not {box_loss!r}")
    of_classes = F.cross_entropy(class_logits, samples.labels, reduction="none")
    if class_weights is not None:
        weights = class_logits.new_tensor(class_weights)[samples.labels]
        of_classes, of_boxes = of_classes * weights, of_boxes * weights[positive]
    return {"loss_classifier": of_classes.mean(), "loss_box_reg": of_boxes.sum() / samples.labels.numel()}


def class_weights(labels: Tensor, num_classes: int, balance: float) -> tuple[float, ...]:
    """Factors for `roi_losses` that let rare classes weigh more.

    A class has its share of the boxes to the power of `-balance`, scaled so that the mean over the boxes is 1: with 0
    all boxes weigh alike, with 1 the sums of all classes do.

    Args:
        labels: `[G]`, of all boxes of the data.
        num_classes: with the background, which has 1, as has a class without boxes.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = counts.clamp(min=1) ** -balance
    weights *= counts.sum() / (counts * weights).sum()
    return tuple(torch.where(counts > 0, weights, 1.0).tolist())
