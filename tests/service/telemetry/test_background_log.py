from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import pytest

from service.telemetry.background_log import BackgroundHandler

Pipe = tuple[TextIO, TextIO]  # what is read, what is written to


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    read, write = os.pipe()
    with os.fdopen(read) as reader, os.fdopen(write, "w") as writer:
        yield reader, writer


def logger_to(handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger


def test_lines_come_in_order_and_are_written_when_it_is_flushed(pipe: Pipe) -> None:
    handler = BackgroundHandler(pipe[1])
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for number in range(50):
        logger_to(handler).warning("line %d", number)
    handler.flush()
    assert [pipe[0].readline() for _ in range(50)] == [f"WARNING line {number}\n" for number in range(50)]


def test_a_reader_that_does_not_read_stops_nobody_and_is_told_what_it_missed(pipe: Pipe) -> None:
    handler = BackgroundHandler(pipe[1], most=10)
    logger, long = logger_to(handler), "x" * 5000
    for _ in range(200):  # 1 MB, where a pipe takes 64 KiB
        logger.warning(long)
    received: list[str] = []
    reading = threading.Thread(target=lambda: received.extend(iter(pipe[0].readline, "end\n")), daemon=True)
    reading.start()

    def accounted() -> int:
        told = [line for line in received if "dropped" in line]
        return sum(int(line.split()[0]) for line in told) + received.count(f"{long}\n")

    handler.flush()
    give_up = time.monotonic() + 20
    while accounted() < 200 and time.monotonic() < give_up:
        time.sleep(0.01)
    logger.warning("end")  # nothing waits now, so there is room for it
    reading.join(20)
    assert not reading.is_alive()
    assert accounted() == 200


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def write(self, _text: str) -> int:
        self.tried += 1
        raise BrokenPipeError


def test_a_reader_that_has_gone_is_no_failure() -> None:
    stream = Gone()
    handler = BackgroundHandler(stream)
    for _ in range(2):
        logger_to(handler).warning("anybody?")
        handler.flush()
    assert stream.tried == 2
