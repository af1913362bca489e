"""Where a graph rounds to 8 bits, and within which ranges: found by NNCF, in a process of its own.

NNCF holds all activations of an image, 2 GiB, and takes every core that it may. In its own process it has a low
priority, so that requests go first, and its memory goes with it.

    python -m model.inference.activation_ranges FOLDER THREADS PATTERN ...      # what `roundings_of` runs
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model.inference.errors import QuantisationError

if TYPE_CHECKING:
    import openvino

_GRAPH, _FOUND, _ERRORS = "graph.xml", "found.json", "errors.txt"
_LOOKED = "looked at an image"
_PREFIX = "frcnn-int8-"
_REMOVE = "import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)"
_NICENESS = 19  # on a CPU what answers has some itself


@dataclass(frozen=True, slots=True)
class Rounding:
    """Where a graph rounds to 8 bits: an operation's output, on its way to inputs `(operation, index)` of others."""

    source: str
    targets: tuple[tuple[str, int], ...]
    low: float
    high: float

    @classmethod
    def of(cls, item: Any) -> Rounding:
        """The rounding that `asdict` made an item of JSON of. Raises TypeError, KeyError, ValueError: it is another."""
        targets = tuple((str(name), int(index)) for name, index in item["targets"])
        return cls(str(item["source"]), targets, float(item["low"]), float(item["high"]))


def roundings_of(
    graph: openvino.Model,
    images: Iterable[npt.NDArray[np.float32]],
    *,
    ignored: Iterable[str],
    threads: int,
    looked: Callable[[], None],
) -> tuple[Rounding, ...]:
    """What these images show of a graph. Blocks, for a minute or more.

    A process does it, which ends with this one, however that ends, and then removes its folder of some 300 MB.

    Args:
        graph: in float32.
        images: its inputs, `[1, 3, H, W]`.
        ignored: patterns of the names of operations that stay as they are.
        threads: most to compute with.
        looked: called after each image.

    Raises:
        QuantisationError: the process failed.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:  # the process removes it, too
        folder = Path(name)
        openvino.save_model(graph, folder / _GRAPH, compress_to_fp16=False)
        for number, image in enumerate(images):
            np.save(folder / f"{number:06}.npy", image)
        command = [sys.executable, "-m", __name__, name, str(threads), *ignored]
        with (
            (folder / _ERRORS).open("wb") as errors,
            subprocess.Popen(  # noqa: S603 - this program, with paths and names of its own
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip() == _LOOKED.encode():
                    looked()
        if child.returncode:
            last = (folder / _ERRORS).read_text(errors="replace").strip().rpartition("\n")[2]
            reason = f"signal {-child.returncode}" if child.returncode < 0 else last
            raise QuantisationError(f"int8 cannot be calibrated: its process was ended by {reason}")
        return tuple(Rounding.of(item) for item in json.loads((folder / _FOUND).read_text()))


def main(folder: Path, threads: int, ignored: list[str]) -> None:
    """Find the roundings of the graph and the images in a folder, and write them there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the first one ends this
    threading.Thread(target=_end_with_the_first, args=[folder], daemon=True).start()
    os.nice(_NICENESS)
    if hasattr(os, "sched_setaffinity"):  # where a container has a quota, there are more cores than it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import nncf
    import openvino

    def look(path: Path) -> npt.NDArray[np.float32]:
        image: npt.NDArray[np.float32] = np.load(path)
        sys.stdout.write(f"{_LOOKED}\n")
        sys.stdout.flush()
        return image

    paths = sorted(folder.glob("*.npy"))
    rounded = nncf.quantize(
        openvino.Core().read_model(folder / _GRAPH),
        nncf.Dataset(paths, look),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(paths),
        ignored_scope=nncf.IgnoredScope(patterns=ignored),
        # Corrected biases would be 30 times as much to keep, and take a third of the time. Without them AP on BCCD
        # val is 0.604 to 0.607 where fp32 has 0.605.
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    found = [_rounding(node) for node in rounded.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    (folder / _FOUND).write_text(json.dumps([asdict(rounding) for rounding in found]))


def _end_with_the_first(folder: Path) -> None:
    """Wait for the end of standard input, which the first process holds open as long as it lives; remove its folder."""
    try:
        if not os.read(0, 1) and folder.name.startswith(_PREFIX):
            # It may have been killed, and have left the folder. Another program takes the place of this one, so that no
            # thread of it uses what is being removed.
            os.execv(sys.executable, [sys.executable, "-c", _REMOVE, str(folder)])  # noqa: S606
    finally:
        os._exit(1)


def _rounding(node: openvino.Node) -> Rounding:
    low, high = (float(node.input_value(index).get_node().data) for index in (1, 2))
    targets = [(port.get_node().get_friendly_name(), port.get_index()) for port in node.output(0).get_target_inputs()]
    return Rounding(node.input_value(0).get_node().get_friendly_name(), tuple(sorted(targets)), low, high)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
