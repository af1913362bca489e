"""Faster R-CNN: transform, backbone, region proposals, RoI heads (Ren et al. 2015)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from model.anchors import AnchorGenerator
from model.losses.targets import check_targets
from model.roi_heads import FastRCNNPredictor, RoIHeads, TwoMLPHead
from model.roi_pool import MultiScaleRoIAlign
from model.rpn import RegionProposalNetwork, RPNHead
from model.structures import Detection, ImageBatch, Target
from model.transform import IMAGENET_MEAN, IMAGENET_STD, GeneralizedRCNNTransform

REPRESENTATION_SIZE = 1024

# Checkpoints from before torchvision 0.13 name these convolutions without their place in a block.
_OLD_SPELLINGS = (
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
)


class FasterRCNN(nn.Module):
    """A two-stage detector on any backbone. The arguments, their names and defaults are torchvision's.

    Only `box_vote_thresh` is ours; by default it changes nothing.

    In eval mode `model(images)` gives one `Detection` per image; in training mode `model(images, targets)` gives the
    four losses. Images are a list of `[C, H, W]` floats in 0..1, each of its own size.

    Args:
        backbone: `[N, 3, H, W]` to a tensor or a dict of feature maps, all with `backbone.out_channels` channels.
        num_classes: K, background included; None only with a `box_predictor`.
        min_size, max_size, image_mean, image_std: see `GeneralizedRCNNTransform`, which also takes further keywords.
        rpn_anchor_generator: by default 32, 64, 128, 256, 512 px on the five levels, ratios 0.5, 1 and 2.
        rpn_head: by default an `RPNHead`.
        rpn_*: see `RegionProposalNetwork`; `_train` and `_test` are its training and detection values.
        box_roi_pool: by default `MultiScaleRoIAlign` on levels "0" to "3", 7x7.
        box_head: by default a `TwoMLPHead`.
        box_predictor: by default a `FastRCNNPredictor`; excludes `num_classes`.
        box_*, bbox_reg_weights: see `RoIHeads`.

    Raises:
        ValueError: the backbone has no `out_channels`, or of `num_classes` and `box_predictor` both or none are given.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        rpn_anchor_generator: AnchorGenerator | None = None,
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        box_roi_pool: MultiScaleRoIAlign | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        *,
        box_vote_thresh: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        channels = _channels(backbone)
        anchors = default_anchor_generator() if rpn_anchor_generator is None else rpn_anchor_generator
        pool = default_roi_pool() if box_roi_pool is None else box_roi_pool
        self.transform = GeneralizedRCNNTransform(
            min_size, max_size, image_mean or IMAGENET_MEAN, image_std or IMAGENET_STD, **kwargs
        )
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]) if rpn_head is None else rpn_head,
            fg_iou_thresh=rpn_fg_iou_thresh,
            bg_iou_thresh=rpn_bg_iou_thresh,
            batch_size_per_image=rpn_batch_size_per_image,
            positive_fraction=rpn_positive_fraction,
            pre_nms_top_n=(rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test),
            post_nms_top_n=(rpn_post_nms_top_n_train, rpn_post_nms_top_n_test),
            nms_thresh=rpn_nms_thresh,
            score_thresh=rpn_score_thresh,
        )
        self.roi_heads = RoIHeads(
            pool,
            TwoMLPHead(channels * pool.output_size[0] ** 2, REPRESENTATION_SIZE) if box_head is None else box_head,
            _predictor(box_predictor, num_classes),
            fg_iou_thresh=box_fg_iou_thresh,
            bg_iou_thresh=box_bg_iou_thresh,
            batch_size_per_image=box_batch_size_per_image,
            positive_fraction=box_positive_fraction,
            bbox_reg_weights=bbox_reg_weights,
            score_thresh=box_score_thresh,
            nms_thresh=box_nms_thresh,
            detections_per_img=box_detections_per_img,
            vote_thresh=box_vote_thresh,
        )
        nn.Module.register_load_state_dict_pre_hook(self, _rename_old_keys)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detection]:
        return self.losses(images, targets) if self.training else self.detect(images)

    def detect(self, images: Sequence[Tensor]) -> list[Detection]:
        """The detections of each image, in its own pixels, best first."""
        batch: ImageBatch = self.transform(images)
        features = self.features(batch)
        proposals = self.rpn(batch, features)
        detections = self.roi_heads(features, proposals, batch.image_sizes)
        original_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return self.transform.restore(detections, batch.image_sizes, original_sizes)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target] | None) -> dict[str, Tensor]:
        """`loss_objectness`, `loss_rpn_box_reg`, `loss_classifier`, `loss_box_reg`: scalars to add up.

        Raises:
            ValueError, TypeError: see `check_targets`; a degenerate box is named.
        """
        batch, resized = self.transform.with_targets(images, check_targets(targets, len(images)))
        features = self.features(batch)
        proposals, rpn_losses = self.rpn.losses(batch, features, resized)
        return self.roi_heads.losses(features, proposals, batch.image_sizes, resized) | rpn_losses

    def features(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The backbone's feature maps by name, finest first; a lone map is named "0"."""
        features = self.backbone(batch.tensors)
        return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features


def default_anchor_generator() -> AnchorGenerator:
    return AnchorGenerator(sizes=((32,), (64,), (128,), (256,), (512,)), aspect_ratios=((0.5, 1.0, 2.0),) * 5)


def default_roi_pool() -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(("0", "1", "2", "3"), output_size=7, sampling_ratio=2)


def _channels(backbone: nn.Module) -> int:
    channels: int | None = getattr(backbone, "out_channels", None)
    if channels is None:
        raise ValueError("the backbone needs an attribute out_channels: the channels of each feature map")
    return channels


def _predictor(given: nn.Module | None, num_classes: int | None) -> nn.Module:
    if given is None and num_classes is not None:
        return FastRCNNPredictor(REPRESENTATION_SIZE, num_classes)
    if given is not None and num_classes is None:
        return given
    raise ValueError("give either num_classes or a box_predictor, which has its own")


def modern_key(key: str) -> str:
    """A state dict key in today's spelling."""
    for pattern, replacement in _OLD_SPELLINGS:
        key = pattern.sub(replacement, key)
    return key


def _rename_old_keys(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        own_key = key.removeprefix(prefix)
        if (renamed := modern_key(own_key)) != own_key:
            state_dict[prefix + renamed] = state_dict.pop(key)
