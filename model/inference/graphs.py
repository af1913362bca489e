"""The serving form for GPUs: from uint8 pictures to detections as one CUDA graph for each padded shape and batch size.

Launching the detector's several hundred kernels one by one takes longer than running them on one picture. A graph is
launched as a whole, and nothing on the way waits for the device: the host sends the pictures, starts the graph and
fetches `[N, D + 1, 6]` numbers.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.fixed_shapes import CANDIDATES, FixedShapeHeads, detection_of
from model.inference.kernels.nms import nms_mask
from model.inference.kernels.resize import picture_table, resize_into
from model.inference.kernels.roi_align import pyramid_roi_align
from model.inference.memory import is_out_of_memory
from model.inference.serving import ServingModel
from model.structures import Detection, SizeHW

logger = logging.getLogger(__name__)

# Graphs kept: the shapes of a day's photographs times a few batch sizes. A graph's memory is the others' too.
_MOST_GRAPHS = 128
_PATIENCE_S = 30

_Key = tuple[SizeHW, int]  # padded shape, pictures
# Runs the work it was made for again, on the inputs as they are then, into the tensor that comes with it.
Replay = Callable[[], object]


class Capture(Protocol):
    """Makes work repeatable."""

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]: ...

    def forget(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Graph:
    table: Tensor  # where the pictures are: see `picture_table`
    sizes: Tensor  # see `FixedShapeHeads`
    anchors: list[Tensor]
    replay: Replay
    rows: Tensor  # what `FixedShapeHeads` gives


class GraphedModel(ServingModel):
    """A `ServingModel` that answers for uint8 pictures of one padded shape through CUDA graphs.

    A batch is answered in parts of 1, 2, 4, ... pictures, so that there are few sizes. A graph is made when a padded
    shape and size first come, which takes longer than a batch, and the one used longest ago goes when there are too
    many. Other input, a picture with more candidates than a graph looks at, and what no graph can be made for take
    `ServingModel`'s way.

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
        self._heads_of_fixed_shape = FixedShapeHeads(
            self, nms_mask=nms_mask, roi_align=pyramid_roi_align, candidates=candidates
        )
        self._capture = capture or CUDACapture(self.device)
        self._most_graphs = most_graphs
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()
        self._refused: set[_Key] = set()

    @torch.inference_mode()
    def detect(self, images: Sequence[Tensor], *, lap: Callable[[str], None] | None = None) -> list[Detection]:
        """See `ServingModel.detect`; the stages can be told apart on its way alone. What is found is on the host."""
        shapes = {self.padded_hw((image.shape[1], image.shape[2])) for image in images}
        with self._current_device():
            if lap is not None or len(shapes) != 1 or any(image.dtype != torch.uint8 for image in images):
                return self._eagerly(images, lap)
            padded_hw = shapes.pop()
            return [found for part in _parts(images) for found in self._by_graph(part, padded_hw)]

    def forget(self) -> None:
        """Let go of all graphs, and of their memory."""
        self._graphs.clear()
        self._capture.forget()

    def _eagerly(self, images: Sequence[Tensor], lap: Callable[[str], None] | None = None) -> list[Detection]:
        return [
            Detection(boxes=found["boxes"].cpu(), labels=found["labels"].cpu(), scores=found["scores"].cpu())
            for found in super().detect(images, lap=lap)
        ]

    def _by_graph(self, images: Sequence[Tensor], padded_hw: SizeHW) -> list[Detection]:
        pictures = [image.to(self.device, non_blocking=True) for image in images]  # alive until the rows are there
        resized = [self.transform.resized_hw((image.shape[1], image.shape[2])) for image in images]
        graph = self._graph(
            padded_hw, self._sent(picture_table(pictures, resized)), self._sent(_sizes(images, resized))
        )
        if graph is None:
            return self._eagerly(pictures)
        graph.replay()
        rows = graph.rows.cpu()
        return [detection_of(one) or self._eagerly([picture])[0] for one, picture in zip(rows, pictures, strict=True)]

    def _graph(self, padded_hw: SizeHW, table: Tensor, sizes: Tensor) -> _Graph | None:
        """The graph for a shape, and as many pictures as the table has, with this input; None if it cannot be made."""
        key = (padded_hw, len(table))
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            graph.table.copy_(table)
            graph.sizes.copy_(sizes)
            return graph
        if key in self._refused:
            return None
        try:
            graph = self._graphs[key] = self._made(padded_hw, table, sizes)
        except NotCapturedError as error:  # it may be made another time
            logger.warning("no CUDA graph now: %s", error)
            return None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            logger.exception("no CUDA graph for %d pictures padded to %s", len(table), padded_hw)
            self._refused.add(key)
            return None
        if len(self._graphs) > self._most_graphs:
            self._graphs.popitem(last=False)
        return graph

    def _made(self, padded_hw: SizeHW, table: Tensor, sizes: Tensor) -> _Graph:
        of_this_shape = (graph.anchors for (hw, _), graph in self._graphs.items() if hw == padded_hw)
        anchors = next(of_this_shape, None) or self._heads_of_fixed_shape.anchors(padded_hw, self.device)
        shape = (len(table), 3, *padded_hw)

        def work() -> Tensor:
            images = torch.empty(shape, dtype=self._dtype, device=self.device, memory_format=torch.channels_last)
            resize_into(images, table, mean=self.transform.image_mean, std=self.transform.image_std)
            return self._heads_of_fixed_shape(self.network(images), anchors, sizes)

        self._set_arithmetic()
        return _Graph(table, sizes, anchors, *self._capture(work))

    def _sent(self, numbers: Tensor) -> Tensor:
        """A copy on the device, on its way there."""
        if self.device.type != "cuda":
            return numbers
        return numbers.pin_memory().to(self.device, non_blocking=True)

    def _current_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the thread's current device, whatever its tensors are on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


