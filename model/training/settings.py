"""The numbers that decide the result of a training run. Needs no torch: `frcnn train` makes its options from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

if TYPE_CHECKING:
    from model.training.augmentation import Augmentation


def _setting(
    default: Any, about: str, *, least: float | None = None, most: float | None = None, derived: bool = False
) -> Any:
    """A field that carries its help and its bounds.

    Args:
        derived: the command line computes the default from the data, the weights or other settings; `about` says how.
    """
    return field(default=default, metadata={"about": about, "least": least, "most": most, "derived": derived})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train.

    Raises:
        ValueError: a value is out of its bounds.
    """

    iterations: int = field(
        metadata={"about": "Updates of the weights; wins over --epochs", "least": 1, "most": None, "derived": True}
    )
    batch_size: int = _setting(8, "Images an update, over all processes", least=1)
    accumulate: int = _setting(1, "Compute a batch in so many parts, one after the other, to save memory", least=1)
    # 0.02 suits batches of 16, and smaller ones in proportion.
    learning_rate: float = _setting(
        0.01, "Its peak; by default 0.00125 for each image of a batch", least=0, derived=True
    )
    momentum: float = _setting(0.9, "Of the updates", least=0, most=1)
    weight_decay: float = _setting(1e-4, "Of all weights but norms and biases", least=0)
    schedule: Literal["cosine", "onecycle", "step"] = _setting("cosine", "How the learning rate falls")
    warmup: int = _setting(100, "Iterations of linear rise; by default 5 %", least=0, derived=True)
    clip_norm: float = _setting(5.0, "Bound on the norm of all gradients together; 0 for none", least=0)
    # Batch norm learns; else it is constant. Training from scratch needs it, small batches suffer by it.
    live_norm: bool = False
    trainable_layers: int = _setting(
        3,
        "Stages of the body that learn, from its output; by default 3, from scratch 5",
        least=0,
        most=5,
        derived=True,
    )
    # The average is evaluated and kept as the result.
    average_decay: float = _setting(0.998, "Of the weights' moving average; 0 for the weights", least=0, most=1)
    norm_images: int = _setting(
        200, "Training images to measure live batch norm of the average on; 0: average it", least=0
    )
    # Boxes and losses are float32 in both.
    precision: Literal["fp32", "bf16"] = _setting(
        "bf16", "Of the network's arithmetic; by default bf16 where the device has it, else fp32", derived=True
    )
    min_size: int = _setting(800, "Shorter side, px; by default the weights', or 800", least=1, derived=True)
    max_size: int = _setting(1333, "Longer side, px; by default the weights', or 1333", least=1, derived=True)
    scale_jitter: float = _setting(0.1, "Sizes vary by this share, drawn for each batch", least=0, most=0.9)
    flips: Literal["none", "horizontal", "both", "dihedral"] = _setting("horizontal", "dihedral adds quarter turns")
    crop: float = _setting(1.0, "Learn from parts with this share of each side", least=0.1, most=1)
    whole_from: float = _setting(0.7, "Crop no more after this share of the run", least=0, most=1)
    colour: float = _setting(0.0, "Brightness and colours vary by this share", least=0, most=0.9)
    rpn_samples: int = _setting(256, "Anchors an image in the losses", least=1)
    roi_samples: int = _setting(512, "Proposals an image in the losses", least=1)
    roi_positive_fraction: float = _setting(0.25, "Most of them that may lie on an object, as a share", least=0, most=1)
    box_loss: Literal["smooth_l1", "giou"] = _setting(
        "smooth_l1", "Of the final boxes; giou is nearer to what AP measures"
    )
    # See `losses.class_weights`.
    class_balance: float = _setting(
        0.0, "Rare classes weigh more, as by 0.5; with 1 each as much as any other", least=0, most=1
    )
    proposals: int = _setting(2000, "That the RPN hands on in training", least=1)
    # None for what its first weights have. Fewer proposals are faster where objects are few.
    detection_proposals: int | None = _setting(
        None, "That it hands on when the result detects; by default the weights', or 1000", least=1
    )
    # None for what its first weights have, 0 for no votes; see `RoIHeads`.
    box_vote_thresh: float | None = _setting(
        None,
        "When it detects, a box moves to the mean of the candidates that overlap it by this IoU (say 0.8); 0: none "
        "does; by default as the weights have it",
        least=0,
        most=1,
    )
    evaluate_every: int = _setting(
        0, "Iterations between evaluations; 0: at the end; by default a tenth of the run", least=0, derived=True
    )
    save_every: int = _setting(200, "Iterations between states to resume from; 0: at the end", least=0)
    save_minutes: float = _setting(10.0, "Minutes between such states, as well; 0: by iterations only", least=0)
    seed: int = _setting(0, "Of all that is random", least=0)

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for one in fields(self):
            value, choices = getattr(self, one.name), get_args(types[one.name])
            if isinstance(value, str) and value not in choices:
                raise ValueError(f"{one.name} must be one of {', '.join(choices)}, not {value!r}")
            least, most = one.metadata.get("least"), one.metadata.get("most")
            # Written so that NaN is rejected.
            if value is not None and not ((least is None or value >= least) and (most is None or value <= most)):
                bounds = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{one.name} must be {bounds}, not {value}")

    @property
    def augmentation(self) -> Augmentation:
        """What may happen to an image."""
        from model.training.augmentation import Augmentation

        return Augmentation(flips=self.flips, crop=self.crop, colour=self.colour)

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
        """Plain values by name, for a snapshot."""
        return asdict(self)
