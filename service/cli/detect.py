"""`frcnn detect`: objects in image files, without a server."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.weights.names import argument_error
from service.api.thresholds import parse_thresholds
from service.cli.errors import USAGE, fail, fail_if, say, usage_errors
from service.cli.options import ClassNames, Device, Json, Model, number
from service.cli.progress import counting
from service.cli.serve import settings_from
from service.images.files import IMAGE_SUFFIXES, ImageFile, image_files
from service.settings import Precision, Settings

if TYPE_CHECKING:
    from service.api.query import TiledQuery
    from service.devices.detector import Detector


def detect(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    weights: Annotated[
        str, typer.Option(metavar="W", help="COCO_V1, auto, bundled, random, or a .pth, .safetensors or .frcnn file.")
    ] = "auto",
    score_threshold: Annotated[
        str,
        typer.Option(metavar="N,L:N", help="Drop detections that score lower; 0.5,person:0.8 has another for a class."),
    ] = "0.5",
    as_json: Json = False,
    draw: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the pictures with their boxes into this folder.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="L,L", help="Keep only these classes, separated by commas.")
    ] = None,
    max_detections: Annotated[
        int | None,
        number(min=1, max=10_000, help="Keep the N best of an image: at most 100, but in tiles 10,000."),
    ] = None,
    iou_threshold: Annotated[
        float | None,
        number(
            min=0,
            max=1,
            help="Of two of a class that overlap more, drop the lower; at most the model's own, usually 0.5.",
            show_default=False,
        ),
    ] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="Of two that overlap so, drop the lower whatever their classes.")
    ] = False,
    tile: Annotated[
        int | None, number(min=64, max=8192, help="Look at large images in tiles of N pixels a side, and as a whole.")
    ] = None,
    tile_overlap: Annotated[
        float | None, number(min=0, max=0.8, help="Share of its side that a tile has in common with the next; 0.2.")
    ] = None,
    model: Model = None,
    class_names: ClassNames = None,
    device: Device = "auto",
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of the network; auto measures first which is fastest, for many images."),
    ] = "fp32",
) -> None:
    """Detect objects in image files, without a server.

    Example: frcnn detect photos --score-threshold 0.7 --draw drawn
    """
    logging.basicConfig(level="WARNING", format="frcnn: %(message)s")
    # One image at a time: to measure how many are fastest would take longer than most folders.
    settings = settings_from(
        {
            "weights": weights,
            "model": model,
            "class_names": class_names or (),
            "device": device,
            "precision": precision,
            "backend": "auto" if precision == "auto" else "torch",
            "calibrate_first": True,
            "max_batch_size": 1,
        }
    )
    with usage_errors():
        _check_query(score_threshold, max_detections, tile, tile_overlap)
    files = _image_files(images)
    fail_if(argument_error(weights=settings.weights))  # before torch is imported, which takes seconds
    if draw is not None:
        _make_folder(draw)

    from service.api.query import TiledQuery
    from service.devices.loading import load_detectors

    asked = {
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "labels": None if labels is None else [labels],
        "iou_threshold": iou_threshold,
        "class_agnostic": class_agnostic,
        "tile": tile,
        "tile_overlap": tile_overlap,
    }
    query = TiledQuery.model_validate({name: value for name, value in asked.items() if value is not None})
    failed = _detect_in_each(files, load_detectors(settings)[0], query, settings, draw=draw, as_json=as_json)
    if failed:
        fail(f"{failed} of {len(files)} images failed")


def _detect_in_each(
    files: list[ImageFile],
    detector: Detector,
    query: TiledQuery,
    settings: Settings,
    *,
    draw: Path | None,
    as_json: bool,
) -> int:
    """Detect in one file after the other, and print and draw what is found. Returns how many files failed."""
    from service.cli import detect_files

    results = detect_files.detect_files(
        detector,
        files,
        query.selection(detector.info),
        max_pixels=settings.max_image_pixels,
        tiling=query.tiling,
        max_tiles=settings.max_tiles,
    )
    failed, documents = 0, []
    with counting("detecting", len(files)) as advance:
        for result in results:
            advance()
            if result.error is not None:
                failed += 1
                say(f"frcnn: {result.file.path}: {result.error}")
            elif draw is not None:
                detect_files.save_drawn(result, detector, draw)
            if as_json:
                documents.append(detect_files.as_json(result, query, detector))
            elif result.error is None:
                typer.echo(detect_files.as_text(result, detector))
    if as_json:
        typer.echo(json.dumps(documents, indent=2))
    return failed


def _check_query(
    score_threshold: str, max_detections: int | None, tile: int | None, tile_overlap: float | None
) -> None:
    parse_thresholds(score_threshold)
    if tile is None and (max_detections or 0) > 100:
        raise ValueError("--max-detections is at most 100 without --tile")
    if tile is None and tile_overlap is not None:
        raise ValueError("--tile-overlap goes with --tile")


def _image_files(paths: list[Path]) -> list[ImageFile]:
    try:
        files = image_files(paths)
    except FileNotFoundError as error:
        fail(str(error), code=USAGE)
    if not files:
        fail(f"no images in {', '.join(map(str, paths))}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def _make_folder(folder: Path) -> None:
    """Make the folder before any detection, so that pictures that cannot be written fail at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot write to {folder}: {error.strerror or error}", code=USAGE)
