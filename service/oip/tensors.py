"""The protocol's tensors: the request's one input to an image, detections to the outputs that are asked for.

A tensor's data stands in the JSON, or after it in the body, little-endian and row major (binary tensor data extension).
A BYTES element there is its length in four bytes and then itself; in JSON, which has no bytes, it is base64.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from service.api.bounded_json import decode_base64, read_object, unpacking_bytes
from service.api.query import SelectionQuery, in_words
from service.devices.detector import Detections
from service.errors import BadRequestError

INPUT = {"name": "image", "datatype": "BYTES", "shape": [1]}
# D detections, best first; boxes xyxy in pixels of the upright image.
OUTPUTS = (
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "labels", "datatype": "INT64", "shape": [-1]},
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
)
_LAYOUT = {"FP32": "<f4", "INT64": "<i8"}
_DATATYPES = {str(output["name"]): str(output["datatype"]) for output in OUTPUTS}
# JSON is parsed in one call, and all callers wait: the numbers of 640 x 480 pixels take some tens of milliseconds.
_MOST_JSON_PARTS = 1 << 20
_LONGEST_ID = 1024  # it is sent back
_EXPECTED_JSON = (
    "the request must be a JSON object of a million values at most; send tensors as binary data, or images as BYTES"
)
_CHOOSING = frozenset(SelectionQuery.model_fields)
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a request asks for.

    Attributes:
        image: an image file, or pixels `[H, W, 3]` RGB.
        outputs: names to whether their data goes after the JSON; in the order asked for.
        query: which detections are wanted.
        timeout_s: the request's own deadline in seconds; None if it names none.
        id: to send back.
    """

    image: bytes | Pixels
    outputs: dict[str, bool]
    query: SelectionQuery
    timeout_s: float | None
    id: str | None


def read_request(body: bytes, json_length: str | None) -> InferRequest:
    """Read a request's body.

    Args:
        body: JSON, and perhaps the tensor's data after it.
        json_length: the header that says how many bytes are JSON; None if all are.

    Raises:
        BadRequestError: it is not what the protocol says, or asks for what this model has not.
    """
    split = _split(body, json_length)
    document = read_object(body[:split], most_parts=_MOST_JSON_PARTS, expected=_EXPECTED_JSON)
    parameters = _parameters(document)
    request_id = document.get("id")
    if request_id is not None and not (isinstance(request_id, str) and len(request_id) <= _LONGEST_ID):
        raise BadRequestError(f"'id' must be a string of at most {_LONGEST_ID} characters")
    return InferRequest(
        image=_image(document, body[split:]),
        outputs=_wanted(document, parameters),
        query=_query(parameters),
        timeout_s=_timeout_s(parameters),
        id=request_id,
    )


def reading_bytes(body: bytes, json_length: str | None) -> int:
    """The memory that `read_request` needs beside the body, at most.

    Raises:
        BadRequestError: `json_length` does not fit the body.
    """
    document = body[: _split(body, json_length)]
    # What follows the JSON is copied twice: as it is, and without its length.
    return len(document) + unpacking_bytes(document, most_parts=_MOST_JSON_PARTS) + 2 * (len(body) - len(document))


def _split(body: bytes, json_length: str | None) -> int:
    """How many bytes of the body are JSON."""
    if json_length is None:
        return len(body)
    if not json_length.isdecimal() or len(json_length) > 18 or int(json_length) > len(body):
        raise BadRequestError(f"Inference-Header-Content-Length must be a number up to the body's {len(body)} bytes")
    return int(json_length)


def write_response(found: Detections, request: InferRequest, *, model: str, version: str) -> tuple[bytes, int | None]:
    """The response's body, and how many of its bytes are JSON; None if all are."""
    arrays: dict[str, npt.NDArray[Any]] = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
    outputs = []
    binary = []
    for name, is_binary in request.outputs.items():
        datatype = _DATATYPES[name]
        array = arrays[name].astype(_LAYOUT[datatype])
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if is_binary:
            binary.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    document = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document, separators=(",", ":")).encode()
    if not any(request.outputs.values()):
        return head, None
    return b"".join((head, *binary)), len(head)


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:  # as generated clients write what is left out
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError("'parameters' must be an object")
    return parameters


