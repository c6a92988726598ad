"""What a person reads: lines while training, tables and files after an evaluation."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from rich.table import Table

from segvid.files import write_json, write_text
from segvid.segmentation.clock import peak_memory_mb, training_clock
from segvid.segmentation.inference import Inference
from segvid.segmentation.metrics import SegmentationScores
from segvid.segmentation.pictures import draw_confusion, run_folder
from segvid.segmentation.task import SegmentationTask
from segvid.text import cell, console, plain, slug

# Options of a config that do not change what an evaluation finds.
INDIFFERENT = ("num_workers", "batch_size", "eval_batch_size", "augmentation", "optimizer", "lr_scheduler", "compile")


class EvaluationReport(Callback):
    """A line after every validation; a per-class table and files after `validate`, `test` and at the end of `fit`.

    Written into the run's folder: `<stage>.json` (all figures and the confusion matrix), `<stage>.csv` (one row a
    class) and `<stage>_confusion.png`.

    Attributes:
        step: of the last validation; None before the first.
    """

    def __init__(self) -> None:
        self.console = console()
        self.step: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the figures; writes the files unless this is one of many validations of a training."""
        if trainer.sanity_checking:
            return
        task = _task(pl_module)
        self.step = task.evaluated_step
        if not trainer.is_global_zero:
            return
        if trainer.state.fn == "validate":
            self.report(trainer, task, "val", self.step)
        else:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in task.scores["val"].means().items())
            self.console.print(f"step {self.step}: {figures}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table and writes the files."""
        if trainer.is_global_zero:
            task = _task(pl_module)
            self.report(trainer, task, "test", task.evaluated_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files of the last validation."""
        task = _task(pl_module)
        if trainer.is_global_zero and "val" in task.scores:
            self.report(trainer, task, "val", self.step)
        clock = training_clock(trainer)
        if trainer.is_global_zero and clock is not None and clock.seconds:
            self.console.print(
                f"Trained {clock.samples} images in {clock.seconds:.0f} s ({clock.images_per_second:.2f} images/s), "
                f"peak memory {peak_memory_mb():.0f} MB."
            )

    def report(self, trainer: Trainer, task: SegmentationTask, stage: str, step: int | None) -> None:
        """Prints the table of a stage and writes its files into the run's folder."""
        names = task.data.class_names
        result = task.scores[stage]
        self.console.print(class_table(result, names, stage))
        folder = run_folder(trainer)
        if folder is None:
            return
        counts = task.confusion_counts[stage]
        facts = {
            "stage": stage,
            "step": step,
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "class_names": names,
            "loss": task.mean_losses[stage],
            **result.asdict(),
            "confusion": counts.tolist(),
        }
        write_json(folder / f"{stage}.json", facts)
        write_text(folder / f"{stage}.csv", class_csv(result, names, counts.sum(dim=1).tolist()))
        draw_confusion(counts, names, folder / f"{stage}_confusion.png")
        self.console.print(f"Figures and confusion matrix at step {step}: {plain(folder)}", soft_wrap=True)


class EvaluationFolder(Logger):
    """The place of an evaluation: callbacks write into the folder of a trainer's first logger. It logs nothing.

    Args:
        folder: the place.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.folder)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """The report has them."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config has them."""


def evaluation_folder(checkpoint: Path, stage: str, how: Inference, config: Mapping[str, Any]) -> Path:
    """Where an evaluation of a checkpoint is written: `evaluations/<stage>-<checkpoint>-<options>` in its run.

    Where the checkpoint lies in no run's folder, beside it. The options are those of the way of evaluation, and what
    else is another than in the run's own `config.yaml`.

    Args:
        checkpoint: that is evaluated.
        stage: "val" or "test".
        how: images are evaluated.
        config: of the evaluation, as plain data.
    """
    run = checkpoint.parent.parent
    before = _read_config(run / "config.yaml") if checkpoint.parent.name == "checkpoints" else None
    parts = [stage, checkpoint.stem]
    for name, size in (("window", how.window), ("stride", how.stride)):
        if size is not None:
            parts.append(f"{name}{size[0]}x{size[1]}")
    if tuple(how.scales) != (1.0,):
        parts.append("scales" + "_".join(f"{scale:g}" for scale in how.scales))
    if how.flip:
        parts.append("flip")
    if before is not None:
        then, now = _options(before), _options(config)
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key):
                parts.append(f"{key.rpartition('.')[2]}={_short(now.get(key))}")
    return (run if before is not None else checkpoint.parent) / "evaluations" / slug("-".join(parts))


def _read_config(file: Path) -> dict[str, Any] | None:
    """A run's config; None if there is none that can be read."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation depends on, but for the way of inference, as {"dotted.name": value}."""
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                if key not in (*INDIFFERENT, "inference", "num_classes"):
                    walk(item, f"{name}.{key}")
        else:
            flat[name] = value

    walk(config.get("model"), "model")
    walk(config.get("data"), "data")
    trainer = config.get("trainer") or {}
    for key in ("precision", "limit_val_batches", "limit_test_batches"):
        walk(trainer.get(key), key)
    return flat


def _short(value: Any) -> str:
    """A value in a name."""
    return "_".join(map(str, value)) if isinstance(value, list) else str(value)


def class_csv(result: SegmentationScores, names: Sequence[str], pixels: Sequence[int]) -> str:
    """IoU, accuracy, Dice and pixels of every class, and the means."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["class", "IoU", "accuracy", "Dice", "pixels"])
    shown = [cell(name) for name in names]
    writer.writerows(zip(shown, result.iou, result.accuracy, result.dice, pixels, strict=True))
    writer.writerow(["mean", result.mIoU, result.mAcc, result.mDice, sum(pixels)])
    return table.getvalue()


def class_table(result: SegmentationScores, names: Sequence[str], stage: str) -> Table:
    """IoU, accuracy and Dice of every class and their means, in per cent."""
    table = Table(title=f"{stage}: mIoU {100 * result.mIoU:.2f}, pixel accuracy {100 * result.aAcc:.2f}")
    table.add_column("class")
    for column in ("IoU", "accuracy", "Dice"):
        table.add_column(column, justify="right")
    for row in zip(names, result.iou, result.accuracy, result.dice, strict=True):
        table.add_row(plain(row[0]), *(percent(value) for value in row[1:]))
    table.add_section()
    table.add_row("mean", percent(result.mIoU), percent(result.mAcc), percent(result.mDice))
    return table


def percent(value: float) -> str:
    """Two decimals; a dash where the class does not occur."""
    return "-" if value != value else f"{100 * value:.2f}"


def _task(module: LightningModule) -> SegmentationTask:
    assert isinstance(module, SegmentationTask)
    return module
