"""The protocol's bodies, byte by byte."""

from __future__ import annotations

import base64
import json
import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from service.devices.detector import Detections
from service.errors import BadRequestError
from service.oip.tensors import read_request, reading_bytes, write_response

FILE = b"\xff\xd8 no UTF-8, as an image is \x00\xfe"
FOUND = Detections(
    boxes=np.array([[1, 2, 3.5, 4], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32),
    labels=np.array([3, 1]),
    scores=np.array([0.9, 0.1], dtype=np.float32),
)


def request(tensor: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "image", **tensor}], **members}).encode()


def in_bytes(data: Any, **members: Any) -> bytes:
    return request({"datatype": "BYTES", "shape": [1], "data": data}, **members)


def binary(tensor: dict[str, Any], data: bytes, **members: Any) -> tuple[bytes, str]:
    head = request({**tensor, "parameters": {"binary_data_size": len(data)}}, **members)
    return head + data, str(len(head))


def test_an_encoded_image_in_json_is_base64() -> None:
    text = base64.b64encode(FILE).decode()
    for data in ([text], [[text]], text, [f"{text[:8]}\n{text[8:]}"]):
        assert read_request(in_bytes(data), None).image == FILE


def test_an_encoded_image_after_the_json() -> None:
    body, length = binary({"datatype": "BYTES", "shape": [1]}, struct.pack("<I", len(FILE)) + FILE)
    assert read_request(body, length).image == FILE


def test_one_image_after_the_json_needs_no_size() -> None:
    head = request({"datatype": "BYTES", "shape": [1]})
    assert read_request(head + FILE, str(len(head))).image == FILE
    head = request({"datatype": "UINT8", "shape": [1, 2, 3], "data": []})
    assert bytes(read_request(head + b"abcdef", str(len(head))).image) == b"abcdef"


def test_nothing_is_kept_of_parameters_that_mean_nothing() -> None:
    useless: dict[str, Any] = {"x": [[] for _ in range(100_000)]}
    body = in_bytes(["QUJD"], parameters={**useless, "labels": "dog"})
    tracemalloc.start()
    try:
        asked = read_request(body, None)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert asked.query.labels == ["dog"]
    assert kept < 100_000


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (in_bytes("AA== " * 200_000), b""),
        (in_bytes("AAAA " * 200_000 + "\N{GRINNING FACE}"), b""),
        (in_bytes("AAAA").replace(b"AAAA", "AAAA\N{GRINNING FACE}".encode() * 100_000), b""),
        (in_bytes("AAAA", parameters={f"k{at}": at + 0.5 for at in range(100_000)}), b""),
        (in_bytes("AAAA", parameters={"x": [{f"k{at}": 0} for at in range(50_000)]}), b""),
        (request({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 10**6}}),
         struct.pack("<I", 10**6 - 4) + bytes(10**6 - 4)),
    ],
)  # fmt: skip
def test_reading_takes_no_more_memory_than_it_says(head: bytes, rest: bytes) -> None:
    body, length = head + rest, str(len(head))
    tracemalloc.start()
    try:
        with suppress(BadRequestError):
            read_request(body, length)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= reading_bytes(body, length) + 100_000


def test_null_stands_for_what_is_left_out() -> None:
    tensor = {"datatype": "BYTES", "shape": [1], "data": ["QUJD"], "parameters": None}
    nothing = {"id": None, "outputs": None, "parameters": None}
    assert read_request(request(tensor, **nothing), None) == read_request(in_bytes(["QUJD"]), None)
    asked = read_request(in_bytes(["QUJD"], outputs=[{"name": "scores", "parameters": None}]), None)
    assert asked.outputs == {"scores": False}


def test_pixels_after_the_json_and_in_it_flat_or_nested() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = {"datatype": "UINT8", "shape": [2, 4, 3]}
    body, length = binary(tensor, pixels.tobytes())
    assert np.array_equal(read_request(body, length).image, pixels)
    for data in (pixels.ravel().tolist(), pixels.tolist()):
        assert np.array_equal(read_request(request({**tensor, "data": data}), None).image, pixels)


def test_all_outputs_are_in_json_unless_it_is_asked_otherwise() -> None:
    text = base64.b64encode(FILE).decode()
    every = read_request(in_bytes([text], id="seven"), None)
    assert every.outputs == {"boxes": False, "labels": False, "scores": False}
    body, length = write_response(FOUND, every, model="m", version="1")
    assert length is None
    document = json.loads(body)
    assert (document["id"], document["model_name"], document["model_version"]) == ("seven", "m", "1")
    boxes, labels, scores = document["outputs"]
    assert (boxes["name"], boxes["datatype"], boxes["shape"]) == ("boxes", "FP32", [2, 4])
    assert np.array_equal(np.float32(boxes["data"]), FOUND.boxes.ravel())
    assert (labels["datatype"], labels["shape"], labels["data"]) == ("INT64", [2], [3, 1])
    assert (scores["datatype"], scores["shape"]) == ("FP32", [2])


