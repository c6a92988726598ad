"""Cityscapes, the 5,000 finely annotated street scenes: 2,975 train, 500 val, 1,525 test.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
https://www.cityscapes-dataset.com/
Labels, names and colours are those of `cityscapesscripts/helpers/labels.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from segvid.data.reading import IGNORED, UNKNOWN, Array
from segvid.data.segmentation import Pair, SegmentationDataModule
from segvid.errors import UserError

CLASS_NAMES = [
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
]
PALETTE = [
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
]
# Label id, as mask files and the test server use it, of every class ("train id").
TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LABEL_IDS = 34  # ids 0 to 33; licence plates, -1, are stored as 255


class Cityscapes(SegmentationDataModule):
    """Cityscapes with its 19 evaluated classes; everything else is ignored.

    Args:
        root: folder that holds `leftImg8bit` and `gtFine`.
        loading: see `SegmentationDataModule`.
    """

    mask_hint = "Unpack gtFine_trainvaltest.zip again."

    def __init__(self, root: str = "data/cityscapes", **loading: Any) -> None:
        self.class_names = list(CLASS_NAMES)
        self.palette = list(PALETTE)
        super().__init__(**loading)
        self.root = Path(root).expanduser()

    def find(self) -> None:
        """Looks for the folders; only registered users may fetch Cityscapes.

        Raises:
            UserError: one is not there.
        """
        missing = [name for name in ("leftImg8bit", "gtFine") if not (self.root / name).is_dir()]
        if missing:
            raise UserError(
                f"Cityscapes is not at {self.root} (no folder {' and no folder '.join(missing)}): register at "
                "https://www.cityscapes-dataset.com, fetch leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, "
                f"unzip both in {self.root}, or correct data.init_args.root."
            )

    def files(self, split: str) -> tuple[list[Pair], list[Path]]:
        """The files of "train", "val" or "test" (the public masks of test are empty), and masks without an image.

        Raises:
            UserError: the data set or the split is missing.
        """
        self.find()
        images = _visible(self.root / "leftImg8bit" / split, "*/*_leftImg8bit.png")
        if not images:
            raise UserError(
                f"Cityscapes has no images *_leftImg8bit.png in {self.root / 'leftImg8bit' / split}/<city>."
            )
        pairs = []
        for image in images:
            name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
            pairs.append(Pair(image, self.root / "gtFine" / split / image.parent.name / name))
        masks = _visible(self.root / "gtFine" / split, "*/*_gtFine_labelIds.png")
        return pairs, sorted(set(masks) - {pair.mask for pair in pairs})

    def label_table(self) -> Array:
        """Label id to train id; ids that are not evaluated are ignored, ids above 33 unknown."""
        table = np.full(256, UNKNOWN, dtype=np.uint8)
        table[:LABEL_IDS] = IGNORED
        table[list(TRAIN_IDS)] = np.arange(len(TRAIN_IDS))
        table[IGNORED] = IGNORED
        return table


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Files that are not hidden, such as the "._name.png" that macOS puts beside "name.png"."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
