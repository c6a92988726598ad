"""What the segmentation data sets have in common: samples from pairs of files, and the DataModule around them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from segvid.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, Augmentation
from segvid.data.reading import IGNORED, Array, DataError, identity_table, map_labels, read_image, read_mask
from segvid.data.sample import Sample
from segvid.data.sampling import (
    EvaluationSampler,
    FilledDataset,
    SeededDataset,
    TrainingLoader,
    TrainingSampler,
    ignore_signals,
)
from segvid.errors import UserError

__all__ = ["Augmentation", "Pair", "PairDataset", "Sample", "SegmentationDataModule", "collate"]


@dataclass(frozen=True)
class Pair:
    """The files of one sample."""

    image: Path
    mask: Path


def shared_masks(pairs: Sequence[Pair]) -> list[tuple[Path, str]]:
    """The images whose mask belongs to another image already, such as a.png beside a.jpg, and what is wrong with it."""
    owners: dict[Path, Path] = {}
    return [
        (pair.image, f"has the same mask {pair.mask} as {owner}. Take one of them out, or give it a name of its own.")
        for pair in pairs
        if (owner := owners.setdefault(pair.mask, pair.image)) != pair.image
    ]


def lost_foreground(class_names: Sequence[str]) -> str:
    """What is wrong where all masks hold 0 and 255 only."""
    return (
        f"the masks hold 0 and 255 only. 255 means ignored, so that {class_names[1]} never occurs: where 255 stands "
        "for it, save the masks with 1 instead."
    )


class PairDataset(Dataset[Sample]):
    """Image and mask files as samples.

    Every sample seeds its augmentation from torch's generator, which `SeededDataset` seeds for each sample and epoch.
    albumentations' own generators would give every worker the same crops, and the same again each epoch.

    Args:
        pairs: the files.
        table: label id to class index, 256 entries (see `segvid.data.reading.map_labels`).
        palette: colours of the classes, for masks in colours.
        image_size: height and width that evaluation images are resized to; their masks keep their own size.
        augmentation: what happens to a training sample; None for evaluation.
        mean: of the normalisation, per channel in 0 to 1.
        std: likewise.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        table: Array,
        *,
        palette: Sequence[Sequence[int]] | None = None,
        image_size: tuple[int, int] | None = None,
        augmentation: Augmentation | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.pairs = list(pairs)
        self.table = table
        self.palette = palette
        self.image_size = image_size
        self.augmented = augmentation is not None
        from segvid.data.transforms import evaluation_transform, training_transform  # seconds, for who reads files

        if augmentation is not None:
            self.transform = training_transform(augmentation, image_size, mean, std)
        else:
            self.transform = evaluation_transform(mean, std)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = read_image(pair.image)
        mask = map_labels(read_mask(pair.mask, self.palette), self.table, pair.mask)
        if image.shape[:2] != mask.shape:
            raise DataError(
                pair.mask,
                f"is {mask.shape[1]} x {mask.shape[0]} pixels, but its image {pair.image} is "
                f"{image.shape[1]} x {image.shape[0]}.",
            )
        if self.augmented:
            from segvid.data.transforms import reseed

            reseed(self.transform, int(torch.randint(2**31, ())))
        elif self.image_size is not None:
            height, width = self.image_size
            # bilinear, as the training crops
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        tensors = self.transform(image=image, mask=mask)
        return {"image": tensors["image"], "mask": tensors["mask"].long(), "name": str(pair.image)}


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stacks samples; unlike torch's own, it says what to do when their sizes differ."""
    sizes = {tuple(s["image"].shape[1:]) for s in samples} | {tuple(s["mask"].shape) for s in samples}
    shapes = {(tuple(s["image"].shape), tuple(s["mask"].shape)) for s in samples}
    if len(shapes) > 1:
        raise UserError(
            f"Images or masks of different sizes {sorted(sizes)[:4]} cannot be one batch. "
            "Set data.init_args.eval_batch_size to 1."
        )
    batch: dict[str, Any] = {
        "image": torch.stack([s["image"] for s in samples]),
        "mask": torch.stack([s["mask"] for s in samples]),
    }
    if "name" in samples[0]:
        batch["name"] = [s["name"] for s in samples]
    if "distance" in samples[0]:
        batch["distance"] = torch.stack([s["distance"] for s in samples])
    return batch


