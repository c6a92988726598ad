"""Is a data set fit for training? Every file is read once; every fault is found and named, not only the first."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segvid.data.reading import IGNORED, Array, DataError, map_labels, orientation, read_image, read_mask
from segvid.data.segmentation import Pair, SegmentationDataModule
from segvid.errors import UserError


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, or with a split.

    Args:
        split: in which.
        file: the file; None if it is the split itself.
        reason: what is wrong, and what to do.
    """

    split: str
    file: Path | None
    reason: str

    def __str__(self) -> str:
        return f"{self.split}: {self.reason}" if self.file is None else f"{self.file}: {self.reason}"


@dataclass
class SplitSummary:
    """What a split holds.

    Args:
        name: of the split.
        pixels: of every class.
        ignored: ignored pixels.
        images: pairs that can be used.
        sizes: how often each (height, width) occurs.
        contents: images by the checksum of their pixels.
    """

    name: str
    pixels: NDArray[np.int64]
    ignored: int = 0
    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    contents: dict[str, list[Path]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataReport:
    """The result of a check.

    Args:
        class_names: of the classes.
        splits: that were read.
        faults: all that were found.
    """

    class_names: list[str]
    splits: list[SplitSummary]
    faults: list[Fault]

    def asdict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "classes": self.class_names,
            "splits": {
                split.name: {
                    "images": split.images,
                    "sizes": {f"{height}x{width}": count for (height, width), count in split.sizes.most_common()},
                    "pixels": dict(zip(self.class_names, split.pixels.tolist(), strict=True)),
                    "ignored": split.ignored,
                }
                for split in self.splits
            },
            "faults": [
                {"split": f.split, "file": None if f.file is None else str(f.file), "reason": f.reason}
                for f in self.faults
            ],
        }


@dataclass(frozen=True)
class _Reading:
    """One pair as it was read: either a fault or the rest."""

    pair: Pair
    fault: Fault | None
    size: tuple[int, int] = (0, 0)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    content: str = ""


def check(
    data: SegmentationDataModule, splits: Sequence[str], advance: Callable[[str, int], None] = lambda split, total: None
) -> DataReport:
    """Reads all files of the splits.

    Args:
        data: whose files.
        splits: names of the splits.
        advance: called after each file with the split and its number of files.
    """
    table = data.label_table()
    summaries, faults = [], []
    for split in splits:
        summary = SplitSummary(split, np.zeros(data.num_classes, dtype=np.int64))
        try:
            pairs, left_over = data.files(split)
        except UserError as error:
            faults.append(Fault(split, None, str(error)))
            continue
        if not pairs:
            faults.append(Fault(split, None, "there are no images in this split."))
        faults += [Fault(split, mask, "there is no image for this mask.") for mask in left_over]
        with ThreadPoolExecutor(max(data.num_workers, 1)) as pool:
            readings: Iterable[_Reading] = pool.map(lambda pair, split=split: _read(data, split, pair, table), pairs)
            for reading in readings:
                if reading.fault is not None:
                    faults.append(reading.fault)
                else:
                    summary.images += 1
                    summary.sizes[reading.size] += 1
                    summary.pixels += reading.counts[: data.num_classes]
                    summary.ignored += int(reading.counts[IGNORED])
                    summary.contents.setdefault(reading.content, []).append(reading.pair.image)
                advance(split, len(pairs))
        summaries.append(summary)
    for one, other in combinations(summaries, 2):
        for content in one.contents.keys() & other.contents.keys():
            reason = f"shows the same as {one.contents[content][0]} of {one.name}: a model is tested on what it learnt."
            faults += [Fault(other.name, file, reason) for file in other.contents[content]]
    return DataReport(data.class_names, summaries, faults)


def _read(data: SegmentationDataModule, split: str, pair: Pair, table: Array) -> _Reading:
    if not pair.mask.is_file():
        return _Reading(pair, Fault(split, pair.mask, f"there is no such mask for {pair.image}. {data.mask_hint}"))
    try:
        image = read_image(pair.image)
        mask = map_labels(read_mask(pair.mask, data.palette), table, pair.mask)
    except DataError as error:
        file = pair.image if str(error).startswith(str(pair.image)) else pair.mask
        return _Reading(pair, Fault(split, file, str(error).removeprefix(f"{file}: ")))
    turned = orientation(pair.image)
    if turned not in (0, 1):
        reason = (
            f"has the EXIF orientation {turned}: viewers show it turned, training does not turn it, and a mask drawn "
            "on what they show does not fit. Save it upright, without orientation."
        )
        return _Reading(pair, Fault(split, pair.image, reason))
    if image.shape[:2] != mask.shape:
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, but its image {pair.image} is"
        reason = f"is {sizes} {image.shape[1]} x {image.shape[0]}."
        return _Reading(pair, Fault(split, pair.mask, reason))
    counts = np.bincount(mask.ravel(), minlength=256)
    if counts[IGNORED] == mask.size:
        return _Reading(pair, Fault(split, pair.mask, "has no labelled pixel: all are ignored."))
    content = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    return _Reading(pair, None, (mask.shape[0], mask.shape[1]), counts, content)


def class_weights(pixels: NDArray[np.int64], method: str) -> list[float]:
    """Weights of the classes for a loss, mean 1 over the classes that occur; 0 for those that do not.

    Args:
        pixels: of every class.
        method: "median_frequency", the median of the shares over the share (Eigen and Fergus, "Predicting Depth,
            Surface Normals and Semantic Labels", ICCV 2015, section 4.3.2, with shares over the whole data set), or
            "inverse_log", 1 / ln(1.02 + share) (Paszke et al., "ENet", 2016, section 5.2).
    """
    shares = pixels / max(int(pixels.sum()), 1)
    weights = np.zeros(len(pixels))
    occurs = pixels > 0
    if method == "median_frequency":
        weights[occurs] = np.median(shares[occurs]) / shares[occurs]
    else:
        weights[occurs] = 1 / np.log(1.02 + shares[occurs])
    return [float(weight) for weight in weights / weights[occurs].mean()]
