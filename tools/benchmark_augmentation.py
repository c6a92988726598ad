"""Cost of the training augmentation: the crop sampled from the source, against resizing the whole frame and cutting.

    OMP_NUM_THREADS=1 python tools/benchmark_augmentation.py --rounds 30

Both pipelines draw the same scales and end in the same steps (flip, photometric distortion, normalisation, tensors).
They run in one process on one thread, taking turns, and the CPU time of a sample is taken: the median over the rounds,
with the quartiles beside it. Nothing is written.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from segvid.data.augmentation import Augmentation
from segvid.data.reading import IGNORED
from segvid.data.transforms import reseed, training_transform

FRAMES = {"1024 x 2048": (1024, 2048), "375 x 500": (375, 500)}


def plain_transform(augmentation: Augmentation) -> A.Compose:
    """The usual way: the whole frame is scaled and padded, then cut; the steps behind are those of our transform."""
    low, high = augmentation.scale
    height, width = augmentation.crop_size
    return A.Compose(
        [
            A.RandomScale(
                scale_limit=(low - 1, high - 1),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                p=1.0,
            ),
            A.PadIfNeeded(
                min_height=height,
                min_width=width,
                position="top_left",
                border_mode=cv2.BORDER_CONSTANT,
                fill=0,
                fill_mask=IGNORED,
            ),
            A.RandomCrop(height, width),
            *training_transform(augmentation).transforms[1:],
        ]
    )


def make_frame(size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image as smooth as a photograph, and a mask of 19 classes in patches."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 2.0)
    patches = rng.integers(0, 19, (size[0] // 16, size[1] // 16), dtype=np.uint8)
    mask = cv2.resize(patches, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return np.asarray(image, dtype=np.uint8), np.asarray(mask, dtype=np.uint8)


def cost(
    transform: A.Compose, image: NDArray[np.uint8], mask: NDArray[np.uint8], seeds: Sequence[int]
) -> tuple[float, float]:
    """CPU time of one sample in ms, as a mean over the seeds, and the mean height of the scaled frames."""
    heights = []
    start = time.process_time()
    for seed in seeds:
        reseed(transform, seed)
        transform(image=image, mask=mask)
        params = transform.transforms[0].params
        heights.append(params["scaled"][0] if "scaled" in params else image.shape[0] * params["scale"])
    return (time.process_time() - start) / len(seeds) * 1000, statistics.mean(heights)


def compare(augmentation: Augmentation, size: tuple[int, int], rounds: int, samples: int) -> list[list[float]]:
    """Costs of the plain pipeline and of ours, one number a round each."""
    image, mask = make_frame(size)
    pipelines = [plain_transform(augmentation), training_transform(augmentation)]
    costs: list[list[float]] = [[], []]
    for index in range(-1, rounds):  # the first is to warm up
        seeds = range(index * samples + 10**6, (index + 1) * samples + 10**6)
        order = (0, 1) if index % 2 else (1, 0)
        measured = {k: cost(pipelines[k], image, mask, seeds) for k in order}
        if abs(measured[0][1] - measured[1][1]) > 1:
            raise RuntimeError("The pipelines no longer draw the same scales: the comparison would be unfair.")
        if index >= 0:
            for k in order:
                costs[k].append(measured[k][0])
    return costs


def main(args: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="CPU time of the training augmentation on one thread.")
    parser.add_argument("--rounds", type=int, default=30, help="turns of every pipeline (default: 30)")
    parser.add_argument("--samples", type=int, default=8, help="samples of a turn (default: 8)")
    parser.add_argument("--crop", type=int, default=512, help="height and width of the crop (default: 512)")
    options = parser.parse_args(args)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    crop = (options.crop, options.crop)
    console = Console()
    console.print(f"albumentations {A.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}, crop {crop},")
    console.print(f"scale 0.5 to 2, one thread, median (quartiles) of {options.rounds} x {options.samples} samples")
    table = Table()
    for column in ("frame", "steps behind", "resize, cut [ms]", "cut, sample [ms]", "ratio"):
        table.add_column(column, justify="left" if column in ("frame", "steps behind") else "right")
    tails = {
        "normalise": Augmentation(crop, flip=False, photometric=False, cat_max_ratio=1.0),
        "flip, photometric, normalise": Augmentation(crop, cat_max_ratio=1.0),
    }
    for frame, size in FRAMES.items():
        for tail, augmentation in tails.items():
            plain, ours = compare(augmentation, size, options.rounds, options.samples)
            cells = []
            for costs in (plain, ours):
                low, middle, high = statistics.quantiles(costs, n=4)
                cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            ratio = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
            table.add_row(frame, tail, *cells, f"{ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
