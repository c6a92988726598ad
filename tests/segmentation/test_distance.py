"""Accuracy against distance, counted by hand."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from segvid.segmentation.distance import DistanceAccuracy, DistanceBin

UNKNOWN = -1.0


def batch(distance: list[list[float]], right: list[list[bool]]) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, len(distance), len(distance[0]), dtype=torch.long)
    prediction = (~torch.tensor(right)).long()[None]
    return {"distance": torch.tensor(distance)[None], "mask": mask, "prediction": prediction}


BATCHES = [
    batch([[0.0, 7.9], [8.0, UNKNOWN]], [[True, False], [True, False]]),
    batch([[24.0, 8.0], [31.9, 15.9]], [[True, False], [False, False]]),
]
EXPECTED = [DistanceBin(0, 2, 1 / 2), DistanceBin(8, 3, 1 / 3), DistanceBin(24, 2, 1 / 2)]


class Task(LightningModule):
    """Its predictions are in the batch."""

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return {"prediction": batch["prediction"]}

    test_step = validation_step


@pytest.mark.parametrize("stage", ["val", "test"])
def test_bins_of_eight_pixels(stage: str, tmp_path: Path) -> None:
    counted = DistanceAccuracy()
    options = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[counted], accelerator="cpu", **options)
    loader = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
    for _ in range(2):  # the second evaluation starts anew
        (trainer.validate if stage == "val" else trainer.test)(Task(), loader, verbose=False)
        assert counted.bins == EXPECTED
    (file,) = tmp_path.rglob(f"{stage}_distance.csv")
    rows = list(csv.DictReader(file.open()))
    assert [float(row["distance from"]) for row in rows] == [0, 8, 24]
    assert [float(row["distance to"]) for row in rows] == [8, 16, 32]
    assert [int(row["pixels"]) for row in rows] == [2, 3, 2]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([part.accuracy for part in EXPECTED])


def test_data_without_distances_leave_nothing(tmp_path: Path) -> None:
    counted = DistanceAccuracy()
    plain = [{key: value for key, value in part.items() if key != "distance"} for part in BATCHES]
    options = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[counted], accelerator="cpu", **options)
    trainer.validate(Task(), DataLoader(plain, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert counted.bins == []
    assert not list(tmp_path.rglob("*_distance.csv"))
