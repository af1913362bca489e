"""A detector small enough to train in seconds, on synthetic pictures; as a script, one run of it.

python -m tests.support.tiny_run FOLDER --iterations 12 [--resume] [--accumulate 2] [--live]
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.anchors import AnchorGenerator
from model.data.synthetic import SyntheticData
from model.faster_rcnn import FasterRCNN
from model.resnet import FrozenBatchNorm2d
from model.roi_heads import FastRCNNPredictor, TwoMLPHead
from model.roi_pool import MultiScaleRoIAlign
from model.training.log import LOG_NAME, JsonLog
from model.training.processes import joined_processes
from model.training.settings import TrainSettings
from model.training.trainer import Trainer

CHANNELS = 16


class TinyBackbone(nn.Module):
    """`[N, 3, H, W]` to one map `[N, 16, H / 8, W / 8]`."""

    out_channels = CHANNELS

    def __init__(self, *, live_norm: bool) -> None:
        super().__init__()
        widths = (3, 8, 16, CHANNELS)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after) if live_norm else FrozenBatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def tiny_detector(settings: TrainSettings, num_classes: int = 4) -> FasterRCNN:
    torch.manual_seed(settings.seed)
    pool = MultiScaleRoIAlign(["0"], 5, 2)
    pool.pin_scales((8,))
    return FasterRCNN(
        TinyBackbone(live_norm=settings.live_norm),
        None,
        rpn_anchor_generator=AnchorGenerator(((12, 24, 48),), ((1.0,),)),
        box_roi_pool=pool,
        box_head=TwoMLPHead(CHANNELS * 25, 32),
        box_predictor=FastRCNNPredictor(32, num_classes),
        **settings.model_kwargs,
        rpn_batch_size_per_image=settings.rpn_samples,
        box_batch_size_per_image=settings.roi_samples,
        rpn_pre_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_train=settings.proposals,
    )


def tiny_settings(iterations: int, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "iterations": iterations,
        "batch_size": 4,
        "learning_rate": 0.02,
        "warmup": 2,
        "precision": "fp32",
        "min_size": 96,
        "max_size": 128,
        "rpn_samples": 32,
        "roi_samples": 32,
        "proposals": 50,
        "detection_proposals": 50,
        "save_every": 3,
        "flips": "dihedral",
        "colour": 0.1,
    }
    return TrainSettings(**(values | changes))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--live", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = tiny_settings(arguments.iterations, accumulate=arguments.accumulate, live_norm=arguments.live)
    data = SyntheticData("train", count=10, size_hw=(96, 128))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with joined_processes("cpu") as processes:
        Trainer(
            model=tiny_detector(settings),
            categories=data.categories,
            data=data,
            validation=None,
            settings=settings,
            folder=arguments.folder,
            processes=processes,
            listeners=[JsonLog(arguments.folder / LOG_NAME)],
        ).run(resume=arguments.resume)


if __name__ == "__main__":
    main()