def _query(parameters: dict[str, Any]) -> SelectionQuery:
    """The parameters that choose detections. The others are not kept: they may be large, and nothing reads them."""
    chosen = {name: value for name, value in parameters.items() if name in _CHOOSING}
    try:
        return SelectionQuery(**chosen)
    except ValidationError as error:
        raise BadRequestError(f"parameters: {in_words(error, SelectionQuery)}") from error


def _timeout_s(parameters: dict[str, Any]) -> float | None:
    microseconds = parameters.get("timeout", 0)
    if type(microseconds) is not int or microseconds < 0:
        raise BadRequestError("parameters: timeout must be a whole number of microseconds")
    return min(microseconds, 10**12) / 1e6 or None


def _image(document: dict[str, Any], rest: bytes) -> bytes | Pixels:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError("'inputs' must hold exactly one tensor, named 'image'")
    tensor = inputs[0]
    if tensor.get("name") != "image":
        raise BadRequestError(f"there is no input {_shown(tensor.get('name'))}; the one there is has the name 'image'")
    size = _parameters(tensor).get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(rest)):
        raise BadRequestError(f"binary_data_size is {_shown(size)}, and {len(rest)} bytes follow the JSON")
    data = tensor.get("data")
    if rest and not data:
        data = None  # as some clients write what follows
    if data is None and size is None and not rest:
        raise BadRequestError("the input 'image' has no 'data', and nothing follows the JSON")
    if data is not None and rest:
        raise BadRequestError(f"the input 'image' has 'data', and {len(rest)} bytes follow the JSON")
    shape = _shape(tensor)
    match tensor.get("datatype"):
        case "BYTES":
            if prod(shape) != 1:
                raise BadRequestError(f"a BYTES image has the shape [1], not {shape}")
            if data is not None:
                return _decoded(data)
            # OpenVINO Model Server takes a single image as it is, without its length before it.
            return rest if size is None else _element(rest)
        case "UINT8":
            if len(shape) != 3 or shape[2] != 3 or prod(shape) == 0:
                raise BadRequestError(f"a UINT8 image has the shape [height, width, 3], not {shape}")
            values = rest if data is None else _values(data)
            if len(values) != prod(shape):
                raise BadRequestError(f"the shape {shape} takes {prod(shape)} bytes, and there are {len(values)}")
            return np.frombuffer(values, dtype=np.uint8).reshape(shape)
        case other:
            raise BadRequestError(f"the input 'image' is BYTES or UINT8, not {_shown(other)}")


def _shape(tensor: dict[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > 8
        or not all(type(side) is int and 0 <= side < 1 << 31 for side in shape)
    ):
        raise BadRequestError("'shape' must be a list of whole numbers")
    return shape


def _element(data: bytes) -> bytes:
    """The one element of a binary BYTES tensor."""
    if len(data) < 4 or struct.unpack_from("<I", data)[0] != len(data) - 4:
        raise BadRequestError(
            "a binary BYTES tensor of one element is its length in four bytes, and then as many bytes"
        )
    return data[4:]


def _decoded(data: Any) -> bytes:
    while isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, str):
        raise BadRequestError("the data of a BYTES image in JSON is one string of base64")
    return decode_base64(data, name="the data of 'image'")


def _values(data: Any) -> bytes:
    """Numbers in JSON, flat or nested as the shape is."""
    try:
        nested = isinstance(data, list) and bool(data) and isinstance(data[0], list)
        return bytes(chain.from_iterable(chain.from_iterable(data)) if nested else list(data))
    except (TypeError, ValueError) as error:
        raise BadRequestError("the data of a UINT8 image is whole numbers from 0 to 255, flat or [H][W][3]") from error


def _wanted(document: dict[str, Any], parameters: dict[str, Any]) -> dict[str, bool]:
    asked = document.get("outputs") or [{"name": name} for name in _DATATYPES]
    if not isinstance(asked, list) or not all(isinstance(output, dict) for output in asked):
        raise BadRequestError("'outputs' must be a list of objects")
    all_binary = parameters.get("binary_data_output") or False
    wanted = {}
    for output in asked:
        name = output.get("name")
        if not isinstance(name, str) or name not in _DATATYPES:
            raise BadRequestError(f"there is no output {_shown(name)}; there are {', '.join(_DATATYPES)}")
        wanted[name] = _parameters(output).get("binary_data", all_binary) is True
    return wanted


def _shown(value: Any) -> str:
    """What was sent, no longer than a message may be."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
