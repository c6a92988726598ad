"""What a person reads: lines while training, tables and files after an evaluation."""

import csv
import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from segvid.segmentation.clock import peak_memory_mb, training_clock
from segvid.segmentation.metrics import SegmentationScores
from segvid.segmentation.pictures import datamodule, draw_confusion, run_folder
from segvid.segmentation.task import SegmentationTask


class EvaluationReport(Callback):
    """A line after every validation; a per-class table and files after `validate`, `test` and at the end of `fit`.

    Written into the run's folder: `<stage>.json` (all figures and the confusion matrix), `<stage>.csv` (one row a
    class) and `<stage>_confusion.png`.

    Attributes:
        step: of the last validation; None before the first.
    """

    def __init__(self) -> None:
        self.console = Console()
        self.step: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the figures; writes the files unless this is one of many validations of a training."""
        if trainer.sanity_checking:
            return
        self.step = trainer.global_step
        if not trainer.is_global_zero:
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
        names = datamodule(trainer).class_names
        result = task.scores[stage]
        self.console.print(class_table(result, names, stage))
        folder = run_folder(trainer)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        counts = task.confusion_counts[stage]
        step = self.step if stage == "val" else trainer.global_step
        facts = {
            "stage": stage,
            "step": step,
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
        self.console.print(f"Figures and confusion matrix at step {step}: {folder}", highlight=False)


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
