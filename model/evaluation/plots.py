"""Pictures of an evaluation: precision over recall, and what the detector found on some images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from model.data.samples import INSTALL_EXTRA, DataError, DetectionData
from model.evaluation.average_precision import Metrics
from model.structures import Detection, score_text
from model.weights.categories import Categories

_TRUTH_COLOUR = (0, 110, 230)
_FOUND_COLOUR = (230, 60, 0)
_MIN_SCORE = 0.5


def plot_all(
    folder: Path,
    metrics: Metrics,
    data: DetectionData,
    detections: Sequence[Detection],
    categories: Categories,
    *,
    examples: int = 8,
) -> list[Path]:
    """Write `precision_recall.png` and evenly chosen example pictures; the paths written.

    Raises:
        DataError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    curves = folder / "precision_recall.png"
    plot_curves(curves, metrics)
    written = [curves]
    step = max(1, len(data) // examples)
    for index in range(0, len(data), step)[:examples]:
        image, target = data[index]
        picture = draw_example(image, target["boxes"], detections[index], categories)
        path = folder / f"example_{Path(data.name(index)).stem}.jpg"
        picture.save(path, quality=92)
        written.append(path)
    return written


def plot_curves(path: Path, metrics: Metrics) -> None:
    """Precision at overlap 0.5 over recall, a line for each class."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DataError(f"plots need matplotlib: {INSTALL_EXTRA}") from error
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    recalls = [step / 100 for step in range(101)]
    for name, precisions in metrics.curves.items():
        ap50 = metrics.by_class[name].ap50
        if ap50 is not None:
            axes.plot(recalls, precisions, label=f"{name}, AP50 {ap50:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Precision at overlap 0.5")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def draw_example(image: Tensor, gt_boxes: Tensor, found: Detection, categories: Categories) -> Image.Image:
    """The image with its true boxes in blue and the likely detections in red."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    for box in gt_boxes.tolist():
        draw.rectangle(box, outline=_TRUTH_COLOUR, width=1)
    for index in torch.where(found["scores"] >= _MIN_SCORE)[0].tolist():
        box = found["boxes"][index].tolist()
        draw.rectangle(box, outline=_FOUND_COLOUR, width=2)
        text = f"{categories.name(int(found['labels'][index]))} {score_text(float(found['scores'][index]))}"
        corner = (box[0] + 3, box[1] + 2)
        draw.rectangle(draw.textbbox(corner, text), fill=_FOUND_COLOUR)
        draw.text(corner, text, fill="white")
    return picture
