"""A data set of one's own: a folder of images and a folder of masks with the same names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.data import Dataset

from segvid.data.colours import distinct_colours
from segvid.data.reading import IGNORED, DataError, read_mask, voc_palette
from segvid.data.sample import Sample
from segvid.data.segmentation import Pair, PairDataset, SegmentationDataModule, lost_foreground
from segvid.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
CLASSES_FILE = "classes.yaml"


class FolderSegmentation(SegmentationDataModule):
    """Images `images/<split>/.../name.jpg` with masks `masks/<split>/.../name.png`.

    Masks hold class indices, 0 for the first name and 255 for ignored pixels, or the colours of the palette (without a
    palette those of Pascal VOC). The classes come from the arguments or from `classes.yaml` in the root:

        class_names: [road, tree, car]
        palette: [[128, 64, 128], [0, 128, 0], [0, 0, 142]]  # optional

    Args:
        root: folder of the data set.
        name: of the data set, for the names of its runs; that of the root when None.
        class_names: names of the classes; from `classes.yaml` when None.
        palette: RGB of every class; when None, from `classes.yaml` if the names are from there, else colours that are
            easy to tell apart.
        mask_suffix: what takes the place of the image's ending in the name of its mask, such as "_labels.png".
        images: folder of the images in the root.
        masks: folder of the masks in the root.
        loading: see `SegmentationDataModule`.

    Raises:
        UserError: there are no class names, or `classes.yaml` is wrong.
    """

    mask_hint = "Add it, or correct data.init_args.mask_suffix."

    def __init__(
        self,
        root: str,
        *,
        name: str | None = None,
        class_names: list[str] | None = None,
        palette: list[tuple[int, int, int]] | None = None,
        mask_suffix: str = ".png",
        images: str = "images",
        masks: str = "masks",
        **loading: Any,
    ) -> None:
        self.root = Path(root).expanduser()
        if class_names is None:
            class_names, palette_in_file = _read_classes(self.root / CLASSES_FILE)
            palette = palette_in_file if palette is None else palette
        if not class_names:
            self._check_root()
            raise UserError(
                f"The classes of {self.root} are not known: write {self.root / CLASSES_FILE} with the line "
                '"class_names: [background, first class, ...]", or set data.init_args.class_names.'
            )
        self.class_names = list(class_names)
        self.palette = list(palette) if palette is not None else distinct_colours(len(class_names))
        self.has_palette = palette is not None
        super().__init__(**loading)
        named = self.root.resolve() if self.root.name in ("", "..") else self.root
        self.name = name or named.name or self.name
        self.mask_suffix = mask_suffix
        self.images = self.root / images
        self.masks = self.root / masks

    @property
    def mask_colours(self) -> list[tuple[int, int, int]]:
        """The palette, or that of Pascal VOC: nobody draws masks in colours that were chosen here."""
        return self.palette if self.has_palette else voc_palette(self.num_classes)

    def find(self) -> None:
        """Looks for the folders.

        Raises:
            UserError: one is not there.
        """
        self._check_root()
        for folder, option in ((self.images, "images"), (self.masks, "masks")):
            if not folder.is_dir():
                raise UserError(f"There is no folder {folder}: correct data.init_args.root or data.init_args.{option}.")

    def dataset(self, split: str, *, augmented: bool) -> Dataset[Sample]:
        """The samples of a split.

        Raises:
            UserError: the split is empty, or its masks hold 0 and 255 only.
        """
        dataset = super().dataset(split, augmented=augmented)
        assert isinstance(dataset, PairDataset)
        if self.num_classes > 1 and self._has_lost_its_foreground(dataset.pairs):
            raise UserError(f"{self.masks / split}: {lost_foreground(self.class_names)}")
        return dataset

    def files(self, split: str) -> tuple[list[Pair], list[Path]]:
        """The files of a split, in the order of their names, and the masks that belong to no image.

        Raises:
            UserError: the split has no folder.
        """
        self._check_root()
        folder = self.images / split
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder} with the images of the split {split!r}.")
        pairs = []
        for image in _visible(folder, IMAGE_ENDINGS):
            inside = image.relative_to(folder)
            pairs.append(Pair(image, self.masks / split / inside.with_name(inside.stem + self.mask_suffix)))
        masks = _visible(self.masks / split, IMAGE_ENDINGS) if (self.masks / split).is_dir() else []
        return pairs, sorted(set(masks) - {pair.mask for pair in pairs})

    def _has_lost_its_foreground(self, pairs: Sequence[Pair]) -> bool:
        """Whether no mask holds anything but 0 and 255. One mask is enough to see that it is not so, as a rule."""
        ignored = False
        for index in np.random.default_rng(0).permutation(len(pairs)):
            mask = read_mask(pairs[index].mask, self.mask_colours)
            if ((mask != 0) & (mask != IGNORED)).any():
                return False
            ignored = ignored or bool((mask == IGNORED).any())
        return ignored

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root}: correct data.init_args.root.")


def _visible(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files below the folder with one of the endings, without those that are hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in endings and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]


def _read_classes(path: Path) -> tuple[list[str] | None, list[tuple[int, int, int]] | None]:
    """Class names and palette of a `classes.yaml`, each None where the file does not give them."""
    if not path.is_file():
        return None, None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(path, f"is not YAML that can be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not set(content) <= {"class_names", "palette"}:
        raise DataError(path, 'must hold "class_names: [...]" and may hold "palette: [[r, g, b], ...]", nothing else.')
    names, palette = content.get("class_names"), content.get("palette")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DataError(
            path, "class_names must be a list of words; put those that YAML reads otherwise (no, 1) in quotes."
        )
    if palette is None:
        return names, None
    if not (isinstance(palette, list) and all(_is_colour(colour) for colour in palette)):
        raise DataError(path, "palette must be a list of colours [r, g, b] of numbers from 0 to 255.")
    return names, [(red, green, blue) for red, green, blue in palette]


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
