"""The serving form for GPUs: from uint8 pictures to detections as one CUDA graph for each padded shape and batch size.

Launching the detector's several hundred kernels one by one takes longer than running them on one picture. A graph is
launched as a whole, and nothing on the way waits for the device: the host sends the pictures, starts the graph and
fetches `[N, D + 1, 6]` numbers.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.fixed_shapes import CANDIDATES, FixedShapeHeads, detection_of
from model.inference.kernels.nms import nms_mask
from model.inference.kernels.resize import COLUMNS, picture_table, resize_into
from model.inference.kernels.roi_align import pyramid_roi_align
from model.inference.serving import ServingModel
from model.structures import Detection, SizeHW

# Graphs kept: the shapes of a day's photographs times a few batch sizes. A graph's memory is the others' too.
_MOST_GRAPHS = 64

# Runs the work it was made for again, on the inputs as they are then, into the tensor that comes with it.
Replay = Callable[[], object]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


@dataclass(frozen=True, slots=True)
class _Graph:
    table: Tensor  # where the pictures are: see `picture_table`
    sizes: Tensor  # see `FixedShapeHeads`
    anchors: list[Tensor]
    replay: Replay
    rows: Tensor  # what `FixedShapeHeads` gives


class GraphedModel(ServingModel):
    """A `ServingModel` that answers for uint8 pictures of one padded shape through CUDA graphs.

    A graph is made when a padded shape and batch size first come, which takes longer than a batch, and the one used
    longest ago goes when there are too many. Other input, and a picture with more candidates than the graph looks at,
    take `ServingModel`'s way.

    Args:
        model, precision, dtype: see `ServingModel`.
        capture: makes work repeatable.
        most_graphs: how many are kept.
        candidates: see `FixedShapeHeads`.
    """

    def __init__(
        self,
        model: FasterRCNN,
        *,
        precision: str = "fp32",
        dtype: torch.dtype = torch.float32,
        capture: Capture | None = None,
        most_graphs: int = _MOST_GRAPHS,
        candidates: int = CANDIDATES,
    ) -> None:
        super().__init__(model, precision=precision, dtype=dtype)
        self._dtype_of_images = dtype
        self._heads_of_fixed_shape = FixedShapeHeads(
            self, nms_mask=nms_mask, roi_align=pyramid_roi_align, candidates=candidates
        )
        self._capture = capture or CUDACapture()
        self._most_graphs = most_graphs
        self._graphs: OrderedDict[tuple[SizeHW, int], _Graph] = OrderedDict()

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor], *, lap: Callable[[str], None] | None = None) -> list[Detection]:
        """See `ServingModel.detect`; the stages can be told apart on its way alone."""
        shapes = {self.padded_hw((image.shape[1], image.shape[2])) for image in images}
        if lap is not None or len(shapes) != 1 or any(image.dtype != torch.uint8 for image in images):
            return super().detect(images, lap=lap)
        with self._current_device():
            rows = self._rows(images, shapes.pop())
            return [
                detection_of(of_image) or super(GraphedModel, self).detect([image])[0]
                for of_image, image in zip(rows, images, strict=True)
            ]

    def _rows(self, images: Sequence[Tensor], padded_hw: SizeHW) -> Tensor:
        """What `FixedShapeHeads` gives, on the host."""
        pictures = [image.to(self.device, non_blocking=True) for image in images]  # alive until the rows are there
        originals = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32)
        resized = [self.transform.resized_hw((image.shape[1], image.shape[2])) for image in images]
        resized_hw = torch.tensor(resized, dtype=torch.float32)
        table = picture_table(pictures, resized)
        sizes = torch.cat((resized_hw, originals / resized_hw), dim=1)
        key = (padded_hw, len(images))
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._made(padded_hw, table, sizes)
            if len(self._graphs) > self._most_graphs:
                self._graphs.popitem(last=False)
        else:
            self._graphs.move_to_end(key)
            graph.table.copy_(table)
            graph.sizes.copy_(sizes)
        graph.replay()
        return graph.rows.cpu()

    def _made(self, padded_hw: SizeHW, table: Tensor, sizes: Tensor) -> _Graph:
        """A graph for a shape, and for as many pictures as the table has."""
        table, sizes = table.to(self.device), sizes.to(self.device)
        of_this_shape = (graph.anchors for (hw, _), graph in self._graphs.items() if hw == padded_hw)
        anchors = next(of_this_shape, None) or self._heads_of_fixed_shape.anchors(padded_hw, self.device)
        count = len(table)
        assert table.shape[1] == COLUMNS

        def work() -> Tensor:
            images = torch.empty(
                count, 3, *padded_hw,
                dtype=self._dtype_of_images, device=self.device, memory_format=torch.channels_last,
            )  # fmt: skip
            resize_into(images, table, mean=self.transform.image_mean, std=self.transform.image_std)
            return self._heads_of_fixed_shape(self.network(images), anchors, sizes)

        return _Graph(table, sizes, anchors, *self._capture(work))

    def _current_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the thread's current device, whatever its tensors are on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


class CUDACapture:
    """Captures CUDA graphs that share one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Run `work` once, to compile and choose what it needs, and then record it."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device: a picture may be on its way to it.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            rows = work()
        return graph.replay, rows
