"""Accuracy against the distance between a pixel and what decides its label, where a data set knows that distance."""

import csv
import io
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from segvid.files import write_text
from segvid.segmentation.pictures import run_folder

BIN = 8.0  # pixels


@dataclass(frozen=True)
class DistanceBin:
    """Pixels at much the same distance from what decides their label.

    Args:
        start: smallest distance in pixels; the bin ends before `start + 8`.
        pixels: how many there are.
        accuracy: the share whose label is predicted, 0 to 1.
    """

    start: float
    pixels: int
    accuracy: float


class DistanceAccuracy(Callback):
    """Counts right pixels by distance while a model is evaluated, if the batches have a `distance` (B, H, W).

    Writes `<stage>_distance.csv` into the run's folder.

    Attributes:
        bins: of the last evaluation; empty where the data know no distance.
    """

    def __init__(self) -> None:
        self.bins: list[DistanceBin] = []
        self.counts: Tensor | None = None  # (2, bins): right, all

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self.counts = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self.counts = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch."""
        self.count(outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch."""
        self.count(outputs, batch)

    def count(self, outputs: Any, batch: Any) -> None:
        """Adds the pixels of a batch whose distance is known."""
        if "distance" not in batch:
            return
        known = batch["distance"] >= 0
        index = (batch["distance"][known] / BIN).long()
        right = (outputs["prediction"] == batch["mask"])[known].double()
        size = max(int(index.max()) + 1 if len(index) else 1, 0 if self.counts is None else self.counts.shape[1])
        counts = torch.stack(
            [torch.bincount(index, weights=right, minlength=size), torch.bincount(index, minlength=size).double()]
        )
        if self.counts is not None:
            counts[:, : self.counts.shape[1]] += self.counts
        self.counts = counts

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sums up, unless this only tries the program out."""
        if not trainer.sanity_checking:
            self.finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sums up."""
        self.finish(trainer, pl_module, "test")

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adds the counts of all processes and writes the file."""
        if self.counts is None:
            return
        # Processes may have seen different greatest distances.
        size = int(trainer.strategy.reduce(torch.tensor(self.counts.shape[1]).to(pl_module.device), reduce_op="max"))
        counts = torch.zeros(2, size, dtype=torch.float64, device=self.counts.device)
        counts[:, : self.counts.shape[1]] = self.counts
        right, pixels = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        self.bins = [
            DistanceBin(BIN * index, int(n), r / n) for index, (r, n) in enumerate(zip(right, pixels, strict=True)) if n
        ]
        folder = run_folder(trainer)
        if trainer.is_global_zero and folder is not None:
            table = io.StringIO()
            writer = csv.writer(table)
            writer.writerow(["distance from", "distance to", "pixels", "accuracy"])
            writer.writerows([b.start, b.start + BIN, b.pixels, b.accuracy] for b in self.bins)
            write_text(folder / f"{stage}_distance.csv", table.getvalue())
