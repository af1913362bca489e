"""The detector after its network, with fixed shapes and without waiting for the device, as a CUDA graph needs it.

Where the eager form drops boxes, this one keeps them in their places and marks them, so every tensor's shape follows
from the batch's alone. It finds what the eager form finds. Only the order of equal scores may differ, and boxes whose
overlap is within rounding of the threshold.

N images, L levels, n the most anchors that a level hands on, R proposals, K classes, M candidates, D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from model.boxes import sides_at_least, vote_boxes
from model.inference.network import NetworkOutput
from model.inference.serving import ServingModel
from model.roi_align import multi_scale_roi_align
from model.roi_heads import MIN_DETECTION_SIDE
from model.rpn import MIN_PROPOSAL_SIDE
from model.structures import Detection, ImageBatch, SizeHW

# Candidates of an image that suppression looks at, best first. Photographs have some hundred.
CANDIDATES = 1024
_NONE = -1.0  # the score of what is no proposal, no candidate, no detection


class NMSMask(Protocol):
    """See `model.inference.kernels.nms.nms_mask`."""

    def __call__(self, boxes: Tensor, valid: Tensor, threshold: float, *, labels: Tensor | None = None) -> Tensor: ...


class FixedShapeHeads:
    """Proposals, RoI heads and post-processing of a `ServingModel`, for batches of one padded shape.

    Args:
        form: whose arithmetic it does.
        nms_mask: suppression of many groups of boxes.
        roi_align: like `multi_scale_roi_align`.
        candidates: M, at most. Greedy suppression in the order of the scores needs to see no more as soon as it has
            kept D boxes, or has seen all; where neither is so, the answer says that it may be incomplete. Where boxes
            are voted on, all have a say.
    """

    def __init__(
        self,
        form: ServingModel,
        *,
        nms_mask: NMSMask,
        roi_align: Callable[..., Tensor] = multi_scale_roi_align,
        candidates: int = CANDIDATES,
    ) -> None:
        self._form = form
        self._nms_mask = nms_mask
        self._roi_align = partial(
            roi_align,
            scales=form.scales,
            output_hw=form.pool.output_size,
            sampling_ratio=form.pool.sampling_ratio,
        )
        self._candidates = candidates

    def anchors(self, padded_hw: SizeHW, device: torch.device) -> list[Tensor]:
        """Per level, the anchors of images padded to this size: `[H * W * A, 4]`. This waits for the device."""
        grids = [padded_hw]
        for _ in range(6):
            grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
        # Nothing of the image and the maps is looked at but their shapes.
        maps = [torch.empty(0, *hw, device=device) for hw in grids[2:]]
        batch = ImageBatch(torch.empty(0, *padded_hw, device=device), [padded_hw])
        [anchors] = self._form.rpn.anchor_generator(batch, maps)
        per_cell = len(anchors) // sum(height * width for height, width in grids[2:])
        return list(anchors.split([height * width * per_cell for height, width in grids[2:]]))

    def __call__(self, output: NetworkOutput, anchors: Sequence[Tensor], sizes: Tensor) -> Tensor:
        """What is in the images.

        Args:
            output: the network's.
            anchors: see `anchors`.
            sizes: `[N, 4]` float32, height and width of each image before padding, and by what they are multiplied to
                be those of the original picture.

        Returns:
            `[N, D + 1, 6]` float32: x1, y1, x2, y2 in the original's pixels, label, score; best first, score -1 from
            where there are no more. The last row's first number is 1 if the image's detections are complete.
        """
        proposals, is_proposal = self.propose(output, anchors, sizes)
        logits, deltas = self.run_box_head(output, proposals)
        return self.select(logits, deltas, proposals, is_proposal, sizes)

    def propose(self, output: NetworkOutput, anchors: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes `[N, R, 4]`, best first, and which of them are proposals `[N, R]`."""
        rpn = self._form.rpn
        logits, deltas, references = [], [], []
        per_level = zip(*self._form.per_anchor(output), anchors, strict=True)
        for level_logits, level_deltas, level_anchors in per_level:
            top_logits, top = level_logits.topk(min(rpn.pre_nms_top_n[1], level_logits.shape[1]), dim=1)
            logits.append(top_logits.float())
            deltas.append(level_deltas.gather(1, top[..., None].expand(-1, -1, 4)))
            references.append(level_anchors[top])
        most = max(level.shape[1] for level in logits)
        missing = [most - level.shape[1] for level in logits]
        logit = torch.stack([F.pad(x, (0, m), value=-torch.inf) for x, m in zip(logits, missing, strict=True)], 1)
        delta, reference = (
            torch.stack([F.pad(x, (0, 0, 0, m)) for x, m in zip(tensors, missing, strict=True)], 1)
            for tensors in (deltas, references)
        )  # [N, L, n, 4]
        boxes = _clipped(rpn.box_coder.decode(delta, reference), sizes[:, None, None])
        score = logit.sigmoid()
        valid = (logit > -torch.inf) & sides_at_least(boxes, MIN_PROPOSAL_SIDE) & (score >= rpn.score_thresh)
        keep = self._nms_mask(boxes.flatten(0, 1), valid.flatten(0, 1), rpn.nms_thresh).view_as(valid)
        score = score.masked_fill(~keep, _NONE).flatten(1)
        best, at = score.topk(min(rpn.post_nms_top_n[1], score.shape[1]), dim=1)
        return boxes.flatten(1, 2).gather(1, at[..., None].expand(-1, -1, 4)), best >= 0

    def run_box_head(self, output: NetworkOutput, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[N, R, K]` and deltas `[N, R, K, 4]`."""
        images, regions = proposals.shape[:2]
        boxes = proposals.flatten(0, 1)
        image_of = torch.arange(images, device=boxes.device)[:, None].expand(-1, regions).flatten()
        pooled = self._roi_align(output.levels, boxes, image_of, self._form.pool.levels_of(boxes, self._form.scales))
        logits, deltas = self._form.classify(pooled)
        return logits.unflatten(0, (images, regions)), deltas.unflatten(0, (images, regions))

    def select(self, logits: Tensor, deltas: Tensor, proposals: Tensor, is_proposal: Tensor, sizes: Tensor) -> Tensor:
        """The rows that `__call__` returns."""
        heads, classes = self._form.heads, logits.shape[-1]
        scores = logits.float().softmax(-1)[..., 1:]  # [N, R, K - 1]: without the background
        likely = (scores > heads.score_thresh) & is_proposal[..., None]
        ranked = scores.masked_fill(~likely, _NONE).flatten(1)
        score, at = ranked.topk(min(self._candidates, ranked.shape[1]), dim=1)  # [N, M]
        region = at.div(classes - 1, rounding_mode="floor")
        label = at - region * (classes - 1) + 1
        delta = deltas.flatten(1, 2).gather(1, (region * classes + label)[..., None].expand(-1, -1, 4))
        boxes = heads.box_coder.decode(delta, proposals.gather(1, region[..., None].expand(-1, -1, 4)))
        boxes = _clipped(boxes, sizes[:, None])
        valid = (score >= 0) & sides_at_least(boxes, MIN_DETECTION_SIDE)
        keep = self._nms_mask(boxes, valid, heads.nms_thresh, labels=label.to(torch.int32))
        final, best = score.masked_fill(~keep, _NONE).topk(min(heads.detections_per_img, score.shape[1]), dim=1)
        found, labels = boxes.gather(1, best[..., None].expand(-1, -1, 4)), label.gather(1, best)
        is_complete = likely.flatten(1).sum(1) <= score.shape[1]  # all candidates are seen
        if heads.vote_thresh is None:
            is_complete |= keep.sum(1) >= heads.detections_per_img
        else:
            weight = score.masked_fill(~valid, 0)
            found = vote_boxes(found, labels, boxes, label, weight, heads.vote_thresh)
        rows = torch.cat((found * _xyxy(sizes[:, None, 2:]), labels[..., None].float(), final[..., None]), dim=-1)
        return torch.cat((rows, is_complete[:, None, None].float().expand(-1, 1, 6)), dim=1)


def detections_of(rows: npt.NDArray[np.float32]) -> list[Detection | None]:
    """Each image's detections, views of its rows on the host; None where they may be incomplete.

    Args:
        rows: `[N, D + 1, 6]`, see `FixedShapeHeads`.
    """
    counts = (rows[:, :-1, 5] >= 0).sum(axis=1).tolist()
    labels = rows[:, :, 4].astype(np.int64)
    return [
        Detection(
            boxes=torch.from_numpy(rows[n, :count, :4]),
            labels=torch.from_numpy(labels[n, :count]),
            scores=torch.from_numpy(rows[n, :count, 5]),
        )
        if is_complete
        else None
        for n, (count, is_complete) in enumerate(zip(counts, rows[:, -1, 0].tolist(), strict=True))
    ]


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """`clip_boxes` for images of several sizes `[..., 2 or more]`, which broadcast with the boxes."""
    return torch.minimum(boxes.clamp(min=0), _xyxy(sizes[..., :2]))


def _xyxy(hw: Tensor) -> Tensor:
    """`[..., 2]` for height and width to `[..., 4]` for x, y, x, y. An index list would be copied from the host."""
    xy = hw.flip(-1)
    return torch.cat((xy, xy), dim=-1)
