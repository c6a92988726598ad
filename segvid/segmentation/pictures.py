"""Pictures of a segmentation: panels of image, label and prediction, and the confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from segvid.data.reading import IGNORED, colour, colour_table
from segvid.data.record import DataRecord, denormalise
from segvid.files import write_whole
from segvid.segmentation.task import SegmentationTask
from segvid.text import label, plain

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Picture = NDArray[np.uint8]
WIDTH = (160, 480)  # pixels of one column of the panels: small images are enlarged, large ones reduced
GAP = 4
INK = (30, 30, 30)


class PredictionPanels(Callback):
    """After every evaluation a picture of some images from all over the split: image, label, prediction.

    Written to `panels/` in the run's folder and to every logger that takes pictures (TensorBoard, W&B).

    Args:
        images: how many; 0 for none.
    """

    def __init__(self, images: int = 4) -> None:
        self.images = images
        self.rows: list[list[Picture]] = []
        self.shown: set[int] = set()  # classes

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the chosen images."""
        self.keep(trainer, pl_module, outputs, batch, batch_idx, trainer.num_val_batches[dataloader_idx])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the chosen images."""
        self.keep(trainer, pl_module, outputs, batch, batch_idx, trainer.num_test_batches[dataloader_idx])

    def keep(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        batches: int | float,
    ) -> None:
        """Keeps those of the chosen images that are in the batch."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        data = _task(pl_module).data
        for place in places(self.images, batches, batch_idx, len(batch["mask"])):
            mask, prediction = (_bytes(classes[place]) for classes in (batch["mask"], outputs["prediction"]))
            self.rows.append(panel(denormalise(batch["image"][place], data), mask, prediction, data))
            self.shown |= {*np.unique(mask).tolist(), *np.unique(prediction).tolist()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture."""
        self.write(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture."""
        self.write(trainer, pl_module, "test")

    def write(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes what was kept, and forgets it."""
        rows, self.rows = self.rows, []
        shown, self.shown = self.shown, set()
        if not rows:
            return
        task = _task(pl_module)
        picture = sheet(rows, sorted(shown), task.data)
        folder = run_folder(trainer)
        if folder is not None:
            image = Image.fromarray(picture)
            file = folder / "panels" / f"step_{task.evaluated_step:07d}.png"
            write_whole(file, lambda partial: image.save(partial, format="png"))
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image is not None:
                add_image(f"{stage}/predictions", picture, task.evaluated_step, dataformats="HWC")
            log_image = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image(key=f"{stage}/predictions", images=[picture], step=task.evaluated_step)


def places(images: int, batches: int | float, batch_idx: int, size: int) -> list[int]:
    """Which images of a batch are shown, so that all that are shown lie all over the split, the same every time.

    Args:
        images: that are shown of the split.
        batches: of the split; infinite where that is not known, and then the first ones are taken.
        batch_idx: the batch.
        size: images in it.
    """
    number = images if batches == float("inf") else int(batches)
    wanted = Counter(index * number // images for index in range(images))[batch_idx]
    return sorted({index * size // wanted for index in range(wanted)})


def panel(picture: Picture, mask: Picture, prediction: Picture, data: DataRecord) -> list[Picture]:
    """Image, label and prediction in colours, at the mask's size where that is neither small nor large."""
    height, width = mask.shape
    columns = [Image.fromarray(picture).resize((width, height))]
    columns += [Image.fromarray(colour(classes, data.palette)) for classes in (mask, prediction)]
    if width < WIDTH[0]:
        factor = -(-WIDTH[0] // width)
        size = (factor * width, factor * height)
    else:
        size = (min(width, WIDTH[1]), height * min(width, WIDTH[1]) // width)
    return [np.asarray(column.resize(size, Image.Resampling.NEAREST)) for column in columns]


def sheet(rows: Sequence[Sequence[Picture]], classes: Sequence[int], data: DataRecord) -> Picture:
    """Rows of image, label and prediction under their titles, above the colours of the classes, (H, W, 3)."""
    column = max(picture.shape[1] for row in rows for picture in row) + GAP
    font = text_font()
    line = 18
    names = ["ignored" if k == IGNORED else shortened(data.class_names[k]) for k in classes]
    entries: list[tuple[int, int]] = []  # where the entries of the legend lie
    x = y = 0
    for name in names:
        width = line + int(font.getlength(name)) + 12
        if x and x + width > 3 * column:
            x, y = 0, y + line
        entries.append((x, y))
        x += width
    heights = [row[0].shape[0] + GAP for row in rows]
    image = Image.new("RGB", (3 * column, line + sum(heights) + y + line + GAP), "white")
    draw = ImageDraw.Draw(image)
    for index, title in enumerate(("image", "label", "prediction")):
        draw.text((index * column + GAP, 2), title, INK, font)
    top = line
    for row, height in zip(rows, heights, strict=True):
        for index, picture in enumerate(row):
            image.paste(Image.fromarray(picture), (index * column, top))
        top += height
    table = colour_table(data.palette)
    for k, name, (x, y) in zip(classes, names, entries, strict=True):
        box = (x + GAP, top + y + 4, x + GAP + 10, top + y + 14)
        draw.rectangle(box, tuple(table[k].tolist()), (120, 120, 120))
        draw.text((x + line, top + y + 2), name, INK, font)
    return np.asarray(image)


@cache
def text_font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along: it has more letters than Pillow's."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 11)


def shortened(name: str) -> str:
    """A name that does not push everything else out of a picture."""
    shown = plain(name)
    return shown if len(shown) <= 32 else f"{shown[:31]}…"


def draw_confusion(counts: Tensor, names: Sequence[str], file: Path) -> None:
    """Writes the confusion matrix as a picture; every row (label) is normalised to 1."""
    shares = counts.double() / counts.double().sum(dim=1, keepdim=True).clamp(min=1)
    shown = [label(shortened(name)) for name in names]
    extent = 2.5 + 0.38 * len(names)
    figure, axes = plt.subplots(figsize=(extent + 1, extent), layout="constrained")
    drawn = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), shown, rotation=90)
    axes.set_yticks(range(len(names)), shown)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    for row, column in np.argwhere(shares.numpy() >= 0.05):
        share = float(shares[row, column])
        ink = "white" if share > 0.6 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the label's pixels")
    try:
        write_whole(file, lambda partial: figure.savefig(partial, dpi=120, format="png"))
    finally:
        plt.close(figure)


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the run, which only a training with a logger has.

    The first process alone may ask: the others do not know it, and `trainer.log_dir` waits until all have asked.
    """
    for logger in trainer.loggers:
        place = getattr(logger, "log_dir", None) or logger.save_dir
        return None if place is None else Path(place)
    return None


def _bytes(classes: Tensor) -> Picture:
    return classes.cpu().numpy().astype(np.uint8)


def _task(module: LightningModule) -> SegmentationTask:
    assert isinstance(module, SegmentationTask)
    return module
