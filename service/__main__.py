"""The program, by either name: `frcnn` and `python -m service`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130
_MESSAGE = "frcnn: interrupted\n"
_SHOW_CURSOR = "\x1b[?25h"
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"


def main() -> None:
    """Run the command that the arguments name. Ctrl-C ends it without a trace, also while Python reads the modules."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
            signal.signal(signal.SIGINT, _interrupt)
        from service.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write(_MESSAGE)
        sys.exit(_INTERRUPTED)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end the process at once where a module is being imported.

    Commands import torch and more of it when they need them, for seconds. Native code in there loses an exception, or
    aborts on it.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            shown = _SHOW_CURSOR if os.isatty(2) else ""  # a progress bar may have hidden it
            os.write(2, (shown + _MESSAGE).encode())
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
