"""The program, by either name: `frcnn` and `python -m service`."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command that the arguments name. Ctrl-C while Python reads the modules ends it without a trace."""
    try:
        from service.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("frcnn: interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
