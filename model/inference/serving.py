"""The detector as it is served: a network for one backend, and around it the arithmetic that all backends share.

Boxes and scores are float32 in every precision: half precision has no room for coordinates. So is the last layer, whose
factors are rounded to TF32 on a GPU, unless the precision is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from model.faster_rcnn import FasterRCNN
from model.inference.box_head import FoldedBoxHead
from model.inference.fused_conv import layers_for
from model.inference.network import Network, NetworkOutput, TorchNetwork, UnsupportedModelError
from model.inference.precision import TORCH
from model.inference.sampling import reads_few_pixels, sample
from model.roi_align import multi_scale_roi_align
from model.roi_heads import FastRCNNPredictor, RoIHeads
from model.roi_pool import MultiScaleRoIAlign
from model.rpn import Predictions
from model.structures import Detection, ImageBatch, SizeHW

_RAW_SCORES = 1000


class Pending(Protocol):
    """A batch that a device works on."""

    def wait(self) -> None:
        """Block until the device is done with it. May be called in another thread than all else."""
        ...

    def fetch(self) -> list[Detection]:
        """What was found in each image, on the host. Call it once, after `wait`."""
        ...


class _Done:
    """A batch that has been answered."""

    def __init__(self, found: list[Detection]) -> None:
        self._found = found

    def wait(self) -> None:
        """There is nothing to wait for."""

    def fetch(self) -> list[Detection]:
        return self._found


class ServingModel:
    """Detects what the model it is made from detects, faster.

    Args:
        model: in eval mode, on its device, its RoI pooling scales pinned. Its weights are copied.
        network: its body, pyramid and RPN head for some backend; by default torch's.
        precision: by what name it goes.
        backend: what computes the network.
        dtype: of the default network and the box head's hidden layers.

    Raises:
        UnsupportedModelError: the parts are not those of a detector in `model.architectures`.
    """

    def __init__(
        self,
        model: FasterRCNN,
        network: Network | None = None,
        *,
        precision: str = "fp32",
        backend: str = TORCH,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        heads = model.roi_heads
        pool, head, predictor = heads.box_roi_pool, heads.box_head, heads.box_predictor
        if not isinstance(pool, MultiScaleRoIAlign) or pool.scales is None:
            raise UnsupportedModelError("the RoI pooling has to be MultiScaleRoIAlign with its scales pinned")
        if not isinstance(predictor, FastRCNNPredictor):
            raise UnsupportedModelError("only a box predictor of one linear layer each has a serving form")
        self.network = network or TorchNetwork(model, dtype)
        self.precision, self.backend = precision, backend
        self.device = predictor.cls_score.weight.device
        self.dtype = dtype
        self.transform, self.rpn, self.pool = model.transform, model.rpn, pool
        # Not the model's own heads: they would keep the box head's weights, which are packed again below.
        self.heads = RoIHeads(
            pool,
            nn.Identity(),
            predictor,
            bbox_reg_weights=heads.box_coder.weights,
            score_thresh=heads.score_thresh,
            nms_thresh=heads.nms_thresh,
            detections_per_img=heads.detections_per_img,
            vote_thresh=heads.vote_thresh,
        )
        self.scales = pool.scales
        layers = self.network.layers if isinstance(self.network, TorchNetwork) else layers_for(self.device, dtype)
        self._box_head = FoldedBoxHead(head, pool.output_size, dtype=dtype, layers=layers)
        self._predictor = predictor.float()

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor], *, on_stage: Callable[[str], None] | None = None) -> list[Detection]:
        """The detections of each image, in its own pixels, best first.

        Args:
            images: `[3, H, W]` each, uint8 or float in 0..1.
            on_stage: called with the name of each stage when it is over.
        """
        on_stage = on_stage or _ignore_stage
        self._set_arithmetic()
        batch: ImageBatch = self.transform.batch([self._resized(image) for image in images])
        on_stage("preprocess")
        output = self.network(batch.tensors)
        on_stage("network")
        proposals = self.rpn.propose(self._predictions(batch, output), batch.image_sizes)
        on_stage("proposals")
        logits, deltas = self._run_box_head(output, proposals)
        on_stage("roi")
        detections = self.heads.postprocess(logits, deltas, proposals, batch.image_sizes)
        original_sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        restored: list[Detection] = self.transform.restore(detections, batch.image_sizes, original_sizes)
        on_stage("post")
        return restored

    @torch.inference_mode()
    def run_network(self, images: Tensor) -> NetworkOutput:
        """The static part alone, to its end, on a batch `[N, 3, H, W]`: to see how long it takes."""
        self._set_arithmetic()
        output = self.network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return output

    @torch.inference_mode()
    def raw_scores(self, image: Tensor) -> Tensor:
        """What the detector scores in a picture before any threshold, in an order that rounding hardly changes.

        Args:
            image: `[3, H, W]`, as for `detect`.

        Returns:
            The highest objectness logits, sorted, and the highest logit of each class; on the host.
        """
        self._set_arithmetic()
        batch: ImageBatch = self.transform.batch([self._resized(image)])
        output = self.network(batch.tensors)
        proposals = self.rpn.propose(self._predictions(batch, output), batch.image_sizes)
        logits, _ = self._run_box_head(output, proposals)
        objectness = torch.cat(self.per_anchor(output)[0], dim=1)[0].float()
        best = objectness.topk(min(_RAW_SCORES, len(objectness))).values
        return torch.cat((best, logits.amax(dim=0) if len(logits) else logits.new_zeros(logits.shape[1]))).cpu()

    def launch(self, images: Sequence[Tensor]) -> Pending:
        """Begin to detect, as `detect` does. This form has to wait for its device before it returns."""
        return _Done(self.detect(images))

    def capture_for(self, image_hw: SizeHW, count: int) -> None:
        """Prepare for `count` images of this size. This form has nothing to prepare."""

    def capture_when_idle(self, image_sizes: Iterable[SizeHW], counts: Sequence[int]) -> None:
        """Leave preparing to `capture_next`."""

    def capture_next(self) -> bool:
        """Prepare for one more shape and size. False if nothing is left to prepare."""
        return False

    def forget(self) -> None:
        """Give back what is kept from one batch to the next."""

    def padded_hw(self, size_hw: SizeHW) -> SizeHW:
        """See `GeneralizedRCNNTransform.padded_hw`."""
        return self.transform.padded_hw(size_hw)

    def per_anchor(self, output: NetworkOutput) -> tuple[list[Tensor], list[Tensor]]:
        """Per level, logits `[N, H * W * A]` and deltas `[N, H * W * A, 4]` in the order of the anchors."""
        anchors_per_cell = output.predictions[0].shape[-1] // 5
        logits = [level[..., :anchors_per_cell].flatten(1) for level in output.predictions]
        deltas = [level[..., anchors_per_cell:].reshape(level.shape[0], -1, 4) for level in output.predictions]
        return logits, deltas

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What the box head says of proposals `[R, grid, C]`: logits `[R, K]` and deltas `[R, K, 4]`, float32."""
        logits, deltas = self._predictor(self._box_head(pooled).float())
        return logits, deltas.view(*logits.shape, 4)

    def _set_arithmetic(self) -> None:
        """Choose whether float32 products may round their factors to TF32; the process has one switch for all forms.

        In fp16 and bf16 only the last layer is such a product. Its input is exact in TF32, and its weights lose what
        the other layers' weights lose to fp16.
        """
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision != "fp32"

    def _resized(self, image: Tensor) -> Tensor:
        """Normalised, and of the size that it has in the batch."""
        transform = self.transform
        if image.dtype == torch.uint8:
            size_hw = (image.shape[1], image.shape[2])
            resized_hw = transform.resized_hw(size_hw)
            image = image.to(self.device, non_blocking=True)
            if reads_few_pixels(size_hw, resized_hw):
                mean, std = transform.constants(torch.float32, self.device)
                return sample(image, resized_hw, mean=mean, std=std)
            image = image.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return transform.resize(transform.normalise(image))

    def _predictions(self, batch: ImageBatch, output: NetworkOutput) -> Predictions:
        logits, deltas = self.per_anchor(output)
        # The generator looks at nothing of its maps but their shape [..., H, W] and dtype.
        maps = [level.permute(0, 3, 1, 2) for level in output.predictions]
        return Predictions(logits=logits, deltas=deltas, anchors=self.rpn.anchor_generator(batch, maps)[0])

    def _run_box_head(self, output: NetworkOutput, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[R, K]` and deltas `[R, K, 4]` of the proposals of all images."""
        boxes = torch.cat(proposals)
        image_of = torch.cat([torch.full((len(p),), n, device=p.device) for n, p in enumerate(proposals)])
        pooled = multi_scale_roi_align(
            output.levels,
            boxes,
            image_of,
            self.pool.levels_of(boxes, self.scales),
            scales=self.scales,
            output_hw=self.pool.output_size,
            sampling_ratio=self.pool.sampling_ratio,
        )
        return self.classify(pooled)


def _ignore_stage(_stage: str) -> None:
    """Do nothing, where the caller times no stages."""
