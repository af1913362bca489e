"""The GPU's serving form: on a GPU as it is, elsewhere with graphs that are run call by call.

The interpreter takes seconds for a picture, so elsewhere only tests of what is found run all kernels in it.
"""

from __future__ import annotations

import dataclasses
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from model.faster_rcnn import FasterRCNN
from model.inference import graphs
from model.inference.capture import CUDACapture, NotCapturedError
from model.inference.fused_conv import PlainLayers
from model.inference.graphs import GraphedModel
from model.inference.kernels.maps import KernelLayers
from model.inference.serving import ServingModel
from model.roi_align import multi_scale_roi_align
from model.structures import Detection
from tests.support.oracle import blobs, make_pair, pin_scales

# Few proposals: the interpreter takes a second for two.
SMALL: dict[str, Any] = {
    "min_size": 64,
    "max_size": 96,
    "rpn_pre_nms_top_n_test": 8,
    "rpn_post_nms_top_n_test": 2,
    "num_classes": 4,
}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class CallByCall:
    """Repeats work by doing it again, into the same tensor."""

    error: Exception | None = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        if self.error:
            raise self.error
        rows = work()
        return (lambda: rows.copy_(work())), rows

    def forget(self) -> None:
        """There is no memory to give back."""


@pytest.fixture(autouse=True)
def _whole_factors() -> Iterator[None]:
    """TF32 would shorten them, and with them the tests' aim."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Forms:
    def __init__(self, model: FasterRCNN, device: torch.device, **kwargs: Any) -> None:
        pin_scales(model)
        model.to(device)
        self.capture = CallByCall()
        self.eager = ServingModel(model)
        if device.type == "cpu":
            kwargs["capture"] = self.capture
        self.graphed = GraphedModel(model, **kwargs)


class PlainKernelLayers(PlainLayers):
    channel_multiple = KernelLayers.channel_multiple


MakeForms = Callable[..., Forms]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeForms:
    """`forms(settings)`: the form and its eager twin. `interpreted`: without a GPU, run all kernels nonetheless."""
    if (request.param == "cuda") is not torch.cuda.is_available():
        pytest.skip("runs on the GPU where there is one, or else in the interpreter")

    def make(settings: dict[str, Any] = SMALL, *, interpreted: bool = False, **kwargs: Any) -> Forms:
        if request.param == "cpu" and not interpreted:  # the kernels' references
            monkeypatch.setattr(graphs, "KernelLayers", PlainKernelLayers)
            monkeypatch.setattr(graphs, "pyramid_roi_align", multi_scale_roi_align)
        _, model = make_pair(**settings)
        return Forms(model, torch.device(request.param), **kwargs)

    return make


def as_uint8(picture: Tensor) -> Tensor:
    return (picture * 255).round().to(torch.uint8)


def assert_same(got: Sequence[Detection], wanted: Sequence[Detection]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(one["boxes"].cpu(), other["boxes"].cpu(), rtol=0, atol=0.05)
        torch.testing.assert_close(one["scores"].cpu(), other["scores"].cpu(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_graphs_find_what_the_eager_form_finds(forms: MakeForms) -> None:
    both = forms(interpreted=True)
    pictures = [as_uint8(blobs(60, 80, 1)), as_uint8(blobs(61, 83, 2)).flip(2)]
    for batch in (pictures, pictures[:1], pictures[::-1]):  # the last on a graph that is there
        wanted = both.eager.detect(batch)
        assert all(len(found["labels"]) > 1 for found in wanted)
        assert_same(both.graphed.detect(batch), wanted)


def test_one_graph_for_each_shape_and_size_and_no_more_than_asked_for(forms: MakeForms) -> None:
    both = forms(SMALL | {"rpn_post_nms_top_n_test": 1}, most_graphs=2)
    tall, wide = as_uint8(blobs(80, 60)), as_uint8(blobs(60, 80))
    kept = both.graphed._graphs
    for batch, shapes in [
        ([wide], [(64, 96)]),
        ([wide], [(64, 96)]),
        ([tall], [(64, 96), (96, 64)]),
        ([wide], [(96, 64), (64, 96)]),
        ([wide, wide], [(64, 96), (64, 96)]),  # the tall one's is gone
    ]:
        both.graphed.detect(batch)
        assert [hw for hw, _ in kept] == shapes
    assert [count for _, count in kept] == [1, 2]


def test_what_no_graph_can_do_goes_the_eager_way(forms: MakeForms) -> None:
    both = forms()
    tall, wide = as_uint8(blobs(80, 60)), as_uint8(blobs(60, 80))
    assert_same(both.graphed.detect([tall, wide]), both.eager.detect([tall, wide]))
    floats = [(wide / 255).to(both.graphed.device)]
    assert_same(both.graphed.detect(floats), both.eager.detect(floats))
    stages: list[str] = []
    both.graphed.detect([wide], on_stage=stages.append)
    assert stages == ["preprocess", "network", "proposals", "roi", "post"]
    assert not both.graphed._graphs


def test_the_hosts_buffers_outlive_a_batch_that_is_not_fetched(forms: MakeForms) -> None:
    both = forms(SMALL | {"rpn_post_nms_top_n_test": 1})
    launched = both.graphed.launch([as_uint8(blobs(60, 80))])
    assert launched._host is not None
    buffer = weakref.ref(launched._host.rows)
    del launched
    assert buffer() is not None


def test_votes_are_cast_on_a_graph_too(forms: MakeForms) -> None:
    both = forms(SMALL | {"box_vote_thresh": 0.5})
    picture = [as_uint8(blobs(60, 80, 1))]
    assert_same(both.graphed.detect(picture), both.eager.detect(picture))
    assert both.graphed._graphs


def test_a_crowd_gets_its_whole_answer(forms: MakeForms) -> None:
    both = forms(candidates=1)
    crowd = [as_uint8(blobs(60, 80, 1))]
    wanted = both.eager.detect(crowd)
    assert len(wanted[0]["labels"]) > 1
    assert_same(both.graphed.detect(crowd), wanted)
    assert both.graphed._graphs


def test_a_batch_is_answered_in_parts_of_powers_of_two(forms: MakeForms) -> None:
    both = forms(SMALL | {"rpn_post_nms_top_n_test": 1})
    batch = [as_uint8(blobs(60, 80, seed)) for seed in range(3)]
    assert_same(both.graphed.detect(batch), both.eager.detect(batch))
    assert [count for _, count in both.graphed._graphs] == [2, 1]
    both.graphed.forget()
    assert not both.graphed._graphs


def test_without_a_graph_the_eager_way_is_taken(forms: MakeForms, caplog: pytest.LogCaptureFixture) -> None:
    both = forms()
    capture = both.graphed._capture = CallByCall()
    capture.error = RuntimeError("cannot capture")
    picture = [as_uint8(blobs(60, 80))]
    wanted = both.eager.detect(picture)
    for _ in range(2):
        assert_same(both.graphed.detect(picture), wanted)
    assert [record.message for record in caplog.records] == ["no CUDA graph for 1 pictures padded to (64, 96)"]
    assert not both.graphed._graphs


def test_a_graph_that_could_not_be_made_for_a_while_is_tried_again(
    forms: MakeForms, caplog: pytest.LogCaptureFixture
) -> None:
    both = forms()
    capture = both.graphed._capture = CallByCall()
    capture.error = NotCapturedError("another capture has not ended")
    picture = [as_uint8(blobs(60, 80))]
    wanted = both.eager.detect(picture)
    assert_same(both.graphed.detect(picture), wanted)
    assert [record.message for record in caplog.records] == ["no CUDA graph now: another capture has not ended"]
    capture.error = None
    assert_same(both.graphed.detect(picture), wanted)
    assert len(both.graphed._graphs) == 1


def test_a_lack_of_memory_is_told(forms: MakeForms) -> None:
    both = forms()

    capture = both.graphed._capture = CallByCall()
    capture.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        both.graphed.detect([as_uint8(blobs(60, 80))])


def test_two_batches_in_flight_keep_their_answers_apart(forms: MakeForms) -> None:
    both = forms(SMALL | {"rpn_post_nms_top_n_test": 1})
    batches = [[as_uint8(blobs(60, 80, seed)) for seed in seeds] for seeds in ((1, 2), (3, 4), (5,))]
    wanted = [both.eager.detect(batch) for batch in batches]
    first, second = (both.graphed.launch(batch) for batch in batches[:2])
    for launched, expected in ((first, wanted[0]), (both.graphed.launch(batches[2]), wanted[2]), (second, wanted[1])):
        launched.wait()
        assert_same(launched.fetch(), expected)
    assert len(both.graphed._spare) == 3  # of the host's buffers, each of which served one batch at a time


def test_a_new_shape_is_answered_eagerly_until_the_device_is_idle(forms: MakeForms) -> None:
    both = forms(SMALL | {"rpn_post_nms_top_n_test": 1})
    both.graphed.capture_when_idle([(80, 60)], [1])
    batch = [as_uint8(blobs(60, 80, seed)) for seed in range(3)]
    wanted = both.eager.detect(batch)
    assert_same(both.graphed.detect(batch), wanted)
    assert not both.graphed._graphs
    assert both.graphed.capture_next()
    assert list(both.graphed._graphs) == [((64, 96), 2)]  # what has come goes before what is usual
    assert_same(both.graphed.detect(batch), wanted)
    while both.graphed.capture_next():
        pass
    assert set(both.graphed._graphs) == {((64, 96), 2), ((64, 96), 1), ((96, 64), 1)}
    assert_same(both.graphed.detect(batch[:1]), wanted[:1])


def test_graphs_of_fewer_pictures_answer_for_a_size_that_has_none(forms: MakeForms) -> None:
    both = forms(SMALL | {"rpn_post_nms_top_n_test": 1})
    both.graphed.capture_for((60, 80), 1)
    both.graphed.capture_when_idle([], [])
    replays = []

    def counted(replay: Callable[[], object]) -> None:
        replays.append(replay)
        replay()

    for key, graph in both.graphed._graphs.items():
        both.graphed._graphs[key] = dataclasses.replace(graph, replay=partial(counted, graph.replay))
    batch = [as_uint8(blobs(60, 80, seed)) for seed in range(3)]
    assert_same(both.graphed.detect(batch), both.eager.detect(batch))
    assert len(replays) == 3
    assert list(both.graphed._graphs) == [((64, 96), 1)]


@pytest.mark.gpu
@on_gpu
def test_after_a_failed_capture_the_next_succeeds() -> None:
    capture = CUDACapture(torch.device("cuda"))
    x = torch.ones(4, device="cuda")
    calls = []

    def failing() -> Tensor:
        calls.append(1)
        return x * float((x * 2).sum()) if len(calls) > 1 else x  # the host's wait breaks the capture

    with pytest.raises(RuntimeError):
        capture(failing)
    replay, doubled = capture(lambda: x * 2)
    x.fill_(3)
    replay()
    assert doubled.tolist() == [6.0] * 4
    capture.forget()
    assert capture(lambda: x + 1)[1].shape == (4,)


@pytest.mark.gpu
@on_gpu
def test_pictures_are_uploaded_while_graphs_are_captured() -> None:
    _, model = make_pair(min_size=320, max_size=480)
    pin_scales(model)
    form = GraphedModel(model.cuda().eval(), precision="fp16", dtype=torch.float16)
    uploads = torch.cuda.Stream(priority=-1)

    def upload(image: Tensor) -> Tensor:
        with torch.cuda.stream(uploads):
            return image.pin_memory().to("cuda", non_blocking=True)

    pictures = [as_uint8(blobs(240, 240 + 20 * n)) for n in range(8)] * 8
    with ThreadPoolExecutor(4) as threads:
        sent = list(threads.map(upload, pictures[:8]))
        more = threads.map(upload, pictures)
        torch.cuda.current_stream().wait_stream(uploads)
        for picture, image in zip(sent, pictures, strict=False):
            assert_same(form.detect([picture]), form.detect([image]))
        assert len(list(more)) == 64
    assert not form._policy._rejected


@pytest.mark.gpu
@on_gpu
def test_memory_is_flat_over_many_shapes() -> None:
    _, model = make_pair(min_size=320, max_size=480)
    pin_scales(model)
    form = GraphedModel(model.cuda().eval(), precision="fp16", dtype=torch.float16, most_graphs=8)
    reserved = []
    for _ in range(3):
        for width in range(240, 400, 20):
            for count in (1, 2, 4):
                form.detect([as_uint8(blobs(240, width))] * count)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] <= 1.05 * reserved[1]
