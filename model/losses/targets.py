"""What each anchor and each proposal should have answered.

Glossary: N images, G ground-truth boxes, R proposals of an image, S of them sampled; boxes xyxy in pixels of the
resized image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.box_coder import BoxCoder
from model.boxes import box_iou
from model.losses.matcher import BACKGROUND, IGNORED, Matcher
from model.losses.sampler import BalancedPositiveNegativeSampler
from model.structures import Target


class DegenerateBoxError(ValueError):
    """A ground-truth box has no area, so that no deltas lead to it."""


def check_targets(targets: Sequence[Target] | None, num_images: int) -> Sequence[Target]:
    """The targets, if the losses can be computed from them.

    Raises:
        ValueError: there are none, their number is not the images', or a key or shape is wrong.
        TypeError: boxes are not floating point or labels not int64.
        DegenerateBoxError: a box has a width or height of zero or less, or is not finite; names image and box.
    """
    if targets is None:
        raise ValueError("training needs targets: one {'boxes', 'labels'} for each image")
    if len(targets) != num_images:
        raise ValueError(f"{num_images} images came with {len(targets)} targets")
    for index, target in enumerate(targets):
        _check_target(index, target)
    _check_boxes([target["boxes"] for target in targets])
    return targets


def _check_target(index: int, target: Target) -> None:
    if missing := {"boxes", "labels"} - target.keys():
        raise ValueError(f"the target of image {index} lacks {', '.join(sorted(missing))}")
    boxes, labels = target["boxes"], target["labels"]
    if not isinstance(boxes, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"boxes and labels of image {index} must be tensors")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"the boxes of image {index} must have the shape [G, 4], not {list(boxes.shape)}")
    if labels.shape != boxes.shape[:1]:
        raise ValueError(f"image {index} has {boxes.shape[0]} boxes, but labels of shape {list(labels.shape)}")
    if not boxes.is_floating_point():
        raise TypeError(f"the boxes of image {index} must be floating point, not {boxes.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"the labels of image {index} must be int64, not {labels.dtype}")


def _check_boxes(of_images: Sequence[Tensor]) -> None:
    """All images at once, so that the host waits for a GPU once."""
    boxes = torch.cat(list(of_images))
    proper = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
    if proper.all():
        return
    row = int(torch.where(~proper)[0][0])
    bad = row
    for index, own in enumerate(of_images):
        if bad < len(own):
            raise DegenerateBoxError(
                f"box {bad} of image {index} is {boxes[row].tolist()}: "
                "boxes are [x1, y1, x2, y2] with x1 < x2 and y1 < y2, all finite"
            )
        bad -= len(own)


class AnchorTargets(NamedTuple):
    labels: Tensor  # [A'] float: 1 object, 0 background, -1 ignored; A' anchors of all levels
    deltas: Tensor  # [A', 4] towards the matched box; meaningless where the label is not 1


def anchor_targets(anchors: Tensor, target: Target, matcher: Matcher, coder: BoxCoder) -> AnchorTargets:
    """What the RPN should say of each anchor of one image."""
    matches = matcher(box_iou(target["boxes"], anchors))
    labels = (matches >= 0).to(torch.float32)
    labels[matches == IGNORED] = -1.0
    return AnchorTargets(labels, coder.encode(_matched_boxes(target["boxes"], matches), anchors))


class RoISamples(NamedTuple):
    proposals: list[Tensor]  # N times [S, 4]
    labels: Tensor  # [sum of S] int64: the class, 0 for background
    deltas: Tensor  # [sum of S, 4] from proposal to matched box; meaningless for background


def select_training_samples(
    proposals: Sequence[Tensor],
    targets: Sequence[Target],
    *,
    matcher: Matcher,
    sampler: BalancedPositiveNegativeSampler,
    coder: BoxCoder,
) -> RoISamples:
    """Choose the proposals that the RoI heads are trained on, and what they should answer to each.

    The ground-truth boxes join the proposals first, so that even an untrained RPN offers positives.
    """
    sampled: list[Tensor] = []
    labels: list[Tensor] = []
    deltas: list[Tensor] = []
    for boxes, target in zip(proposals, targets, strict=True):
        truth = target["boxes"].to(boxes.dtype)
        candidates = torch.cat((boxes, truth))
        matches = matcher(box_iou(truth, candidates))
        classes = _matched_classes(target["labels"], matches)
        chosen = torch.cat(sampler(classes)).sort().values
        sampled.append(candidates[chosen])
        labels.append(classes[chosen])
        deltas.append(coder.encode(_matched_boxes(truth, matches[chosen]), candidates[chosen]))
    return RoISamples(sampled, torch.cat(labels), torch.cat(deltas))


def _matched_boxes(truth: Tensor, matches: Tensor) -> Tensor:
    """The matched box of each candidate; any box, or zeros, for those without one. `[R, 4]`."""
    if truth.shape[0] == 0:
        return truth.new_zeros((matches.shape[0], 4))
    return truth[matches.clamp(min=0)]


def _matched_classes(truth_labels: Tensor, matches: Tensor) -> Tensor:
    """The class of each candidate: 0 where it is background, -1 where it is ignored. `[R]` int64."""
    if truth_labels.shape[0] == 0:
        return torch.zeros_like(matches)
    classes = truth_labels[matches.clamp(min=0)]
    classes[matches == BACKGROUND] = 0
    classes[matches == IGNORED] = -1
    return classes
