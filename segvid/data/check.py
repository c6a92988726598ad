"""Is a data set fit for training? Every file is read once; every fault is found and named, not only the first."""

import gc
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from segvid.commands.options import Progress
from segvid.data.reading import IGNORED, DataError, map_labels, read_mask, read_stored_image
from segvid.data.segmentation import Pair, SegmentationDataModule, lost_foreground, shared_masks
from segvid.errors import UserError
from segvid.text import console as text_console

if TYPE_CHECKING:
    from rich.console import Console

CHUNK = 16  # pairs that a process hands over at once


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
        without_class: masks that hold 0 and 255 only.
    """

    name: str
    pixels: NDArray[np.int64]
    ignored: int = 0
    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    contents: dict[bytes, list[Path]] = field(default_factory=dict)
    without_class: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class DataReport:
    """The result of a check.

    Args:
        class_names: of the classes.
        splits: that were read.
        faults: all that were found.
        notes: what may be meant.
    """

    class_names: list[str]
    splits: list[SplitSummary]
    faults: list[Fault]
    notes: list[str]

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
            "notes": self.notes,
        }


@dataclass(frozen=True)
class _Reading:
    """One pair as it was read: either a fault or the rest."""

    pair: Pair
    fault: Fault | None
    size: tuple[int, int] = (0, 0)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    content: bytes = b""


class _Readings(Dataset[_Reading]):
    """The pairs of a split, read."""

    def __init__(self, data: SegmentationDataModule, split: str, pairs: Sequence[Pair]) -> None:
        self.split = split
        self.pairs = pairs
        self.table = data.label_table()
        self.colours = data.mask_colours
        self.mask_hint = data.mask_hint

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> _Reading:
        pair = self.pairs[index]
        if not pair.mask.is_file():
            reason = f"there is no such mask for {pair.image}. {self.mask_hint}"
            return _Reading(pair, Fault(self.split, pair.mask, reason))
        file = pair.image
        try:
            image, orientation = read_stored_image(pair.image)
            file = pair.mask
            mask = map_labels(read_mask(pair.mask, self.colours), self.table, pair.mask)
        except DataError as error:
            return _Reading(pair, Fault(self.split, file, str(error).removeprefix(f"{file}: ")))
        if orientation != 1:
            reason = (
                f"has the EXIF orientation {orientation}: viewers show it turned, training does not turn it, and a "
                "mask drawn on what they show does not fit. Save it upright, without orientation."
            )
            return _Reading(pair, Fault(self.split, pair.image, reason))
        if image.shape[:2] != mask.shape:
            sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, but its image {pair.image} is"
            reason = f"is {sizes} {image.shape[1]} x {image.shape[0]}."
            return _Reading(pair, Fault(self.split, pair.mask, reason))
        counts = np.bincount(mask.ravel(), minlength=256)
        if counts[IGNORED] == mask.size:
            return _Reading(pair, Fault(self.split, pair.mask, "has no labelled pixel: all are ignored."))
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(image.data)
        return _Reading(pair, None, (mask.shape[0], mask.shape[1]), counts, digest.digest())


def check(data: SegmentationDataModule, splits: Sequence[str], console: "Console | None" = None) -> DataReport:
    """Reads all files of the splits, in `num_workers` processes, but no more than there are processors.

    Args:
        data: whose files.
        splits: names of the splits.
        console: where the progress is shown.

    Raises:
        UserError: one of the processes was killed.
    """
    console = text_console(quiet=True) if console is None else console
    summaries, faults, notes = [], [], []
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
        twice = dict(shared_masks(pairs))
        faults += [Fault(split, image, reason) for image, reason in twice.items()]
        readings = _Readings(data, split, [pair for pair in pairs if pair.image not in twice])
        with Progress(console, f"data check: {split}", len(readings)) as progress:
            for reading in _read_all(readings, data.num_workers):
                progress.advance()
                if reading.fault is not None:
                    faults.append(reading.fault)
                    continue
                summary.images += 1
                summary.sizes[reading.size] += 1
                summary.pixels += reading.counts[: data.num_classes]
                summary.ignored += int(reading.counts[IGNORED])
                summary.contents.setdefault(reading.content, []).append(reading.pair.image)
                if reading.counts[0] and reading.counts[IGNORED] and not reading.counts[1:IGNORED].any():
                    summary.without_class.append(reading.pair.mask)
        summaries.append(summary)
        if data.num_classes > 1 and summary.without_class and readings.table[0] == 0:
            if not summary.pixels[1:].any():
                faults.append(Fault(split, None, lost_foreground(data.class_names)))
            elif data.num_classes == 2:
                notes.append(
                    f"{split}: {len(summary.without_class)} masks hold 0 and 255 only, such as "
                    f"{summary.without_class[0]}. 255 means ignored: where it stands for {data.class_names[1]}, save 1."
                )
    for one, other in combinations(summaries, 2):
        for content in one.contents.keys() & other.contents.keys():
            reason = f"shows the same as {one.contents[content][0]} of {one.name}: a model is tested on what it learnt."
            faults += [Fault(other.name, file, reason) for file in other.contents[content]]
    return DataReport(data.class_names, summaries, faults, notes)


def _read_all(readings: _Readings, num_workers: int) -> Iterator[_Reading]:
    """The readings in their order. Processes that are ahead wait: memory does not grow with the number of files."""
    workers = min(num_workers, os.cpu_count() or 1, -(-len(readings) // CHUNK))
    loader = DataLoader(
        readings, batch_size=CHUNK, num_workers=workers, collate_fn=list, worker_init_fn=_leave_memory_shared
    )
    try:
        for chunk in loader:
            yield from chunk
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that read files was killed, perhaps because memory was short. Lower data.init_args.num_workers."
        ) from error


def _leave_memory_shared(worker: int) -> None:
    """A collection would write to all objects that a process has from its parent, and so copy them."""
    gc.freeze()


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
