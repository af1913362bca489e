"""Our detector against torchvision's on the same weights and the same picture, interleaved in one run.

usage: python benchmarks/against_torchvision.py [--rounds 7] [--size 480x640] [--json]

Prints medians and their ratio: on a busy machine only what was measured side by side can be compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn as oracle_fasterrcnn

from model.build import from_checkpoint, random_checkpoint
from model.weights import Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", default="480x640", help="height x width of the picture")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))

    checkpoint = lively_checkpoint()
    ours = from_checkpoint(checkpoint).eval()
    theirs = oracle_fasterrcnn(weights=None, weights_backbone=None).eval()
    theirs.load_state_dict(checkpoint.state_dict, strict=False)  # live batch norm has counters besides
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))

    ours_s, theirs_s = [], []
    with torch.inference_mode():
        found, expected = ours([image])[0], theirs([image])[0]  # also the warm-up
        assert found["labels"].equal(expected["labels"]), "the two do not agree, so their speed means nothing"
        for _ in range(arguments.rounds):
            theirs_s.append(seconds(lambda: theirs([image])))
            ours_s.append(seconds(lambda: ours([image])))
    result = {
        "torchvision_s": round(statistics.median(theirs_s), 4),
        "ours_s": round(statistics.median(ours_s), 4),
        "ratio": round(statistics.median(t / o for t, o in zip(theirs_s, ours_s, strict=True)), 3),
        "rounds": arguments.rounds,
        "size": arguments.size,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key:<14} {value}" for key, value in result.items()))


def lively_checkpoint() -> Checkpoint:
    """Untrained weights that are sure of themselves, so that post-processing has its full work."""
    checkpoint = random_checkpoint()
    checkpoint.state_dict["roi_heads.box_predictor.cls_score.weight"] *= 60
    return checkpoint


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