def test_outputs_are_binary_where_it_is_asked() -> None:
    text = base64.b64encode(FILE).decode()
    some = [{"name": "scores", "parameters": {"binary_data": False}}, {"name": "boxes"}, {"name": "labels"}]
    asked = read_request(in_bytes([text], outputs=some, parameters={"binary_data_output": True}), None)
    assert asked.outputs == {"scores": False, "boxes": True, "labels": True}
    body, length = write_response(FOUND, asked, model="m", version="1")
    assert length is not None
    outputs = json.loads(body[:length])["outputs"]
    assert [one["name"] for one in outputs] == ["scores", "boxes", "labels"]
    assert "data" in outputs[0]
    assert outputs[1]["parameters"] == {"binary_data_size": 32}
    assert body[length:] == FOUND.boxes.astype("<f4").tobytes() + FOUND.labels.astype("<i8").tobytes()


def test_nothing_found_keeps_its_shape() -> None:
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    asked = read_request(in_bytes([""]), None)
    body, _ = write_response(none, asked, model="m", version="1")
    assert [one["shape"] for one in json.loads(body)["outputs"]] == [[0, 4], [0], [0]]


PIXELS = {"datatype": "UINT8", "shape": [1, 1, 3]}
GOOD = {"datatype": "BYTES", "shape": [1], "data": ["QUJD"]}


@pytest.mark.parametrize(
    ("body", "length", "told"),
    [
        (b"", None, "not JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"{}", None, "exactly one tensor"),
        (b'{"inputs": [1]}', None, "exactly one tensor"),
        (b"[" * 100_000, None, "not JSON"),
        (b"[" * 2_000_000, None, "a million values at most"),
        (b"{}", "3", "up to the body's 2 bytes"),
        (b"{}", "-1", "up to the body's 2 bytes"),
        (b"{}", "two", "up to the body's 2 bytes"),
        (request({**GOOD, "name": "picture"}), None, "no input 'picture'"),
        (request({**GOOD, "name": "x" * 10_000}), None, "…"),
        (request({**GOOD, "datatype": "FP32"}), None, "BYTES or UINT8, not 'FP32'"),
        (request({**GOOD, "shape": [2]}), None, "shape [1]"),
        (request({**GOOD, "shape": "1"}), None, "whole numbers"),
        (request({**GOOD, "shape": [-1]}), None, "whole numbers"),
        (request({**GOOD, "data": ["/9j"]}), None, "not base64"),
        (request({**GOOD, "data": ["\N{SNOWMAN}"]}), None, "not base64"),
        (request({**GOOD, "data": [1]}), None, "one string of base64"),
        (request({"datatype": "BYTES", "shape": [1]}), None, "no 'data', and nothing follows"),
        (request(GOOD) + b"abc", str(len(request(GOOD))), "has 'data', and 3 bytes follow"),
        (request(PIXELS) + b"12345", str(len(request(PIXELS))), "takes 3 bytes, and there are 5"),
        (request({**PIXELS, "data": [1, 2]}), None, "takes 3 bytes, and there are 2"),
        (request({**PIXELS, "data": [1, 2, 256]}), None, "0 to 255"),
        (request({**PIXELS, "data": [1, 2, 2.5]}), None, "0 to 255"),
        (request({**PIXELS, "data": ["1", "2", "3"]}), None, "0 to 255"),
        (request({**PIXELS, "data": [[1, 2, 3]]}), None, "0 to 255"),
        (request({**PIXELS, "data": 5}), None, "0 to 255"),
        (request({**PIXELS, "shape": [1, 3], "data": [1, 2, 3]}), None, "[height, width, 3]"),
        (request({**PIXELS, "shape": [1, 0, 3], "data": []}), None, "[height, width, 3]"),
        (*binary(PIXELS, b"12345"), "takes 3 bytes, and there are 5"),
        (*binary({"datatype": "BYTES", "shape": [1]}, b"\x09\0\0\0abc"), "length in four bytes"),
        (*binary({"datatype": "BYTES", "shape": [1]}, b"abc"), "length in four bytes"),
        (request({**PIXELS, "parameters": {"binary_data_size": 3}}), None, "0 bytes follow"),
        (request({**PIXELS, "parameters": {"binary_data_size": "3"}}), None, "binary_data_size is '3'"),
        (request({**PIXELS, "parameters": 3}), None, "'parameters' must be an object"),
        (request(GOOD, outputs=[{"name": "masks"}]), None, "no output 'masks'"),
        (request(GOOD, outputs=[{"name": ["boxes"]}]), None, "no output"),
        (request(GOOD, outputs=["boxes"]), None, "list of objects"),
        (request(GOOD, id=7), None, "'id' must be a string"),
        (request(GOOD, id="x" * 1025), None, "at most 1024 characters"),
    ],
)
def test_what_the_protocol_does_not_say_is_rejected(body: bytes, length: str | None, told: str) -> None:
    with pytest.raises(BadRequestError) as rejection:
        read_request(body, length)
    assert told in rejection.value.detail
    assert len(rejection.value.detail) < 300
