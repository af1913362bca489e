from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import warnings
from typing import Any, Literal

import pytest
from PIL import Image

from service.settings import Settings
from service.telemetry import logs
from tests.support.fakes import FakeDetector, red_png
from tests.support.servers import serving

SECRET = "SECRET0123456789"


def access_lines(text: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, text.splitlines()) if line["logger"] == "service.access"]


@pytest.mark.anyio
async def test_each_request_gets_a_line_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    async with serving(FakeDetector(fails_on=frozenset({9}))) as client:
        await client.post("/detect", content=red_png(1), headers={"X-Request-ID": "first"})
        await client.post("/detect", content=b"junk", headers={"X-Request-ID": "second"})
        await client.post("/detect", content=red_png(9), headers={"X-Request-ID": "third"})
        await client.get("/livez", headers={"X-Request-ID": "probe"})
        await client.get("/nowhere/private?query=likewise", headers={"X-Request-ID": "fourth"})
    text = capfd.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    lines = access_lines(text)
    told = [
        (x["request_id"], x["method"], x["route"], x["status"], x.get("problem"))
        for x in lines
        if x["route"] != "/readyz"
    ]
    assert told == [
        ("first", "POST", "/detect", 200, None),
        ("second", "POST", "/detect", 400, "broken-image"),
        ("third", "POST", "/detect", 500, "inference-failed"),
        ("fourth", "GET", "none", 404, "no-such-path"),
    ]
    assert all(0 < line["duration_ms"] < 60_000 and "trace_id" not in line for line in lines)
    assert "private" not in text
    assert "likewise" not in text


@pytest.mark.anyio
async def test_each_request_gets_a_line_of_text(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings())
    async with serving(FakeDetector()) as client:
        await client.get("/labels", headers={"X-Request-ID": "abc"})
        await client.get("/detect", headers={"X-Request-ID": "def"})
        await client.request("X" * 60_000, "/detect", headers={"X-Request-ID": "long"})
    ok, wrong, long = capfd.readouterr().err.splitlines()[-3:]
    assert " INFO service.access [abc]: GET /labels 200 " in ok
    assert ok.endswith(" ms")
    assert " INFO service.access [def]: GET /detect 405 " in wrong
    assert wrong.endswith(" ms wrong-method")
    assert f" [long]: {'X' * 16} /detect 405 " in long


@pytest.mark.anyio
async def test_the_lines_can_be_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings())
    async with serving(FakeDetector(), access_log=False) as client:
        await client.get("/labels")
    text = capfd.readouterr().err
    assert "ready: fake" in text
    assert "service.access" not in text


@pytest.mark.parametrize("name", ["service.batching.batcher", "model.weights.download", "uvicorn.error"])
def test_every_logger_of_the_process_writes_json(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    logging.getLogger(name).error("said %s", "this", exc_info=RuntimeError("two\nlines"))
    logging.getLogger(name).debug("too fine")
    (line,) = capfd.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["logger"], told["level"], told["message"]) == (name, "ERROR", "said this")
    assert "RuntimeError: two\nlines" in told["exc_info"]
    assert "request_id" not in told


def test_uvicorns_news_are_no_errors_and_have_no_colours(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[36mStarted\x1b[0m"})
    text = capfd.readouterr().err
    assert json.loads(text)["logger"] == "uvicorn"
    assert "36m" not in text


def test_warnings_are_lines_too(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings(log_format="json"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("mind this", stacklevel=1)
        logging.captureWarnings(False)
    assert "mind this" in json.loads(capfd.readouterr().err)["message"]


def tiff() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = SECRET  # the image's description
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(buffer, "TIFF", exif=exif)
    assert SECRET.encode() in buffer.getvalue()
    return buffer.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_nothing_of_an_image_or_a_key_is_logged(
    log_format: Literal["text", "json"], capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure(Settings(log_format=log_format, log_level="debug"))
    key = {"X-API-Key": f"right-{SECRET}"}
    marked = SECRET.encode()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    bodies: list[dict[str, Any]] = [
        {"content": tiff()},
        {"content": tiff()[:200]},
        {"content": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + marked},
        {"content": b"GIF89a" + marked},
        {"content": marked},
        {"files": {"file": (SECRET, tiff(), f"image/{SECRET}")}},
        {"files": {SECRET: tiff()}},
        {"content": b"--x" + marked, "headers": form},
        {"content": b"--x\r\n" + marked + b"\r\n\r\n", "headers": form},
        {"content": marked, "headers": {"Content-Type": f"multipart/{SECRET}"}},
        {"json": {"image": base64.b64encode(tiff()).decode()}},
        {"json": {"image": SECRET + "%"}},
        {"json": {SECRET: 1}},
        {"content": b'{"image": "' + marked, "headers": {"Content-Type": "application/json"}},
        {"params": {"labels": SECRET}, "content": tiff()},
        {"params": {SECRET: "1"}, "content": tiff()},
    ]
    async with serving(FakeDetector(fails_on=frozenset({1})), api_keys=f"right-{SECRET}") as client:
        for body in bodies:
            answer = await client.post("/detect", **body | {"headers": body.get("headers", {}) | key})
            assert 400 <= answer.status_code <= 500
        await client.post("/detect/batch", files=[("file", tiff()), ("file", marked)], headers=key)
        for headers in ({"X-API-Key": SECRET}, {"Authorization": f"Bearer {SECRET}"}, {"X-Request-ID": f"{SECRET}\n"}):
            assert (await client.get(f"/{SECRET}?key={SECRET}", headers=headers)).status_code == 401
        assert (await client.get(f"/{SECRET}?key={SECRET}", headers=key)).status_code == 404
    text = capfd.readouterr().err
    assert text.count("service.access") > 20
    assert "cannot look at" in text  # the log has the device's failure, with its trace
    assert SECRET not in text
    assert base64.b64encode(marked).decode()[4:-4] not in text


def test_configuring_leaves_the_handlers_of_others_open() -> None:
    """absl's, which TensorBoard brings, would close the standard error that it was made with."""
    closed = []

    class Handler(logging.StreamHandler[Any]):
        def close(self) -> None:
            closed.append(self)
            super().close()

    handler = Handler()
    logging.getLogger("of.a.library").addHandler(handler)
    try:
        logs.configure(Settings())
        assert not closed
    finally:
        logging.getLogger("of.a.library").removeHandler(handler)


def test_declined_upgrades_and_cancelled_requests_are_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings())
    uvicorns = logging.getLogger("uvicorn.error")
    uvicorns.warning("Unsupported upgrade request.")
    for error in (asyncio.CancelledError(), ValueError("of an application")):
        uvicorns.error("Exception in ASGI application", exc_info=error)
    text = capfd.readouterr().err
    assert "upgrade" not in text
    assert "CancelledError" not in text
    assert "of an application" in text
