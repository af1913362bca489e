"""The serving form for GPUs: from uint8 pictures to detections as one CUDA graph for each padded shape and batch size.

Launching the detector's several hundred kernels one by one takes longer than running them on one picture. A graph is
launched as a whole, and nothing on the way waits for the device: the host sends the pictures, starts the graph and
fetches `[N, D + 1, 6]` numbers.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference.capture import Capture, CUDACapture, NotCapturedError, Replay
from model.inference.capture_policy import CapturePolicy, Key
from model.inference.fixed_shapes import CANDIDATES, FixedShapeHeads, detections_of
from model.inference.kernels.maps import KernelLayers
from model.inference.kernels.nms import nms_mask
from model.inference.kernels.resize import picture_table, resize_into
from model.inference.kernels.roi_align import pyramid_roi_align
from model.inference.memory import is_out_of_memory
from model.inference.network import TorchNetwork
from model.inference.serving import ServingModel
from model.structures import Detection, SizeHW

logger = logging.getLogger(__name__)

# Graphs kept: the shapes of a day's photographs times a few batch sizes. A graph's memory is the others' too.
_MOST_GRAPHS = 128
# How often a padded shape has to come without a graph before the others wait for one: by then it has cost about as
# much, as the eager way takes some 15 ms longer and a graph a third of a second.
_OFTEN = 16
_KEPT_BUFFERS = 64  # of the host, some 80 KB each; two are in use


@dataclass(frozen=True, slots=True)
class _Graph:
    table: Tensor  # where the pictures are: see `picture_table`
    sizes: Tensor  # see `FixedShapeHeads`
    anchors: list[Tensor]
    replay: Replay
    rows: Tensor  # what `FixedShapeHeads` gives


@dataclass(frozen=True, slots=True)
class _HostBuffers:
    """The host's end of one batch's copies, page-locked for a GPU. Those of a batch in flight must not be written."""

    table: Tensor  # [N, 8] int64
    sizes: Tensor  # [N, 4] float32
    rows: Tensor  # [N, D + 1, 6] float32


class GraphedModel(ServingModel):
    """A `ServingModel` that answers for uint8 pictures of one padded shape through CUDA graphs.

    A batch is answered in parts of 1, 2, 4, ... pictures, so that there are few sizes. A part that has no graph is
    answered by graphs of fewer pictures, or else by `ServingModel`'s way. So are other input, a picture with more
    candidates than a graph looks at, and what no graph can be made for. The graph used longest ago goes when there are
    too many.

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
        network = TorchNetwork(model, dtype, layers=KernelLayers())
        super().__init__(model, network, precision=precision, dtype=dtype)
        self._heads_of_fixed_shape = FixedShapeHeads(
            self, nms_mask=nms_mask, roi_align=pyramid_roi_align, candidates=candidates
        )
        self._capture = capture or CUDACapture(self.device)
        self._most_graphs = most_graphs
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._policy = CapturePolicy()
        self._spare: list[_HostBuffers] = []
        # After a fault of the device nothing else keeps the buffers of a batch in flight. They must not be freed then:
        # torch would ask the device whether it is done with them, and abort the process at its answer.
        self._kept_buffers: deque[_HostBuffers] = deque(maxlen=_KEPT_BUFFERS)

    def detect(self, images: Sequence[Tensor], *, on_stage: Callable[[str], None] | None = None) -> list[Detection]:
        """See `ServingModel.detect`, which alone can time the stages. The detections are on the host."""
        if on_stage is not None:
            return self._eagerly(images, on_stage)
        launched = self.launch(images)
        launched.wait()
        return launched.fetch()

    @torch.inference_mode()
    def launch(self, images: Sequence[Tensor]) -> Launched:
        """Give the device its work on these images and return at once, where there are graphs for them.

        Batches may be launched before those ahead are fetched: on one stream they go one after the other.

        Args:
            images: see `ServingModel.detect`.
        """
        shapes = {self.padded_hw(size_hw) for size_hw in {(image.shape[1], image.shape[2]) for image in images}}
        if len(shapes) != 1 or any(image.dtype != torch.uint8 for image in images):
            return Launched(self, list(images), answers=list(self._eagerly(images)))
        with self._current_device():
            return self._launch(images, shapes.pop())

    def raw_scores(self, image: Tensor) -> Tensor:
        """See `ServingModel.raw_scores`."""
        with self._current_device():
            return super().raw_scores(image)

    def capture_for(self, image_hw: SizeHW, count: int) -> None:
        """Have the graph for `count` pictures of this size now, unless it cannot be made."""
        self._graph_or_make((self.padded_hw(image_hw), count))

    def capture_when_idle(self, image_sizes: Iterable[SizeHW], counts: Sequence[int]) -> None:
        """From now on make graphs when `capture_next` is called, and for what comes often, not whenever one is missing.

        Args:
            image_sizes: of usual pictures, the most usual first.
            counts: batch sizes, the most usual first.
        """
        usual = [(padded, count) for padded in map(self.padded_hw, image_sizes) for count in counts]
        self._policy = CapturePolicy(dict.fromkeys(usual), often=_OFTEN)

    def capture_next(self) -> bool:
        """Make one more graph that is worth it; call it while the device is idle. False if there is none to make."""
        key = self._policy.next(self._graphs, room=len(self._graphs) < self._most_graphs)
        if key is None:
            return False
        return self._graph_or_make(key) is not None

    def forget(self) -> None:
        """Release all graphs and their memory."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # a batch in flight may be using them
        self._graphs.clear()
        self._capture.forget()

    def _eagerly(self, images: Sequence[Tensor], on_stage: Callable[[str], None] | None = None) -> list[Detection]:
        with self._current_device():
            return [
                Detection(boxes=found["boxes"].cpu(), labels=found["labels"].cpu(), scores=found["scores"].cpu())
                for found in super().detect(images, on_stage=on_stage)
            ]

    def _launch(self, images: Sequence[Tensor], padded_hw: SizeHW) -> Launched:
        pictures = [image.to(self.device, non_blocking=True) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        resized_to = {size_hw: self.transform.resized_hw(size_hw) for size_hw in set(sizes)}
        resized = [resized_to[size_hw] for size_hw in sizes]
        host = self._host_buffers(len(images))
        host.table[: len(images)] = picture_table(pictures, resized)
        host.sizes[: len(images)] = _sizes(images, resized)
        answers: list[Detection | None] = [None] * len(images)
        rows = host.rows[: len(images)]
        start = 0
        for graph, count in self._parts(padded_hw, len(images)):
            part = slice(start, start + count)
            if graph is None:
                answers[part] = self._eagerly(pictures[part])
            else:
                graph.table.copy_(host.table[part], non_blocking=True)
                graph.sizes.copy_(host.sizes[part], non_blocking=True)
                graph.replay()
                rows = rows[:, : graph.rows.shape[1]]  # fewer only where the padded shape has few anchors
                rows[part].copy_(graph.rows, non_blocking=True)
            start += count
        return Launched(self, pictures, answers=answers, host=host, rows=rows, sources=images)

    def _parts(self, padded_hw: SizeHW, count: int) -> Iterator[tuple[_Graph | None, int]]:
        """Graphs for `count` pictures together, each with its number of pictures; None for a part without a graph."""
        for wanted in _powers_of_two(count):
            graph, size = self._graph((padded_hw, wanted)), wanted
            while graph is None and size > 1:
                size //= 2
                graph = self._kept((padded_hw, size))
            if graph is None:
                yield None, wanted
            else:
                yield from [(graph, size)] * (wanted // size)

    def _kept(self, key: Key) -> _Graph | None:
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def _graph(self, key: Key) -> _Graph | None:
        """The graph that is there for a batch, or is worth making for it."""
        return self._kept(key) or (self._graph_or_make(key) if self._policy.came(key) else None)

    def _graph_or_make(self, key: Key) -> _Graph | None:
        """The graph for a padded shape and so many pictures; None if it cannot be made now, or ever."""
        if graph := self._kept(key):
            return graph
        try:
            with self._current_device():
                graph = self._graphs[key] = self._make_graph(*key)
        except NotCapturedError as error:  # it may be made another time
            logger.warning("no CUDA graph now: %s", error)
            return None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            logger.exception("no CUDA graph for %d pictures padded to %s", key[1], key[0])
            self._policy.reject(key)
            return None
        if len(self._graphs) > self._most_graphs:
            self._graphs.popitem(last=False)
        return graph

    @torch.inference_mode()
    def _make_graph(self, padded_hw: SizeHW, count: int) -> _Graph:
        """Capture a graph on black pictures, which its inputs hold until others are copied over them."""
        of_this_shape = (graph.anchors for (hw, _), graph in self._graphs.items() if hw == padded_hw)
        anchors = next(of_this_shape, None) or self._heads_of_fixed_shape.anchors(padded_hw, self.device)
        black = torch.zeros(3, *padded_hw, dtype=torch.uint8, device=self.device)
        table = picture_table([black] * count, [padded_hw] * count).to(self.device)
        sizes = _sizes([black] * count, [padded_hw] * count).to(self.device)
        shape = (count, 3, *padded_hw)

        def work() -> Tensor:
            images = torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
            resize_into(images, table, mean=self.transform.image_mean, std=self.transform.image_std)
            return self._heads_of_fixed_shape(self.network(images), anchors, sizes)

        self._set_arithmetic()
        return _Graph(table, sizes, anchors, *self._capture(work))

    def _host_buffers(self, count: int) -> _HostBuffers:
        """Buffers for so many pictures, which no batch in flight uses."""
        while self._spare:
            if len((spare := self._spare.pop()).table) >= count:
                return spare
        on_gpu = self.device.type == "cuda"
        size, rows = 1 << (count - 1).bit_length(), self.heads.detections_per_img + 1
        made = _HostBuffers(
            table=torch.empty(size, 8, dtype=torch.int64, device="cpu", pin_memory=on_gpu),
            sizes=torch.empty(size, 4, device="cpu", pin_memory=on_gpu),
            rows=torch.zeros(size, rows, 6, device="cpu", pin_memory=on_gpu),
        )
        self._kept_buffers.append(made)
        return made

    def _current_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the thread's current device, whatever its tensors are on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


class Launched:
    """A batch on its way through the device."""

    def __init__(
        self,
        form: GraphedModel,
        pictures: list[Tensor],
        *,
        answers: list[Detection | None],
        host: _HostBuffers | None = None,
        rows: Tensor | None = None,
        sources: Sequence[Tensor] = (),
    ) -> None:
        self._form = form
        self._pictures = pictures  # alive, as is what they are copied from, until the device is done
        self._sources = sources
        self._answers = answers
        self._host, self._rows = host, rows
        self._done: torch.cuda.Event | None = None
        if form.device.type == "cuda":
            # Blocking: a thread that waits for an event otherwise keeps a core busy.
            self._done = torch.cuda.Event(blocking=True)
            self._done.record(torch.cuda.current_stream(form.device))

    def wait(self) -> None:
        """Block until the device is done with the batch. May be called in another thread than the other methods."""
        if self._done is not None:
            self._done.synchronize()

    def fetch(self) -> list[Detection]:
        """What was found in each image, on the host. Call it once, after `wait`."""
        answers = self._answers
        if self._host is not None and self._rows is not None:
            found = detections_of(self._rows.numpy().copy())
            self._form._spare.append(self._host)
            answers = [answer or of_graph for answer, of_graph in zip(answers, found, strict=True)]
        return [
            answer if answer is not None else self._form._eagerly([picture])[0]
            for answer, picture in zip(answers, self._pictures, strict=True)
        ]


def _powers_of_two(count: int) -> Iterator[int]:
    """7 as 4, 2 and 1."""
    while count:
        size = 1 << (count.bit_length() - 1)
        yield size
        count -= size


def _sizes(images: Sequence[Tensor], resized: Sequence[SizeHW]) -> Tensor:
    """See `FixedShapeHeads`. The ratio is a quotient of float32 numbers, as in `scale_boxes`."""
    resized_hw = torch.tensor(resized, dtype=torch.float32, device="cpu")
    original_hw = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32, device="cpu")
    return torch.cat((resized_hw, original_hw / resized_hw), dim=1)
