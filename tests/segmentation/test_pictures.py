"""Panels from all over a split, with titles and the colours of the classes; palettes and normalisation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from segvid.backbones import ConvNet
from segvid.data import DigitScenes
from segvid.data.reading import colour, palette_image, voc_palette
from segvid.data.record import complete, denormalise, normalise
from segvid.data.transforms import evaluation_transform
from segvid.segmentation import PredictionPanels, SegmentationTask
from segvid.segmentation.heads import FCNHead
from segvid.segmentation.pictures import panel, places, sheet


@pytest.mark.parametrize(
    ("images", "sizes", "expected"),
    [
        (4, [1] * 12, [0, 3, 6, 9]),
        (4, [4] * 4 + [2], [0, 4, 8, 12]),
        (4, [8], [0, 2, 4, 6]),
        (4, [8, 8], [0, 4, 8, 12]),
        (4, [2], [0, 1]),
        (3, [5, 1], [0, 2, 5]),
        (4, [1], [0]),
        (1, [2, 2, 2], [0]),
        (0, [2, 2], []),
    ],
)
def test_the_images_that_are_shown_lie_all_over_the_split(images: int, sizes: list[int], expected: list[int]) -> None:
    shown, first = [], 0
    for index, size in enumerate(sizes):
        shown += [first + place for place in places(images, len(sizes), index, size)]
        first += size
    assert shown == expected


def test_of_a_split_of_unknown_length_the_first_are_shown() -> None:
    shown = [4 * index + place for index in range(9) for place in places(3, float("inf"), index, 4)]
    assert shown == [0, 4, 8]


def test_the_same_images_whatever_the_batches_and_after_every_validation(tmp_path: Path) -> None:
    """With one image a batch, the panels of two validations show scenes 0, 3, 6 and 9 of 12."""
    data = DigitScenes(train_scenes=4, val_scenes=12, size=48, batch_size=2, eval_batch_size=1)
    task = SegmentationTask(ConvNet((4, 6, 8)), FCNHead, data.num_classes)
    trainer = Trainer(
        accelerator="cpu", callbacks=[PredictionPanels(4)], default_root_dir=tmp_path, max_epochs=2,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    files = sorted(tmp_path.rglob("panels/*.png"))
    assert [file.name for file in files] == ["step_0000002.png", "step_0000004.png"]
    scenes = data.dataset("val", augmented=False)
    for file in files:
        picture = np.asarray(Image.open(file))
        for row, index in enumerate((0, 3, 6, 9)):
            scene = np.asarray(Image.fromarray(denormalise(scenes[index]["image"], data)).resize((192, 192), 0))
            top = 18 + row * 196
            np.testing.assert_array_equal(picture[top : top + 192, :192], scene)


@pytest.mark.parametrize(("width", "shown"), [(48, 192), (160, 160), (300, 300), (960, 480)])
def test_panels_can_be_read_whatever_the_size_of_the_images(width: int, shown: int) -> None:
    data = complete({"class_names": ["ground", "disc", "bar"]}, 3, "here")
    mask = np.zeros((width // 2, width), np.uint8)
    mask[:, width // 2 :] = 2
    mask[0] = 255
    (image, label, prediction) = panel(np.full((64, 64, 3), 7, np.uint8), mask, np.full_like(mask, 1), data)
    assert image.shape == label.shape == prediction.shape == (shown // 2, shown, 3)
    assert label[-1, 0].tolist() == list(data.palette[0])
    assert label[-1, -1].tolist() == list(data.palette[2])
    assert prediction[-1, -1].tolist() == list(data.palette[1])
    picture = sheet([[image, label, prediction]] * 2, [0, 1, 2, 255], data)
    assert picture.shape[1] == 3 * (shown + 4)
    foot = picture[18 + 2 * (shown // 2 + 4) :].reshape(-1, 3).tolist()  # the legend has the colours and black letters
    assert all(list(colour) in foot for colour in data.palette)
    assert [30, 30, 30] in foot
    assert (picture[:18] < 128).any(), "the titles"


def test_a_mask_in_colours_and_as_palette_image() -> None:
    mask = np.array([[0, 1, 2], [255, 0, 7]], np.uint8)
    palette = voc_palette(3)
    found = colour(mask, palette)
    assert found[0].tolist() == [list(c) for c in palette]
    assert found[1].tolist() == [[255] * 3, list(palette[0]), [255] * 3]
    image = palette_image(mask, palette)
    np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), found)


def test_pictures_are_normalised_as_the_data_set_does_and_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data: Any = complete({"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}, 2, "here")
    image = normalise(picture, data)
    torch.testing.assert_close(image, evaluation_transform(data.mean, data.std)(image=picture)["image"])
    np.testing.assert_array_equal(denormalise(image, data), picture)
