"""The program, by either name: `frcnn` and `python -m service`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130
_MESSAGE = "frcnn: interrupted\n"
_SHOW_CURSOR = "\x1b[?25h"
# Native code that calls Python, and loses an exception from there or aborts on it: the import of modules such as torch,
# and OpenVINO's reader of torch's graphs.
_CALLED_BY_NATIVE_CODE = ("<frozen importlib._bootstrap>", "openvino/frontend/pytorch/")
_LONGEST_UNNOTICED_S = 1.0
_noticed = threading.Event()


def main() -> None:
    """Run the command that the arguments name. Ctrl-C ends it without a trace, also while Python reads the modules."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
            signal.signal(signal.SIGINT, _interrupt)
            _watch()
        from service.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write(_MESSAGE)
        _end_at_once()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _end_at_once()
        raise


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end the process where native code would lose the exception."""
    _noticed.set()
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in _CALLED_BY_NATIVE_CODE):
            _end_with_message()
        frame = frame.f_back
    raise KeyboardInterrupt


def _watch() -> None:
    """End the process after Ctrl-C where native code, such as the first run of a network, does not return to Python.

    Python calls `_interrupt` only in the main thread, and between two of its own steps. A command that handles signals
    itself is left alone.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        while True:
            is_ours = os.read(reading, 1) == bytes([signal.SIGINT]) and signal.getsignal(signal.SIGINT) is _interrupt
            if is_ours and not _noticed.wait(_LONGEST_UNNOTICED_S):
                _end_with_message()

    threading.Thread(target=wait, name="interrupted", daemon=True).start()


def _end_with_message() -> NoReturn:
    shown = _SHOW_CURSOR if os.isatty(2) else ""  # a progress bar may have hidden it
    os.write(2, (shown + _MESSAGE).encode())
    os._exit(_INTERRUPTED)


def _end_at_once() -> NoReturn:
    """End an interrupted command without the second or two in which Python would free torch and its weights."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it
            stream.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
