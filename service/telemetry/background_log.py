"""A log that never keeps the process waiting."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import suppress
from typing import TextIO

_MOST_LINES = 10_000  # a few megabytes
_LAST_WORDS_S = 2.0


class BackgroundHandler(logging.Handler):
    """Writes lines in a thread of its own: a reader that does not read stops the log, and not the event loop.

    Args:
        stream: where to.
        most: lines that may wait. What comes then is dropped, and a line says how many were.
    """

    def __init__(self, stream: TextIO, most: int = _MOST_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: queue.Queue[str | threading.Event] = queue.Queue(most)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
            return
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait until what has been logged is written, but not for long. `logging.shutdown` calls this."""
        written = threading.Event()
        with suppress(queue.Full):
            self._waiting.put_nowait(written)
            written.wait(_LAST_WORDS_S)

    def _write(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            if dropped := self._dropped:
                self._dropped -= dropped
                item = f"{dropped} lines of the log were dropped: nothing read them\n{item}"
            with suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
                self._stream.write(f"{item}\n")
                self._stream.flush()
