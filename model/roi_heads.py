"""RoI heads: what each proposal shows, where exactly it is, and which detections to keep.

Glossary: N images, R proposals of all images together, K classes with 0 the background, D representation size;
boxes xyxy in pixels of the resized image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from model.box_coder import BoxCoder
from model.boxes import at_least_float32, clip_boxes, sides_at_least, vote_boxes
from model.losses.losses import roi_losses
from model.losses.matcher import Matcher
from model.losses.sampler import BalancedPositiveNegativeSampler
from model.losses.targets import select_training_samples
from model.resnet import NormLayer
from model.structures import Detection, SizeHW, Target

# A detection thinner than this, in pixels of the resized image, is dropped.
MIN_DETECTION_SIDE = 1e-2


class TwoMLPHead(nn.Module):
    """Two fully connected layers on the flattened RoI features; `[R, C, h, w]` to `[R, D]`."""

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions with norm and ReLU, then linear layers with ReLU; `[R, C, h, w]` to `[R, D]`.

    Args:
        input_size: C, h, w.
        conv_layers: channels after each convolution.
        fc_layers: numbers after each linear layer; the last is D.
        norm_layer: makes the norm after each convolution, which then has no bias; None for no norm.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        conv_layers: Sequence[int],
        fc_layers: Sequence[int],
        norm_layer: NormLayer | None = None,
    ) -> None:
        channels, height, width = input_size
        blocks: list[nn.Module] = []
        for out_channels in conv_layers:
            blocks.append(_conv_norm_relu(channels, out_channels, norm_layer))
            channels = out_channels
        blocks.append(nn.Flatten())
        features = channels * height * width
        for out_features in fc_layers:
            blocks += [nn.Linear(features, out_features), nn.ReLU(inplace=True)]
            features = out_features
        super().__init__(*blocks)


def _conv_norm_relu(in_channels: int, out_channels: int, norm_layer: NormLayer | None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=norm_layer is None)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norm = [] if norm_layer is None else [norm_layer(out_channels)]
    return nn.Sequential(conv, *norm, nn.ReLU(inplace=True))


class FastRCNNPredictor(nn.Module):
    """Class logits and, for each class, the deltas from the proposal to the object.

    The deltas are not boxes: `RoIHeads` decodes them against the proposals. Those of class 0 mean nothing.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[R, D]` (or `[R, D, 1, 1]`) to logits `[R, K]` and deltas `[R, K * 4]`."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)


class RoIHeads(nn.Module):
    """Pool, represent, predict; then keep the best detections, or compute the losses.

    Args:
        box_roi_pool: pyramid, proposals and image sizes to `[R, C, h, w]`.
        box_head: `[R, C, h, w]` to `[R, D]`.
        box_predictor: `[R, D]` to logits `[R, K]` and deltas `[R, K * 4]`.
        fg_iou_thresh: overlap from which a proposal is a positive example.
        bg_iou_thresh: overlap under which it is a negative one.
        batch_size_per_image: proposals sampled of each image for the losses. Detection does not sample.
        positive_fraction: the largest share of positives among them.
        bbox_reg_weights: factors on the deltas, see `BoxCoder`.
        score_thresh: only detections that score higher are kept.
        nms_thresh: overlap above which the lower of two detections of a class is dropped.
        detections_per_img: how many are kept at most.
        vote_thresh: overlap from which a candidate has a vote on where a box that is kept lies, see `vote_boxes`; None,
            as in torchvision, for no vote. Scores and labels stay.

    Attributes:
        box_loss: "smooth_l1", as torchvision's, or "giou"; see `roi_losses`.
        class_weights: K factors on the losses, or None as in torchvision; see `roi_losses`.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        *,
        fg_iou_thresh: float = 0.5,
        bg_iou_thresh: float = 0.5,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
        vote_thresh: float | None = None,
    ) -> None:
        super().__init__()
        if vote_thresh is not None and not 0 < vote_thresh <= 1:
            raise ValueError(f"box_vote_thresh must be over 0 and at most 1, not {vote_thresh}")
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.box_coder = BoxCoder(bbox_reg_weights or (10.0, 10.0, 5.0, 5.0))
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(batch_size_per_image, positive_fraction)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.vote_thresh = vote_thresh
        self.box_loss = "smooth_l1"
        self.class_weights: Sequence[float] | None = None

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sequence[SizeHW]
    ) -> list[Detection]:
        """The detections of each image."""
        class_logits, deltas = self.predict(features, proposals, image_shapes)
        return self.postprocess(class_logits, deltas, proposals, image_shapes)

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sequence[SizeHW],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """The two losses (see `roi_losses`) on sampled proposals (see `select_training_samples`)."""
        samples = select_training_samples(
            proposals,
            targets,
            matcher=self.proposal_matcher,
            sampler=self.fg_bg_sampler,
            coder=self.box_coder,
        )
        class_logits, deltas = self.predict(features, samples.proposals, image_shapes)
        return roi_losses(
            class_logits,
            deltas,
            samples,
            self.box_coder,
            box_loss=self.box_loss,
            class_weights=self.class_weights,
        )

    def predict(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sequence[SizeHW]
    ) -> tuple[Tensor, Tensor]:
        """Logits `[R, K]` and deltas `[R, K, 4]` of the proposals of all images."""
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        class_logits, deltas = self.box_predictor(self.box_head(pooled))
        return class_logits, deltas.view(*class_logits.shape, 4)

    def postprocess(
        self, class_logits: Tensor, deltas: Tensor, proposals: list[Tensor], image_shapes: Sequence[SizeHW]
    ) -> list[Detection]:
        """Every (proposal, class) pair is a candidate; keep the likely ones, NMS within each class, the best.

        One proposal may so be detected as several classes. Only candidates above the threshold, usually well under
        one in a hundred, are decoded.
        """
        scores = at_least_float32(class_logits).softmax(-1)
        counts = [len(p) for p in proposals]
        detections = []
        for image_scores, image_deltas, image_proposals, size_hw in zip(
            scores.split(counts), deltas.split(counts), proposals, image_shapes, strict=True
        ):
            likely = image_scores[:, 1:] > self.score_thresh  # [R, K - 1]: without the background
            region, foreground = torch.where(likely)
            labels = foreground + 1
            boxes = self.box_coder.decode(image_deltas[region, labels], image_proposals[region])
            boxes = clip_boxes(boxes, size_hw)
            good = sides_at_least(boxes, MIN_DETECTION_SIDE)
            boxes, labels, kept_scores = boxes[good], labels[good], image_scores[region, labels][good]
            keep = batched_nms(boxes, kept_scores, labels, self.nms_thresh)[: self.detections_per_img]
            found = Detection(boxes=boxes[keep], labels=labels[keep], scores=kept_scores[keep])
            if self.vote_thresh is not None:
                found["boxes"] = vote_boxes(
                    found["boxes"], found["labels"], boxes, labels, kept_scores, self.vote_thresh
                )
            detections.append(found)
        return detections
