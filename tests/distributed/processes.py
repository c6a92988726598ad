"""What several processes do: `torchrun --nproc_per_node W -m tests.distributed.processes OUTPUT`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import Dataset

from segvid.attention.context import ExpectationMaximizationAttention
from segvid.backbones import ConvNet
from segvid.data.sample import Sample
from segvid.data.segmentation import SegmentationDataModule
from segvid.segmentation.heads import FCNHead
from segvid.segmentation.inference import Inference
from segvid.segmentation.task import SegmentationTask
from segvid.training import leave_processes

IMAGES = (1, 3, 5, 8)
WAYS = {
    "whole": Inference(),
    "windows": Inference(window=(9, 8), stride=(6, 5), window_batch=3),
    "scales": Inference(scales=(0.5, 1.0), flip=True),
}


class Noise(Dataset[Sample]):
    """Images of noise with labels of noise; every index has its own, and image sizes differ."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        size = (12 + index % 3, 16)
        mask = torch.randint(4, size, generator=generator)
        mask[mask == 3] = 255
        return {
            "image": torch.randn(3, *size, generator=generator),
            "mask": mask,
            "distance": torch.rand(size, generator=generator) * 30,
        }


class NoiseData(SegmentationDataModule):
    """`count` samples."""

    def __init__(self, count: int, workers: int = 0) -> None:
        self.class_names, self.palette = ["a", "b", "c"], [(0, 0, 0)] * 3
        super().__init__(num_workers=workers)
        self.count = count

    def dataset(self, split: str, *, augmented: bool) -> Dataset[Sample]:
        return Noise(self.count)


def evaluate(**options: Any) -> dict[str, Any]:
    """Confusion matrix and loss of every number of images and every way of evaluating."""
    from segvid.segmentation.distance import DistanceAccuracy

    results = {}
    for name, how in WAYS.items():
        for count in IMAGES:
            torch.manual_seed(0)
            task = SegmentationTask(ConvNet([4, 6, 8]), FCNHead, 3, inference=how)
            distance = DistanceAccuracy()
            trainer = Trainer(
                accelerator="cpu", callbacks=[distance], logger=False, enable_progress_bar=False,
                enable_model_summary=False, enable_checkpointing=False, **options,
            )  # fmt: skip
            trainer.validate(task, datamodule=NoiseData(count), verbose=False)
            results[f"{name} {count}"] = {
                "confusion": task.confusion_counts["val"].tolist(),
                "loss": task.mean_losses["val"],
                "distance": [[part.start, part.pixels, part.accuracy] for part in distance.bins],
            }
    return results


def bases(parts: int, part: int) -> list[list[float]]:
    """The bases after three batches, of which this process sees its part."""
    torch.manual_seed(0)
    module = ExpectationMaximizationAttention(6, bases=4).double().train()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        batch = torch.randn(6, 6, 3, 4, generator=generator, dtype=torch.float64)
        module(batch.chunk(parts)[part])
    return [row.tolist() for row in module.bases.reshape(-1, module.bases.shape[-1])]


def main(output: Path) -> None:
    """Writes what this process found."""
    import os

    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    found = {"evaluation": evaluate(strategy="ddp", devices=world), "bases": bases(world, rank)}
    output.mkdir(exist_ok=True)
    (output / f"{rank}.json").write_text(json.dumps(found))
    leave_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
