"""What a training leaves in its logs: lines of progress, the model's parts, `metrics.csv`, curves of the classes."""

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from segvid.commands.options import INTERVAL, duration
from segvid.files import write_text
from segvid.text import console, plain


class ProgressLines(ProgressBar):
    """A line a minute, for logs that are no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.steps: float = 0  # of the whole training
        self.first = 0  # step at which this process began
        self.started = self.said = 0.0

    def disable(self) -> None:
        """Says nothing: Lightning asks it of all processes but one."""
        self.enabled = False

    def enable(self) -> None:
        """Speaks again."""
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """What `LightningModule.print` prints."""
        if self.enabled:
            print(*args, **kwargs, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts."""
        self.steps, self.first = trainer.estimated_stepping_batches, trainer.global_step
        self.started = self.said = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says how far the training is."""
        if not self.due():
            return
        step, epochs = trainer.global_step, trainer.max_epochs or -1
        parts = [f"epoch {trainer.current_epoch + 1}" + (f" of {epochs}" if epochs > 0 else "")]
        parts.append(f"step {step}" + (f" of {int(self.steps)}" if self.steps != float("inf") else ""))
        if "train/loss" in trainer.callback_metrics:
            parts.append(f"loss {float(trainer.callback_metrics['train/loss']):.3g}")
        if step > self.first and self.steps != float("inf"):
            seconds = (time.monotonic() - self.started) / (step - self.first) * (self.steps - step)
            parts.append(f"{duration(seconds)} left")
        self.print(", ".join(parts))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of an evaluation without a training."""
        if trainer.state.fn != "fit":
            self.started = self.said = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        self.started = self.said = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Says how far an evaluation is."""
        if not trainer.sanity_checking and self.due():
            self.print(f"evaluation: batch {batch_idx + 1} of {trainer.num_val_batches[dataloader_idx]}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Likewise."""
        if self.due():
            self.print(f"evaluation: batch {batch_idx + 1} of {trainer.num_test_batches[dataloader_idx]}")

    def due(self) -> bool:
        """Whether a minute has passed since the last line."""
        now = time.monotonic()
        if not self.enabled or now - self.said < INTERVAL:
            return False
        self.said = now
        return True


class ModelLines(ModelSummary):
    """The parts of the model that have parameters, one line each. (What they cost: `segvid compare`.)"""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Prints them."""
        columns = dict(summary_data)
        for name, kind, count in zip(columns["Name"], columns["Type"], columns["Params"], strict=True):
            if count.strip() not in ("0", "--"):
                console().print(f"{name}: {plain(kind)}, {count.strip()} parameters", soft_wrap=True)
        frozen = total_parameters - trainable_parameters
        if frozen:
            console().print(f"{frozen} parameters are frozen.", soft_wrap=True)


class ClassCurves(Callback):
    """IoU of every class after every validation, for TensorBoard alone: `val/IoU/<class>`."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the points."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        names: list[str] = trainer.datamodule.class_names  # type: ignore[attr-defined]
        scores: Any = pl_module.scores["val"]  # type: ignore[index]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, value in zip(names, scores.iou, strict=True):
                    if value == value:  # not of a class that does not occur
                        logger.experiment.add_scalar(f"val/IoU/{plain(name)}", value, trainer.global_step)


class MetricsWriter:
    """The rows of a `metrics.csv`: added in one piece each; written whole where a row has other columns.

    Args:
        file: to write.
        keep: go on with the rows that are there.
    """

    def __init__(self, file: Path, keep: bool) -> None:
        self.file = file
        self.names: list[str] = []
        self.metrics: list[dict[str, Any]] = self.rows() if keep else []

    def rows(self) -> list[dict[str, Any]]:
        """What is in the file."""
        return list(csv.DictReader(self.file.read_text().splitlines())) if self.file.is_file() else []

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Takes a row."""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append(values | {"step": step})

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Nothing: `hparams.yaml` is written by TensorBoard's logger."""

    def save(self) -> None:
        """Writes the new rows."""
        if not self.metrics:
            return
        names = sorted(set(self.names).union(*self.metrics))
        if names == self.names:
            with self.file.open("a", newline="") as stream:
                stream.write(lines(names, self.metrics))
        else:
            before = self.rows() if self.names else []
            write_text(self.file, lines(names, [dict(zip(names, names, strict=True)), *before, *self.metrics]))
        self.names, self.metrics = names, []


def lines(names: list[str], rows: list[dict[str, Any]]) -> str:
    """Rows of a CSV."""
    text = io.StringIO()
    csv.DictWriter(text, names, lineterminator="\n").writerows(rows)
    return text.getvalue()


class MetricsFile(CSVLogger):
    """`metrics.csv` in a run's folder.

    Args:
        folder: of the run.
        keep: go on with the rows that are there.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        super().__init__(folder.parent, name="", version=folder.name)
        self.keep = keep

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            writer: Any = MetricsWriter(Path(self.log_dir) / "metrics.csv", self.keep)
            self._experiment = writer
        return self._experiment