class NotCapturedError(Exception):
    """Another device of this process hangs in the middle of a capture."""


class CUDACapture:
    """Captures CUDA graphs of one device that share one pool of memory: they never run at the same time."""

    _one_at_a_time = threading.Lock()  # in a process: torch's own restriction

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Run `work` once, to compile and choose what it needs, and then record it.

        Raises:
            NotCapturedError: nothing can be recorded in this process now.
        """
        if not self._one_at_a_time.acquire(timeout=_PATIENCE_S):
            raise NotCapturedError("another capture has not ended")
        try:
            with torch.cuda.device(self._device):
                return self._captured(work)
        finally:
            self._one_at_a_time.release()

    def forget(self) -> None:
        """Take a new pool for the next graph: one that no graph uses any more must not be used again."""
        self._pool = None

    def _captured(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        # One stream of our own: torch's default for captures is on whichever device came first, and libraries keep a
        # workspace for each stream.
        stream = self._stream = self._stream or torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        gc.collect()  # no graph may be freed in the middle of a capture
        # A pool in which a capture has failed is of no more use.
        pool, self._pool = self._pool or torch.cuda.graph_pool_handle(), None
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the device: a picture may be on its way to it.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            rows = work()
        self._pool = pool
        return graph.replay, rows


def _parts(images: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """7 as 4, 2 and 1."""
    while images:
        size = 1 << (len(images).bit_length() - 1)
        yield images[:size]
        images = images[size:]


def _sizes(images: Sequence[Tensor], resized: Sequence[SizeHW]) -> Tensor:
    """See `FixedShapeHeads`. The ratio is a quotient of float32 numbers, as in `scale_boxes`."""
    resized_hw = torch.tensor(resized, dtype=torch.float32, device="cpu")
    original_hw = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32, device="cpu")
    return torch.cat((resized_hw, original_hw / resized_hw), dim=1)