class SegmentationDataModule(LightningDataModule):
    """Loaders of one data set, and what the rest of the program must know of it.

    A subclass sets `class_names` and `palette` before `super().__init__`, and gives `files(split)`, or overrides
    `dataset`. Nothing is read in `__init__`.

    Args:
        batch_size: training samples of one process and step.
        eval_batch_size: validation and test images of one step; more than 1 needs images of one size.
        num_workers: processes that load data; 0 loads in the main process.
        image_size: height and width that images are brought to: the random scale refers to it, and evaluation sees
            images of this size (compared with the masks at their own). The images' own size when None.
        augmentation: what happens to a training sample.
        test_split: split that `test` reads; data sets without public test labels test on "val".
        mean: of the normalisation, per channel in 0 to 1.
        std: likewise.
    """

    class_names: list[str]
    palette: list[tuple[int, int, int]]
    name: str
    ignore_index: int = IGNORED
    mask_hint: str = "Add it."  # what to do about a mask that is not there
    run_seed: int | None = None  # of order and augmentation, set by whoever runs the training
    loader: TrainingLoader | None = None  # of the training that runs
    resumed: dict[str, int] | None = None  # the position in a checkpoint

    def __init__(
        self,
        *,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 4,
        image_size: tuple[int, int] | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
        test_split: str = "val",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__  # of the data set: runs have it in their names
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.image_size = image_size
        self.augmentation = augmentation
        self.test_split = test_split
        self.mean = mean
        self.std = std
        if len(self.palette) != len(self.class_names):
            raise UserError(
                f"There are {len(self.class_names)} class names, but {len(self.palette)} colours in the palette: "
                "correct data.init_args.class_names or data.init_args.palette."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored label not counted."""
        return len(self.class_names)

    @property
    def mask_colours(self) -> list[tuple[int, int, int]]:
        """The colours that masks in colours are read by."""
        return self.palette

    def find(self) -> None:
        """Looks whether the data are there, or can be got by `prepare_data`. Takes no time: nothing is read or fetched.

        Raises:
            UserError: they are not.
        """

    def prepare_data(self) -> None:
        """Gets the data, where that is possible.

        Raises:
            UserError: they are not there.
        """
        self.find()

    def files(self, split: str) -> tuple[list[Pair], list[Path]]:
        """Images of a split with the masks that belong to them, there or not, and masks that belong to no image."""
        raise NotImplementedError

    def pairs(self, split: str) -> list[Pair]:
        """The files of a split, in the order of the data set.

        Raises:
            UserError: the data set or the split is missing.
            DataError: an image has no mask, or shares it with another one.
        """
        pairs, _ = self.files(split)
        for image, reason in shared_masks(pairs):
            raise DataError(image, reason)
        for pair in pairs:
            if not pair.mask.is_file():
                raise DataError(pair.mask, f"there is no such mask for {pair.image}. {self.mask_hint}")
        return pairs

    def label_table(self) -> Array:
        """Label id in the mask files to class index; the ids are the indices unless a subclass knows better."""
        return identity_table(self.num_classes)

    def dataset(self, split: str, *, augmented: bool) -> Dataset[Sample]:
        """The samples of a split.

        Raises:
            UserError: the split is empty.
        """
        pairs = self.pairs(split)
        if not pairs:
            raise UserError(f"{type(self).__name__} has no samples in the split {split!r}.")
        return PairDataset(
            pairs,
            self.label_table(),
            palette=self.mask_colours,
            image_size=self.image_size,
            augmentation=self.augmentation if augmented else None,
            mean=self.mean,
            std=self.std,
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled, augmented batches; the last incomplete one is dropped, as batch norm wants."""
        dataset = self.dataset("train", augmented=True)
        size = len(dataset)  # type: ignore[arg-type]
        processes = self.trainer.world_size if self.trainer is not None else 1
        if -(-size // processes) < self.batch_size:
            raise UserError(
                f"The training split has {size} samples for {processes} processes, fewer than one batch of "
                f"{self.batch_size} for each. Lower data.init_args.batch_size."
            )
        return self._loader(dataset, self.batch_size, training=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation split, in order."""
        return self._loader(self.dataset("val", augmented=False), self.eval_batch_size, training=False)

    def test_dataloader(self) -> DataLoader[Sample]:
        """The split named `test_split`, in order."""
        return self._loader(self.dataset(self.test_split, augmented=False), self.eval_batch_size, training=False)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: where in the epoch the training is."""
        return {} if self.loader is None else self.loader.position()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on there."""
        self.resumed = state_dict

    def _loader(self, dataset: Dataset[Sample], batch_size: int, *, training: bool) -> DataLoader[Sample]:
        trainer = self.trainer
        processes, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        options: dict[str, Any] = {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate,
            "worker_init_fn": ignore_signals,
        }
        if training:
            # Without a run of segvid: what Lightning's seed_everything has left, equal in all processes.
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.run_seed is None else self.run_seed
            order = TrainingSampler(dataset, num_replicas=processes, rank=rank, seed=seed)
            self.loader = TrainingLoader(SeededDataset(dataset, seed), order, batch_size, self.resumed, **options)
            return self.loader
        positions = EvaluationSampler(dataset, num_replicas=processes, rank=rank)
        return DataLoader(FilledDataset(dataset), batch_size=batch_size, sampler=positions, **options)
