"""Decodes files in processes that the system gives little memory, and prints what came of each.

    python -m tests.support.short_of_memory [--enough] FILE...

gives more and more of it, or once as much as is enough, and prints a line of JSON for each file: how often it was
decoded, lacked memory, or what else was said.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path

from PIL import AvifImagePlugin

from model.images.decoding import decode, open_image

MOST_PIXELS = 1 << 26
STEPS = 24


def outcome(data: bytes, more: int) -> str:
    """Decode with so many bytes more than the process has; in a process of its own, as a limit stays."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with os.fdopen(reading) as said:
            text = said.read()
        os.waitpid(child, 0)
        return text
    try:
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, unlimited[1]))
        try:
            decode(data, max_pixels=MOST_PIXELS)
            text = "decoded"
        except MemoryError:
            text = "lacked memory"
        except Exception as error:
            text = f"{type(error).__name__}: {error} ({error.__cause__})"
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        os.write(writing, text.encode())
    finally:
        os._exit(0)


def main() -> None:
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack, which counts as well
    enough_alone = sys.argv[1] == "--enough"
    for name in sys.argv[1 + enough_alone :]:
        data = Path(name).read_bytes()
        image = open_image(data, max_pixels=MOST_PIXELS)
        enough = image.working_bytes + 3 * image.width * image.height + (16 << 20)
        steps = [STEPS] if enough_alone else range(STEPS + 1)
        print(json.dumps(Counter(outcome(data, enough * step // STEPS) for step in steps)), flush=True)


if __name__ == "__main__":
    main()
