"""The detectors that can be built, under torchvision's names.

`fasterrcnn_resnet50_fpn_v2` follows Li et al. 2021 ("Benchmarking Detection Transfer Learning with Vision
Transformers"): batch norm in the pyramid, two convolutions in the RPN head, four convolutions with batch norm before
one linear layer in the box head.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from model.backbone import resnet_fpn
from model.faster_rcnn import REPRESENTATION_SIZE, FasterRCNN, default_anchor_generator
from model.resnet import NormLayer, ResNet
from model.roi_heads import FastRCNNConvFCHead
from model.rpn import RPNHead

_POOLED_HW = (7, 7)
_BOX_HEAD_CHANNELS = (256, 256, 256, 256)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A detector on a ResNet-50 with a feature pyramid.

    Attributes:
        name: torchvision's name of the function that builds it.
        coco_norm_eps: epsilon of the batch norms of its official COCO weights, which the file does not hold.
        is_v2: whether it has the parts of version 2: see the head of this module.
    """

    name: str
    coco_norm_eps: float
    is_v2: bool

    @property
    def frozen_norm(self) -> bool:
        """Whether batch norm is constant in a model that is built from weights, as in torchvision."""
        return not self.is_v2

    def build(
        self,
        body: ResNet,
        num_classes: int | None,
        *,
        norm_layer: NormLayer,
        trainable_layers: int,
        **kwargs: Any,
    ) -> FasterRCNN:
        """Build the detector on a body.

        Args:
            body: a ResNet-50, with its weights loaded if it begins with any.
            num_classes: K, background included; None only with a `box_predictor`.
            norm_layer: makes the batch norms of the pyramid and the box head, if the architecture has them.
            trainable_layers: see `resnet_fpn`.
            **kwargs: keywords of `FasterRCNN`. A part that they name replaces the architecture's own.
        """
        backbone = resnet_fpn(body, trainable_layers=trainable_layers, norm_layer=norm_layer if self.is_v2 else None)
        if self.is_v2:
            anchors = kwargs.get("rpn_anchor_generator") or default_anchor_generator()
            kwargs["rpn_anchor_generator"] = anchors
            if kwargs.get("rpn_head") is None:
                anchors_per_cell = anchors.num_anchors_per_location()[0]
                kwargs["rpn_head"] = RPNHead(backbone.out_channels, anchors_per_cell, conv_depth=2)
            if kwargs.get("box_head") is None:
                kwargs["box_head"] = FastRCNNConvFCHead(
                    (backbone.out_channels, *_POOLED_HW), _BOX_HEAD_CHANNELS, [REPRESENTATION_SIZE], norm_layer
                )
        return FasterRCNN(backbone, num_classes, **kwargs)


FASTERRCNN_RESNET50_FPN = Architecture(name="fasterrcnn_resnet50_fpn", coco_norm_eps=0.0, is_v2=False)
FASTERRCNN_RESNET50_FPN_V2 = Architecture(name="fasterrcnn_resnet50_fpn_v2", coco_norm_eps=1e-5, is_v2=True)
ARCHITECTURES = {one.name: one for one in (FASTERRCNN_RESNET50_FPN, FASTERRCNN_RESNET50_FPN_V2)}


def architecture_named(name: str | None) -> Architecture | None:
    """The architecture of this name; None for None, which leaves the choice to the weights."""
    return None if name is None else ARCHITECTURES[name]


# A tensor that only version 2 has: the second norm of its box head.
_V2_KEY = "roi_heads.box_head.1.1.weight"


def architecture_of(keys: Collection[str]) -> Architecture:
    """Tell the architecture of a state dict by its keys. What is neither of the two counts as the first."""
    return FASTERRCNN_RESNET50_FPN_V2 if _V2_KEY in keys else FASTERRCNN_RESNET50_FPN
