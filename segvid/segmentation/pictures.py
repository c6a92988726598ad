"""Pictures of a segmentation: panels of image, label and prediction, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segvid.data.reading import IGNORED
from segvid.data.segmentation import SegmentationDataModule

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class PredictionPanels(Callback):
    """After every validation a picture of the first images: image, label, prediction.

    Written to `panels/` in the run's folder and to every logger that takes pictures (TensorBoard, W&B).

    Args:
        images: how many; 0 for none.
    """

    def __init__(self, images: int = 4) -> None:
        self.images = images
        self.rows: list[NDArray[np.uint8]] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first images of the split."""
        missing = self.images - len(self.rows)
        if missing <= 0 or not trainer.is_global_zero:
            return
        data = datamodule(trainer)
        for image, mask, prediction in list(zip(batch["image"], batch["mask"], outputs["prediction"], strict=True))[
            :missing
        ]:
            self.rows.append(panel(image, mask, prediction, data))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the picture."""
        rows, self.rows = self.rows, []
        if not rows or trainer.sanity_checking or not trainer.is_global_zero:
            return
        width = max(row.shape[1] for row in rows)
        sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
        folder = run_folder(trainer)
        if folder is not None:
            folder = folder / "panels"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image is not None:
                add_image("val/predictions", sheet, trainer.global_step, dataformats="HWC")
            log_image = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image(key="val/predictions", images=[sheet], step=trainer.global_step)


def panel(image: Tensor, mask: Tensor, prediction: Tensor, data: SegmentationDataModule) -> NDArray[np.uint8]:
    """Image, label and prediction side by side, (H, 3 W, 3), at the mask's size but at most 480 wide each."""
    height, width = mask.shape
    picture = Image.fromarray(denormalise(image, data)).resize((width, height))
    columns = [
        np.asarray(picture),
        colour(mask.cpu().numpy().astype(np.uint8), data.palette),
        colour(prediction.cpu().numpy().astype(np.uint8), data.palette),
    ]
    sheet = np.concatenate(columns, axis=1)
    if width > 480:
        sheet = np.asarray(Image.fromarray(sheet).resize((3 * 480, height * 480 // width)))
    return sheet


def denormalise(image: Tensor, data: SegmentationDataModule) -> NDArray[np.uint8]:
    """A normalised image (3, H, W) as RGB (H, W, 3)."""
    mean = torch.tensor(data.mean).view(3, 1, 1)
    std = torch.tensor(data.std).view(3, 1, 1)
    pixels = (image.detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(1, 2, 0).numpy()


def colour(mask: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Class indices (H, W) in the colours of the palette (H, W, 3); the ignored label is white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8)
    table[IGNORED] = 255
    return table[mask]


def draw_confusion(counts: Tensor, names: Sequence[str], path: Path) -> None:
    """The confusion matrix as a picture; every row (label) is normalised to 1."""
    shares = counts.double() / counts.double().sum(dim=1, keepdim=True).clamp(min=1)
    extent = 2.5 + 0.38 * len(names)
    figure, axes = plt.subplots(figsize=(extent + 1, extent), layout="constrained")
    drawn = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    for row, column in np.argwhere(shares.numpy() >= 0.05):
        share = float(shares[row, column])
        ink = "white" if share > 0.6 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the label's pixels")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def datamodule(trainer: Trainer) -> SegmentationDataModule:
    """The data module of a trainer."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, SegmentationDataModule)
    return data


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the run, which only a training with a logger has.

    The first process alone may ask: the others do not know it, and `trainer.log_dir` waits until all have asked.
    """
    for logger in trainer.loggers:
        place = getattr(logger, "log_dir", None) or logger.save_dir
        return None if place is None else Path(place)
    return None
