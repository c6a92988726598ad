"""`fit` and `validate` with the shipped recipes on miniatures of the real layouts; labels are counted from the files.

The rows of a confusion matrix are the labels, so their sums must be the pixels of every class in the mask files as
Pillow reads them, borders of 255 and ids that are not evaluated left out, whatever the network predicts.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segvid.cli import main
from tests.data.miniature import FOLDER_PALETTE, VOC_VAL, make_cityscapes, make_folder, make_sbd, make_voc

CONFIGS = Path(__file__).parent.parent / "configs" / "segmentation"
# The 19 evaluated ones of cityscapesScripts' labels.py, in the order of their train ids.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
SMALL = [
    "--model.init_args.backbone=ConvNet",
    "--model.init_args.backbone.init_args.widths=[4,6,8]",
    "--data.init_args.augmentation.crop_size=[33,41]",
    "--data.init_args.batch_size=2",
    "--data.init_args.eval_batch_size=1",
    "--data.init_args.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=-1",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.check_val_every_n_epoch=null",
]


def pixels(masks: list[Path], ids: list[int]) -> list[int]:
    """How many pixels of the files have each of the ids."""
    values = np.concatenate([np.asarray(Image.open(mask)).ravel() for mask in masks])
    return [int((values == label).sum()) for label in ids]


def make_voc_and_sbd(root: Path) -> list[int]:
    make_voc(root)
    make_sbd(root)
    masks = [root / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png" for name in VOC_VAL]
    assert all(Image.open(mask).mode == "P" for mask in masks)
    assert pixels(masks, [255])[0] > 0
    return pixels(masks, list(range(21)))


def make_small_cityscapes(root: Path) -> list[int]:
    make_cityscapes(root)
    masks = sorted(root.glob("gtFine/val/*/*_labelIds.png"))
    counts = pixels(masks, CITYSCAPES_IDS)
    assert sum(counts) < 2 * 64 * 128  # the rest is not evaluated
    return counts


def make_grey_folder(root: Path) -> list[int]:
    make_folder(root)
    masks = sorted(root.glob("masks/val/**/*.png"))
    assert pixels(masks, [255])[0] > 0
    return pixels(masks, [0, 1, 2])


def make_coloured_folder(root: Path) -> list[int]:
    """The same with masks in the colours of classes.yaml; what is ignored has VOC's colour for it."""
    counts = make_grey_folder(root)
    table: NDArray[np.uint8] = np.zeros((256, 3), dtype=np.uint8)
    table[:3], table[255] = FOLDER_PALETTE, (224, 224, 192)
    for mask in root.glob("masks/**/*.png"):
        Image.fromarray(table[np.asarray(Image.open(mask))]).save(mask)
    return counts


@pytest.mark.parametrize(
    ("recipe", "make", "options"),
    [
        ("voc", make_voc_and_sbd, []),
        ("voc", make_voc_and_sbd, ["--data.init_args.augmented=false"]),
        ("cityscapes", make_small_cityscapes, []),
        ("folder", make_grey_folder, ["--data.init_args.class_names=null", "--data.init_args.image_size=[40,48]"]),
        ("folder", make_coloured_folder, ["--data.init_args.class_names=null", "--data.init_args.image_size=null"]),
    ],
    ids=["voc with sbd", "voc alone", "cityscapes", "folder", "folder in colours"],
)
def test_shipped_recipe(recipe: str, make: Callable[[Path], list[int]], options: list[str], tmp_path: Path) -> None:
    expected = make(tmp_path / "data")
    configs = ["--config", str(CONFIGS / "recipes" / f"{recipe}.yaml"), "--config", str(CONFIGS / "heads/danet.yaml")]
    words = [*configs, *SMALL, *options, f"--data.init_args.root={tmp_path / 'data'}"]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path / 'a'}"]) == 0
    (folder,) = tmp_path.glob("a/*/version_0")
    assert folder.parent.name == {"voc": "VOC", "cityscapes": "Cityscapes", "folder": "data"}[recipe] + "-DANetHead"
    trained = json.loads((folder / "val.json").read_text())
    assert [sum(row) for row in trained["confusion"]] == expected
    assert trained["step"] == 2
    assert [value is not None for value in trained["accuracy"]] == [count > 0 for count in expected]

    checkpoint = ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    assert main(["validate", "--config", str(folder / "config.yaml"), *checkpoint]) == 0
    (file,) = folder.glob("evaluations/*/val.json")
    assert json.loads(file.read_text())["confusion"] == trained["confusion"]
