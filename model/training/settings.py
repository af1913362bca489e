"""What a training run is told: every number that decides its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from model.training.augmentation import Augmentation
from model.training.losses import BOX_LOSSES
from model.training.schedule import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train.

    Attributes:
        iterations: updates of the weights in all.
        batch_size: images for each update, over all processes and accumulated parts.
        accumulate: parts in which a process computes its share of a batch, one after the other, to save memory.
        learning_rate: the peak; 0.02 suits batches of 16, and smaller ones in proportion.
        warmup: iterations of linear rise.
        weight_decay: of convolutions and linear layers; norms and biases have none.
        clip_norm: bound on the norm of all gradients together; 0 for none.
        live_norm: batch norm learns; else it is constant. Training from scratch needs it, small batches suffer by it.
        trainable_layers: stages of the body that learn, 0 to 5, counted from its output.
        average_decay: of the moving average that is evaluated and kept as the result; 0 for the weights as they are.
        norm_images: of the training data, that live batch norm of the average is measured on before it is evaluated; 0
            averages it like the weights.
        precision: "fp32" or "bf16" arithmetic. Boxes and losses are float32 in both.
        min_size, max_size: what images are resized to, in pixels; the result carries them.
        scale_jitter: both are scaled by a factor of 1 +- this, drawn for each batch.
        whole_from: share of the run after which images are no longer cropped.
        rpn_samples, roi_samples: anchors and proposals of an image that enter the losses.
        box_loss: of the RoI heads, "smooth_l1" or "giou".
        class_balance: how much more the boxes of rare classes weigh in the losses of the RoI heads, from 0 to 1; see
            `losses.class_weights`.
        proposals: that the RPN hands on in training.
        detection_proposals: that it hands on when the result detects; fewer are faster where objects are few. None for
            what its first weights have, or 1,000.
        box_vote_thresh: of the result, see `RoIHeads`; 0 for no votes, None for what its first weights have.
        evaluate_every, save_every: in iterations; 0 for the end only.
    """

    iterations: int
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 100
    clip_norm: float = 5.0
    live_norm: bool = False
    trainable_layers: int = 3
    average_decay: float = 0.998
    norm_images: int = 200
    precision: str = "bf16"
    min_size: int = 800
    max_size: int = 1333
    scale_jitter: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    whole_from: float = 0.7
    rpn_samples: int = 256
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    box_loss: str = "smooth_l1"
    class_balance: float = 0.0
    proposals: int = 2000
    detection_proposals: int | None = None
    box_vote_thresh: float | None = None
    evaluate_every: int = 0
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "accumulate", "min_size", "max_size", "rpn_samples", "roi_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {', '.join(BOX_LOSSES)}, not {self.box_loss!r}")
        if not 0 <= self.class_balance <= 1:
            raise ValueError(f"class_balance must be from 0 to 1, not {self.class_balance}")
        if self.precision not in {"fp32", "bf16"}:
            raise ValueError(f"precision must be fp32 or bf16, not {self.precision!r}")
        if not 0 <= self.scale_jitter < 1:
            raise ValueError(f"scale_jitter must be at least 0 and under 1, not {self.scale_jitter}")

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Keywords of `FasterRCNN` that the result has to be served with."""
        kwargs: dict[str, Any] = {"min_size": self.min_size, "max_size": self.max_size}
        if self.detection_proposals is not None:
            kwargs["rpn_pre_nms_top_n_test"] = kwargs["rpn_post_nms_top_n_test"] = self.detection_proposals
        if self.box_vote_thresh is not None:
            kwargs["box_vote_thresh"] = self.box_vote_thresh or None
        return kwargs

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, the augmentation's among them, for a snapshot."""
        values = asdict(self)
        augmentation: dict[str, Any] = values.pop("augmentation")
        return values | augmentation
