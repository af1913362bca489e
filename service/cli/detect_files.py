"""Detection in files and folders, without a server: what `frcnn detect` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.api import schemas
from service.api.query import DetectQuery
from service.api.selection import Selection
from service.api.tiles import Tiling, merge
from service.devices.detector import Detections, Detector
from service.errors import ServiceError
from service.images.drawing import draw, encode
from service.images.files import ImageFile
from service.images.pictures import Picture, decode


@dataclass(frozen=True, slots=True)
class FileResult:
    """What was found in a file, of what was asked for, or what is wrong with it."""

    file: ImageFile
    picture: Picture | None = None
    detections: Detections | None = None
    error: str | None = None


def detect_files(
    detector: Detector,
    files: Sequence[ImageFile],
    selection: Selection,
    *,
    max_pixels: int,
    tiling: Tiling | None = None,
    max_tiles: int = 1,
) -> Iterator[FileResult]:
    """Each file's result, as it comes. A broken one is reported and does not stop the others.

    Args:
        detector: looks at one picture at a time.
        files: the pictures.
        selection: what is kept of each.
        max_pixels: bound on a picture.
        tiling: how to divide each picture; None to look at it as a whole.
        max_tiles: most parts of one.
    """
    for file in files:
        try:
            picture = decode(file.path.read_bytes(), max_pixels=max_pixels)
            found = _detect(detector, picture, tiling, max_tiles)
        except ServiceError as error:
            yield FileResult(file, error=error.detail)
        except OSError as error:
            yield FileResult(file, error=error.strerror or str(error))
        else:
            yield FileResult(file, picture, selection.apply(found))


def _detect(detector: Detector, picture: Picture, tiling: Tiling | None, max_tiles: int) -> Detections:
    if tiling is None:
        return detector.detect([picture.pixels])[0]
    parts = tiling.parts(picture.size_hw, most=max_tiles)
    found = [detector.detect([picture.part(part).pixels])[0] for part in parts]
    return merge(parts, found, picture.size_hw, iou_threshold=detector.info.iou_threshold)


def as_json(result: FileResult, query: DetectQuery, detector: Detector) -> dict[str, Any]:
    """The service's JSON with the file's path before it; or the path and an error."""
    if result.picture is None or result.detections is None:
        return {"file": str(result.file.path), "error": result.error}
    found = result.detections
    return {
        "file": str(result.file.path),
        **schemas.result_json(found, query, result.picture.size_hw, detector.info),
    }


def as_text(result: FileResult, detector: Detector) -> str:
    """A line for the file and one for each detection."""
    if result.detections is None:
        return f"{result.file.path}: {result.error}"
    found = result.detections
    captions = schemas.captions(found, detector.info.categories)
    width = max(map(len, captions), default=0)
    lines = [f"{result.file.path}: {len(captions)} detection{'' if len(captions) == 1 else 's'}"]
    for caption, (x1, y1, x2, y2) in zip(captions, found.boxes.tolist(), strict=True):
        lines.append(f"  {caption:<{width}}  x {x1:.0f} to {x2:.0f}, y {y1:.0f} to {y2:.0f}")
    return "\n".join(lines)


def save_drawn(result: FileResult, detector: Detector, folder: Path) -> Path:
    """Write the picture with its boxes below `folder` and say where: PNG stays PNG, all else becomes JPEG.

    A name that is taken gets a number, so that nothing that was there is overwritten.
    """
    assert result.picture is not None
    assert result.detections is not None
    found = result.detections
    is_png = result.file.path.suffix.lower() == ".png"
    target = _free(folder / result.file.name.with_suffix(".png" if is_png else ".jpg"))
    target.parent.mkdir(parents=True, exist_ok=True)
    image = draw(
        result.picture,
        found.boxes.tolist(),
        found.labels.tolist(),
        schemas.captions(found, detector.info.categories),
    )
    target.write_bytes(encode(image, "PNG" if is_png else "JPEG"))
    return target


def _free(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate
