"""Cityscapes: files, and the traffic between label ids and train ids."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segvid.data import Cityscapes
from segvid.data.cityscapes import TRAIN_IDS
from segvid.data.reading import IGNORED, UNKNOWN, DataError, read_mask
from segvid.errors import UserError
from tests.data.miniature import CITYSCAPES_FRAMES, CITYSCAPES_IGNORED_IDS, make_cityscapes


def test_facts() -> None:
    data = Cityscapes("nowhere", eval_batch_size=2)
    assert data.num_classes == len(data.class_names) == len(data.palette) == len(TRAIN_IDS) == 19
    assert data.eval_batch_size == 2
    # rows of cityscapesscripts/helpers/labels.py: name, id, train id, colour
    for name, label, train_id, colour in [
        ("road", 7, 0, (128, 64, 128)),
        ("pole", 17, 5, (153, 153, 153)),
        ("traffic light", 19, 6, (250, 170, 30)),
        ("person", 24, 11, (220, 20, 60)),
        ("bus", 28, 15, (0, 60, 100)),
        ("train", 31, 16, (0, 80, 100)),
        ("bicycle", 33, 18, (119, 11, 32)),
    ]:
        assert data.class_names[train_id] == name
        assert data.palette[train_id] == colour
        assert TRAIN_IDS[train_id] == label


def test_label_table() -> None:
    table = Cityscapes("nowhere").label_table()
    for train_id, label in enumerate(TRAIN_IDS):
        assert table[label] == train_id
    others = [label for label in range(34) if label not in TRAIN_IDS]
    assert len(others) == 15
    assert (table[others] == IGNORED).all()
    assert table[255] == IGNORED
    assert (table[34:255] == UNKNOWN).all()


def test_splits(tmp_path: Path) -> None:
    data = Cityscapes(str(make_cityscapes(tmp_path)))
    data.prepare_data()
    for split, frames in CITYSCAPES_FRAMES.items():
        pairs = data.pairs(split)
        assert [pair.image.name for pair in pairs] == [f"{frame}_leftImg8bit.png" for frame in frames]
        assert [pair.mask.name for pair in pairs] == [f"{frame}_gtFine_labelIds.png" for frame in frames]
        assert all(pair.image.parent.name == pair.mask.parent.name for pair in pairs)


def test_hidden_files_are_no_images_and_no_masks(tmp_path: Path) -> None:
    data = Cityscapes(str(make_cityscapes(tmp_path)))
    pairs = data.pairs("train")
    for file in (pairs[0].image, pairs[0].mask):
        file.with_name(f"._{file.name}").write_text("what macOS leaves")
    assert data.files("train") == (pairs, [])


def test_samples_hold_train_ids(tmp_path: Path) -> None:
    data = Cityscapes(str(make_cityscapes(tmp_path)))
    dataset = data.dataset("train", augmented=False)
    back = np.full(256, 255)
    back[:19] = TRAIN_IDS
    for index, pair in enumerate(data.pairs("train")):
        ids, mapped = read_mask(pair.mask), dataset[index]["mask"].numpy()
        evaluated = np.isin(ids, TRAIN_IDS)
        np.testing.assert_array_equal(back[mapped][evaluated], ids[evaluated])
        assert (mapped[~evaluated] == 255).all()
        assert len(np.unique(mapped[evaluated])) >= 3
        assert np.isin(CITYSCAPES_IGNORED_IDS, ids).sum() >= 3
    assert (data.dataset("test", augmented=False)[0]["mask"] == 255).all()


def test_unknown_ids_name_the_file(tmp_path: Path) -> None:
    data = Cityscapes(str(make_cityscapes(tmp_path)))
    mask = data.pairs("val")[1].mask
    Image.fromarray(np.full((64, 128), 34, dtype=np.uint8)).save(mask)
    dataset = data.dataset("val", augmented=False)
    dataset[0]
    with pytest.raises(DataError, match=rf"{mask.name}: has the label ids \[34\], which the data set does not know"):
        dataset[1]


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    data = Cityscapes(str(make_cityscapes(tmp_path)))
    mask = data.pairs("val")[1].mask
    mask.unlink()
    with pytest.raises(DataError, match=rf"{mask}: there is no such mask for .*_leftImg8bit\.png"):
        data.pairs("val")


def test_one_sentence_says_where_to_get_it(tmp_path: Path) -> None:
    data = Cityscapes(str(tmp_path))
    for call in (data.prepare_data, lambda: data.pairs("train"), data.val_dataloader):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert f"not at {tmp_path} (no folder leftImg8bit and no folder gtFine)" in message
        for part in ("cityscapes-dataset.com", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
            assert part in message
        assert "\n" not in message
    make_cityscapes(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "gtfine")
    with pytest.raises(UserError, match=r"\(no folder gtFine\)"):
        data.pairs("train")


def test_an_unknown_split(tmp_path: Path) -> None:
    data = Cityscapes(str(make_cityscapes(tmp_path)))
    with pytest.raises(UserError, match=r"no images \*_leftImg8bit\.png in .*leftImg8bit/vall/<city>"):
        data.pairs("vall")
