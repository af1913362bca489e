"""Region proposal network: where objects may be, whatever they are (Faster R-CNN paper, section 3.1).

Glossary: N images, L levels, A anchors per cell, A' anchors of all levels together, R proposals of an image;
boxes xyxy in pixels of the resized image. The RPN predicts deltas against anchors, never coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from model.box_coder import BoxCoder
from model.boxes import at_least_float32, clip_boxes, sides_at_least
from model.losses.losses import rpn_losses
from model.losses.matcher import Matcher
from model.losses.sampler import BalancedPositiveNegativeSampler
from model.losses.targets import anchor_targets
from model.structures import ImageBatch, SizeHW, Target

# A proposal thinner than this, in pixels of the resized image, is an artefact of clipping.
MIN_PROPOSAL_SIDE = 1e-3


class RPNHead(nn.Module):
    """A 3x3 convolution, then 1x1 convolutions for objectness and deltas; shared by all levels.

    Args:
        in_channels: channels of the feature maps.
        num_anchors: A.
        conv_depth: number of 3x3 convolutions.
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        # Nested as in torchvision, whose names are conv.0.0, conv.1.0, ...
        self.conv = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1), nn.ReLU(inplace=True))
                for _ in range(conv_depth)
            )
        )
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level `[N, C, H, W]` to logits `[N, A, H, W]` and deltas `[N, A * 4, H, W]`."""
        hidden = [self.conv(level) for level in x]
        return [self.cls_logits(h) for h in hidden], [self.bbox_pred(h) for h in hidden]


class Predictions(NamedTuple):
    """What the head says of every anchor, in the order of the anchors."""

    logits: list[Tensor]  # L times [N, H * W * A]
    deltas: list[Tensor]  # L times [N, H * W * A, 4]
    anchors: Tensor  # [A', 4], the same for every image of a batch


class RegionProposalNetwork(nn.Module):
    """Anchors, the head's opinion of each, and the choice of proposals from them.

    Args:
        anchor_generator: called with the batch and the feature maps, gives each image its anchors.
        head: feature maps to logits and deltas, see `RPNHead`.
        fg_iou_thresh: overlap from which an anchor is a positive example.
        bg_iou_thresh: overlap under which it is a negative one.
        batch_size_per_image: anchors sampled of each image for the losses. Detection does not sample.
        positive_fraction: the largest share of positives among them.
        pre_nms_top_n: (in training, in detection) proposals kept per level before NMS.
        post_nms_top_n: (in training, in detection) proposals kept per image after NMS, of all levels.
        nms_thresh: overlap above which the lower of two proposals of a level is dropped.
        score_thresh: objectness under which a proposal is dropped.
    """

    def __init__(
        self,
        anchor_generator: nn.Module,
        head: nn.Module,
        *,
        fg_iou_thresh: float = 0.7,
        bg_iou_thresh: float = 0.3,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        pre_nms_top_n: tuple[int, int] = (2000, 1000),
        post_nms_top_n: tuple[int, int] = (2000, 1000),
        nms_thresh: float = 0.7,
        score_thresh: float = 0.0,
    ) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(batch_size_per_image, positive_fraction)
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh

    def forward(self, images: ImageBatch, features: dict[str, Tensor]) -> list[Tensor]:
        """The proposals of each image, best first: N times `[R, 4]`."""
        return self.propose(self.predict(images, features), images.image_sizes)

    def losses(
        self, images: ImageBatch, features: dict[str, Tensor], targets: Sequence[Target]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The proposals, which carry no gradient, and the two losses (see `rpn_losses`)."""
        predictions = self.predict(images, features)
        proposals = self.propose(predictions, images.image_sizes)
        wanted = [
            anchor_targets(predictions.anchors, target, self.proposal_matcher, self.box_coder) for target in targets
        ]
        logits, deltas = torch.cat(predictions.logits, dim=1), torch.cat(predictions.deltas, dim=1)
        return proposals, rpn_losses(logits, deltas, wanted, self.fg_bg_sampler)

    def predict(self, images: ImageBatch, features: dict[str, Tensor]) -> Predictions:
        """Run the head on every level and bring its maps into the order of the anchors."""
        feature_maps = list(features.values())
        logit_maps, delta_maps = self.head(feature_maps)
        return Predictions(
            logits=[_per_anchor(m, 1).flatten(1) for m in logit_maps],
            deltas=[_per_anchor(d, d.shape[1] // m.shape[1]) for m, d in zip(logit_maps, delta_maps, strict=True)],
            anchors=self.anchor_generator(images, feature_maps)[0],
        )

    @torch.no_grad()
    def propose(self, predictions: Predictions, image_sizes: Sequence[SizeHW]) -> list[Tensor]:
        """Choose proposals: a level's best anchors are decoded, and only they."""
        pre_nms_top_n, post_nms_top_n = (
            n[0] if self.training else n[1] for n in (self.pre_nms_top_n, self.post_nms_top_n)
        )
        # 1. The best anchors of each level, by logit.
        logits, deltas, anchors, levels = [], [], [], []
        anchors_per_level = [level.shape[1] for level in predictions.logits]
        level_anchors = predictions.anchors.split(anchors_per_level)
        for level, (lg, dl, an) in enumerate(zip(predictions.logits, predictions.deltas, level_anchors, strict=True)):
            top_logits, top = lg.topk(min(pre_nms_top_n, lg.shape[1]), dim=1)  # [N, n]
            logits.append(top_logits)
            deltas.append(dl.gather(1, top[..., None].expand(-1, -1, 4)))
            anchors.append(an[top])
            levels.append(torch.full_like(top[0], level))
        # 2. Their boxes and scores, all images and levels at once.
        boxes = self.box_coder.decode(torch.cat(deltas, dim=1), torch.cat(anchors, dim=1))  # [N, L*n, 4]
        scores = at_least_float32(torch.cat(logits, dim=1)).sigmoid()  # [N, L*n]
        level_of = torch.cat(levels)  # [L*n]
        # 3. Per image, as the numbers left differ: clip, drop the thin and the unlikely, NMS within each level.
        proposals = []
        for image_boxes, image_scores, size_hw in zip(boxes, scores, image_sizes, strict=True):
            clipped = clip_boxes(image_boxes, size_hw)
            good = sides_at_least(clipped, MIN_PROPOSAL_SIDE) & (image_scores >= self.score_thresh)
            clipped = clipped[good]
            keep = batched_nms(clipped, image_scores[good], level_of[good], self.nms_thresh)
            proposals.append(clipped[keep[:post_nms_top_n]])
        return proposals


def _per_anchor(maps: Tensor, values: int) -> Tensor:
    """`[N, A * values, H, W]` to `[N, H * W * A, values]`: the anchors' order."""
    images, channels, height, width = maps.shape
    maps = maps.view(images, channels // values, values, height, width)
    return maps.permute(0, 3, 4, 1, 2).reshape(images, -1, values)
