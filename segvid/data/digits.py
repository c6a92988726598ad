"""DigitScenes: scenes of real handwritten digits whose labels depend on a mark far away. Ships with scikit-learn.

The digits are the 1,797 of the UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin, Kaynak, 1998) that
scikit-learn bundles. Every scene holds digits 0 to 4 at several sizes, clutter, and one coloured square: a red one
names the digits "red 0" to "red 4", a blue one "blue 0" to "blue 4". A head that sees only the surroundings of a pixel
knows the digit but has to guess the colour; a head that carries context need not.
"""

from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segvid.data.segmentation import Sample, SegmentationDataModule

DIGITS = 5
CLASS_NAMES = ["background", *(f"red {d}" for d in range(DIGITS)), *(f"blue {d}" for d in range(DIGITS))]
PALETTE = [
    (30, 30, 30),
    *[(120, 20, 30), (190, 40, 40), (235, 90, 60), (250, 150, 90), (255, 205, 150)],
    *[(20, 40, 120), (40, 90, 190), (70, 140, 235), (110, 190, 250), (175, 225, 255)],
]
MARKS = np.array([(225, 35, 35), (35, 60, 230)], dtype=np.uint8)
MARK_SIZE = 16


@lru_cache(maxsize=1)
def _glyphs() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The bundled digits, (1797, 8, 8) in 0 to 1, and what they show."""
    from sklearn.datasets import load_digits  # a second, for who uses it

    data = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)


@lru_cache(maxsize=2)
def _pools(split: str) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """The digits 0 to 4 of a split, one array each, and the digits 5 to 9 that clutter is cut from.

    Every fifth glyph is a validation glyph: no stroke is seen in both splits.
    """
    images, targets = _glyphs()
    validation = np.arange(len(images)) % 5 == 0
    chosen = validation if split == "val" else ~validation
    return [images[chosen & (targets == d)] for d in range(DIGITS)], images[chosen & (targets >= DIGITS)]


def make_scene(
    rng: np.random.Generator, split: str, size: int = 64, digits: int = 4
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: RGB image (size, size, 3) and its mask (size, size) of class indices."""
    pools, clutter_pool = _pools(split)
    colour = int(rng.integers(2))
    base = 80 + rng.uniform(-6, 6, size=3)
    coarse = rng.normal(0, 12, size=(10, 10)).astype(np.float32)
    scene = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)[..., None] + base.astype(np.float32)
    for _ in range(8):  # clutter: pieces of strokes of other digits
        glyph = clutter_pool[rng.integers(len(clutter_pool))]
        top, left = rng.integers(0, 5, size=2)
        piece = cv2.resize(glyph[top : top + 4, left : left + 4], (10, 10), interpolation=cv2.INTER_LINEAR)
        y, x = rng.integers(0, size - 10, size=2)
        shade = np.float32(rng.uniform(-40, 50))
        scene[y : y + 10, x : x + 10] += shade * piece[..., None]

    mask = np.zeros((size, size), dtype=np.uint8)
    taken = np.zeros((size, size), dtype=bool)
    y, x = rng.integers(0, size - MARK_SIZE, size=2)
    mark = (slice(y, y + MARK_SIZE), slice(x, x + MARK_SIZE))
    taken[mark] = True
    placed = 0
    for _ in range(8 * digits):
        if placed == digits:
            break
        extent = int(rng.integers(14, 27))
        y, x = rng.integers(0, size - extent, size=2)
        window = (slice(y, y + extent), slice(x, x + extent))
        if taken[window].any():
            continue
        digit = int(rng.integers(DIGITS))
        pool = pools[digit]
        glyph = pool[rng.integers(len(pool))]
        alpha = cv2.resize(glyph, (extent, extent), interpolation=cv2.INTER_LINEAR)
        tone = np.float32(rng.uniform(170, 250)) + rng.uniform(-8, 8, size=3).astype(np.float32)
        scene[window] += alpha[..., None] * (tone - scene[window])
        mask[window][alpha > 0.3] = 1 + digit + DIGITS * colour
        taken[window] = True
        placed += 1
    scene += rng.normal(0, 6, size=scene.shape).astype(np.float32)
    scene[mark] = MARKS[colour]
    return np.clip(scene, 0, 255).astype(np.uint8), mask


class DigitScenesDataset(Dataset[Sample]):
    """Scenes made when they are first asked for, then kept; scene `index` is the same in every process.

    Args:
        split: "train" or "val"; their digits are disjoint.
        scenes: how many there are.
        seed: of the whole set.
        size: height and width of a scene in pixels.
        digits: digits in a scene.
        mean: of the normalisation, per channel in 0 to 1.
        std: likewise.
    """

    def __init__(
        self,
        split: str,
        scenes: int,
        *,
        seed: int = 0,
        size: int = 64,
        digits: int = 4,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
    ) -> None:
        self.split = split
        self.scenes = scenes
        self.seed = seed
        self.size = size
        self.digits = digits
        self.mean = torch.tensor(mean).view(3, 1, 1) * 255.0
        self.std = torch.tensor(std).view(3, 1, 1) * 255.0
        self.made: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.scenes:
            raise IndexError(index)
        if index not in self.made:
            rng = np.random.default_rng((self.seed, int(self.split == "val"), index))
            self.made[index] = make_scene(rng, self.split, self.size, self.digits)
        image, mask = self.made[index]
        tensor = torch.from_numpy(image).permute(2, 0, 1).float()
        return {
            "image": (tensor - self.mean) / self.std,
            "mask": torch.from_numpy(mask).long(),
            "name": f"{self.split} scene {index}",
        }


class DigitScenes(SegmentationDataModule):
    """Generated scenes of handwritten digits: needs no download and trains in a minute on a CPU.

    Args:
        train_scenes: training scenes; an epoch shows each once.
        val_scenes: validation scenes.
        seed: of the scenes (not of the training).
        size: height and width of a scene in pixels.
        digits: digits in a scene.
        batch_size: training scenes of one process and step.
        eval_batch_size: validation scenes of one step.
        num_workers: processes that generate scenes; 0 generates in the main process.
    """

    def __init__(
        self,
        *,
        train_scenes: int = 2400,
        val_scenes: int = 256,
        seed: int = 0,
        size: int = 64,
        digits: int = 4,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        self.class_names = list(CLASS_NAMES)
        self.palette = list(PALETTE)
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
        self.train_scenes = train_scenes
        self.val_scenes = val_scenes
        self.seed = seed
        self.size = size
        self.digits = digits

    def dataset(self, split: str, *, augmented: bool) -> Dataset[Sample]:
        """The scenes of a split; they are not augmented."""
        scenes = self.train_scenes if split == "train" else self.val_scenes
        return DigitScenesDataset(
            split, scenes, seed=self.seed, size=self.size, digits=self.digits, mean=self.mean, std=self.std
        )
