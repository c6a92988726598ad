"""Miniature data sets in the exact layout of the real ones, for the tests of the readers and for end-to-end tests.

Every region of an image is filled with the palette colour of its class and a little noise, so that a small network can
learn the data sets by heart. All content follows from fixed seeds: two calls write the same pixels.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse
import yaml
from numpy.typing import NDArray
from PIL import Image

from segvid.data import cityscapes
from segvid.data.reading import voc_palette

VOC_TRAIN = ["2007_000032", "2007_000039", "2007_000063"]
VOC_VAL = ["2007_000033", "2007_000042"]
SBD_ONLY = ["2008_000002", "2008_000003", "2009_000001", "2010_000002"]
SBD_TRAIN = ["2007_000032", "2008_000002", "2008_000003", "2007_000033"]
SBD_VAL = ["2009_000001", "2010_000002", "2007_000042", "2007_000039"]
VOC_SIZES = [(60, 80), (80, 60), (64, 72), (59, 83)]

CITYSCAPES_FRAMES = {
    "train": ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "bochum_000000_000600"],
    "val": ["frankfurt_000000_000294", "frankfurt_000000_000576"],
    "test": ["berlin_000000_000019"],
}
# unlabeled, ego vehicle, out of roi, parking, licence plate: all ignored
CITYSCAPES_IGNORED_IDS = [0, 1, 3, 9, 255]

FOLDER_CLASSES = ["ground", "disc", "bar"]
FOLDER_PALETTE = [(90, 90, 90), (220, 40, 40), (40, 60, 220)]
FOLDER_IMAGES = {
    "train": ["a.jpg", "b.jpg", "nested/c.png", "nested/d.jpg"],
    "val": ["e.jpg", "nested/f.png"],
}


def make_voc(root: Path) -> Path:
    """Writes Pascal VOC 2012 under `root/VOCdevkit/VOC2012`, all that `VOCtrainval_11-May-2012.tar` holds of it.

    3 training and 2 validation images, and 4 more without masks, which SBD annotates. Images are JPEGs of different
    sizes around 60 x 80; masks are palette PNGs whose regions have a border of 255, as VOC's have.
    """
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for name in [*VOC_TRAIN, *VOC_VAL, *SBD_ONLY]:
        mask = _voc_mask(name)
        _save_image(_paint(mask, voc_palette(21), _seed(name)), folder / "JPEGImages" / f"{name}.jpg")
        if name not in SBD_ONLY:
            _save_palette(_with_borders(mask), voc_palette(256), folder / "SegmentationClass" / f"{name}.png")
    for split, names in {"train": VOC_TRAIN, "val": VOC_VAL, "trainval": sorted(VOC_TRAIN + VOC_VAL)}.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def make_sbd(root: Path) -> Path:
    """Writes SBD under `root/benchmark_RELEASE/dataset`, as `benchmark.tgz` unpacks: cls, img, train.txt, val.txt.

    8 images: 4 that VOC has no masks of (`SBD_ONLY`, in both lists), 2 of VOC's train and 2 of its val, which training
    must not take from here. The masks have no border of 255, in contrast to those of `make_voc`.
    """
    folder = root / "benchmark_RELEASE" / "dataset"
    for name in ("cls", "img"):
        (folder / name).mkdir(parents=True)
    for name in [*SBD_TRAIN, *SBD_VAL]:
        mask = _voc_mask(name)
        _save_image(_paint(mask, voc_palette(21), _seed(name)), folder / "img" / f"{name}.jpg")
        boundaries = np.empty((20, 1), dtype=object)
        for row in range(20):
            boundaries[row, 0] = scipy.sparse.csc_matrix(mask.shape, dtype=np.float64)
        present = np.setdiff1d(np.unique(mask), [0])[:, None]
        content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
        scipy.io.savemat(folder / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in SBD_TRAIN))
    (folder / "val.txt").write_text("".join(f"{name}\n" for name in SBD_VAL))
    return root


def make_cityscapes(root: Path) -> Path:
    """Writes Cityscapes under `root/leftImg8bit` and `root/gtFine`: 4 train, 2 val and 1 test frame of 64 x 128.

    Masks hold label ids, evaluated ones and those of `CITYSCAPES_IGNORED_IDS`; beside them are the colour and instance
    files that the real archive has too. The mask of the test frame is all "out of roi", as the public ones are.
    """
    colours = {label: cityscapes.PALETTE[k] for k, label in enumerate(cityscapes.TRAIN_IDS)}
    palette = [colours.get(label, (0, 0, 0)) for label in range(256)]
    for split, frames in CITYSCAPES_FRAMES.items():
        for frame in frames:
            rng = np.random.default_rng(_seed(frame))
            labels = [7, *rng.permutation([8, 11, 13, 21, 23, 24, 26, 33])[:3], *CITYSCAPES_IGNORED_IDS]
            mask = _regions(rng, (64, 128), labels)
            image = root / "leftImg8bit" / split / frame.split("_")[0] / f"{frame}_leftImg8bit.png"
            _save_image(_paint(mask, palette, _seed(frame)), image)
            stem = str(root / "gtFine" / split / frame.split("_")[0] / f"{frame}_gtFine")
            if split == "test":
                mask = np.full_like(mask, 3)
            _save_image(mask, Path(f"{stem}_labelIds.png"))
            _save_image(mask.astype(np.uint16) * 1000, Path(f"{stem}_instanceIds.png"))
            _save_image(np.array(palette, dtype=np.uint8)[mask], Path(f"{stem}_color.png"))
    return root


def make_folder(root: Path) -> Path:
    """Writes a data set for `FolderSegmentation`: 4 train and 2 val images of 60 x 80 with 3 classes, and classes.yaml.

    Some images lie in a sub-folder; JPEG and PNG are mixed. Masks are grey PNGs of class indices with borders of 255.
    """
    for split, names in FOLDER_IMAGES.items():
        for name in names:
            rng = np.random.default_rng(_seed(split + name))
            mask = _regions(rng, (60, 80), [0, 1, 2])
            _save_image(_paint(mask, FOLDER_PALETTE, _seed(name)), root / "images" / split / name)
            _save_image(_with_borders(mask), (root / "masks" / split / name).with_suffix(".png"))
    content = {"class_names": FOLDER_CLASSES, "palette": [list(colour) for colour in FOLDER_PALETTE]}
    (root / "classes.yaml").write_text(yaml.safe_dump(content))
    return root


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def _voc_mask(name: str) -> NDArray[np.uint8]:
    rng = np.random.default_rng(_seed(name))
    size = VOC_SIZES[int(rng.integers(len(VOC_SIZES)))]
    return _regions(rng, size, [0, *rng.choice(np.arange(1, 21), size=3, replace=False)])


def _regions(rng: np.random.Generator, size: tuple[int, int], labels: Sequence[int]) -> NDArray[np.uint8]:
    """A ground of the first label, and a rectangle or an ellipse of every other one."""
    mask = np.full(size, labels[0], dtype=np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for k, label in enumerate(labels[1:]):
        half = rng.integers(8, 15, size=2)
        centre = rng.uniform((0.2, 0.2), (0.8, 0.8)) * size
        offset = np.abs(np.stack([rows, columns], axis=-1) - centre) / half
        mask[(offset**2).sum(-1) < 1 if k % 2 else offset.max(-1) < 1] = label
    return mask


def _with_borders(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask with 255 where two labels meet."""
    bordered = mask.copy()
    vertical, horizontal = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    bordered[1:][vertical] = 255
    bordered[:-1][vertical] = 255
    bordered[:, 1:][horizontal] = 255
    bordered[:, :-1][horizontal] = 255
    return bordered


def _paint(mask: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]], seed: int) -> NDArray[np.uint8]:
    colours = np.array([*palette, *[(0, 0, 0)] * (256 - len(palette))])[mask]
    noise = np.random.default_rng(seed).normal(0, 8, size=colours.shape)
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def _save_image(pixels: NDArray[np.uint8] | NDArray[np.uint16], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _save_palette(mask: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]], path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette([value for colour in palette for value in colour])
    image.save(path)
