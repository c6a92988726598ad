"""What a person looks at: lines while training, tables and files after an evaluation, pictures of predictions."""

import csv
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from segvid.data.reading import IGNORED
from segvid.data.segmentation import SegmentationDataModule
from segvid.segmentation.metrics import SegmentationScores
from segvid.segmentation.task import SegmentationTask

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class TrainingClock(Callback):
    """Time spent training, without the validations in between, over all resumptions; peak memory.

    Attributes:
        seconds: of training so far.
        samples: trained so far, on all devices.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = 0
        self.started: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts."""
        self.started = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops while the model is validated."""
        self.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on."""
        if trainer.training or trainer.state.fn == "fit":
            self.started = None if trainer.sanity_checking else time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        self.samples += len(batch["image"]) * trainer.world_size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops."""
        self.stop()

    def stop(self) -> None:
        """Adds the time since the last start."""
        if self.started is not None:
            self.seconds += time.monotonic() - self.started
            self.started = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        running = 0.0 if self.started is None else time.monotonic() - self.started
        return {"seconds": self.seconds + running, "samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]

    @property
    def images_per_second(self) -> float:
        """Training throughput."""
        return self.samples / self.seconds if self.seconds else 0.0


def training_clock(trainer: Trainer) -> TrainingClock | None:
    """The clock of a trainer that has one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, TrainingClock)), None)


def peak_memory_mb() -> float:
    """Peak memory of this process so far: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform != "darwin" else peak / 2**20


class EvaluationReport(Callback):
    """A line after every validation; a per-class table and files after `validate`, `test` and at the end of `fit`.

    Written into the run's folder: `<stage>.json` (all figures and the confusion matrix), `<stage>.csv` (one row a
    class) and `<stage>_confusion.png`.
    """

    def __init__(self) -> None:
        self.console = Console()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the figures; writes the files unless this is one of many validations of a training."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        task = _task(pl_module)
        if trainer.state.fn == "validate":
            self.report(trainer, task, "val")
        else:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in task.scores["val"].means().items())
            self.console.print(f"step {trainer.global_step}: {figures}", highlight=False)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table and writes the files."""
        if trainer.is_global_zero:
            self.report(trainer, _task(pl_module), "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files of the last validation."""
        task = _task(pl_module)
        if trainer.is_global_zero and "val" in task.scores:
            self.report(trainer, task, "val")
        clock = training_clock(trainer)
        if trainer.is_global_zero and clock is not None and clock.seconds:
            self.console.print(
                f"Trained {clock.samples} images in {clock.seconds:.0f} s ({clock.images_per_second:.2f} images/s), "
                f"peak memory {peak_memory_mb():.0f} MB.",
                highlight=False,
            )

    def report(self, trainer: Trainer, task: SegmentationTask, stage: str) -> None:
        """Prints the table of a stage and writes its files into the run's folder."""
        names = _data(trainer).class_names
        result = task.scores[stage]
        self.console.print(class_table(result, names, stage))
        if trainer.log_dir is None:
            return
        folder = Path(trainer.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        counts = task.confusion_counts[stage]
        facts = {
            "stage": stage,
            "step": trainer.global_step,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "class_names": names,
            **result.asdict(),
            "confusion": counts.tolist(),
        }
        (folder / f"{stage}.json").write_text(json.dumps(without_nan(facts), indent=1) + "\n")
        with (folder / f"{stage}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "IoU", "accuracy", "Dice", "pixels"])
            rows = zip(names, result.iou, result.accuracy, result.dice, counts.sum(dim=1).tolist(), strict=True)
            writer.writerows(rows)
            writer.writerow(["mean", result.mIoU, result.mAcc, result.mDice, int(counts.sum())])
        draw_confusion(counts, names, folder / f"{stage}_confusion.png")
        self.console.print(f"Figures and confusion matrix: {folder}", highlight=False)


class PredictionPanels(Callback):
    """After every validation a picture of the first images: image, label, prediction.

    Written to `panels/` in the run's folder and to every logger that takes pictures (TensorBoard).

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
        data = _data(trainer)
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
        if trainer.log_dir is not None:
            folder = Path(trainer.log_dir) / "panels"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image is not None:
                add_image("val/predictions", sheet, trainer.global_step, dataformats="HWC")


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


def class_table(result: SegmentationScores, names: Sequence[str], stage: str) -> Table:
    """IoU, accuracy and Dice of every class and their means, in per cent."""
    table = Table(title=f"{stage}: mIoU {100 * result.mIoU:.2f}, pixel accuracy {100 * result.aAcc:.2f}")
    table.add_column("class")
    for column in ("IoU", "accuracy", "Dice"):
        table.add_column(column, justify="right")
    for row in zip(names, result.iou, result.accuracy, result.dice, strict=True):
        table.add_row(row[0], *(percent(value) for value in row[1:]))
    table.add_section()
    table.add_row("mean", percent(result.mIoU), percent(result.mAcc), percent(result.mDice))
    return table


def percent(value: float) -> str:
    """Two decimals; a dash where the class does not occur."""
    return "-" if value != value else f"{100 * value:.2f}"


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


def without_nan(value: Any) -> Any:
    """NaN is no JSON: None instead, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _task(module: LightningModule) -> SegmentationTask:
    assert isinstance(module, SegmentationTask)
    return module


def _data(trainer: Trainer) -> SegmentationDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, SegmentationDataModule)
    return data
