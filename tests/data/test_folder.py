"""Folders of images and masks: classes, files, and what is said when they do not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segvid.data import FolderSegmentation
from segvid.data.colours import distinct_colours
from segvid.data.reading import DataError, read_mask, voc_palette
from segvid.errors import UserError
from tests.data.miniature import FOLDER_CLASSES, FOLDER_IMAGES, FOLDER_PALETTE, make_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


def test_classes_come_from_the_file(root: Path) -> None:
    data = FolderSegmentation(str(root), batch_size=2)
    assert data.class_names == FOLDER_CLASSES
    assert data.palette == FOLDER_PALETTE
    assert data.num_classes == 3
    assert data.batch_size == 2


def test_arguments_win(root: Path) -> None:
    colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    # Names from the arguments make the file's colours those of other classes: the file is not looked at.
    data = FolderSegmentation(str(root), class_names=["a", "b"])
    assert (data.class_names, data.palette) == (["a", "b"], distinct_colours(2))
    data = FolderSegmentation(str(root), palette=colours)
    assert (data.class_names, data.palette) == (FOLDER_CLASSES, colours)
    (root / "classes.yaml").write_text("[")
    data = FolderSegmentation(str(root), class_names=["a", "b", "c"], palette=colours)
    assert (data.class_names, data.palette) == (["a", "b", "c"], colours)


def test_without_a_palette_colours_are_told_apart_and_masks_in_colours_are_those_of_voc(root: Path) -> None:
    (root / "classes.yaml").write_text("class_names: [a, b, c]")
    data = FolderSegmentation(str(root))
    assert data.palette == distinct_colours(3)
    expected = data.dataset("val", augmented=False)[0]["mask"]
    mask = data.pairs("val")[0].mask
    Image.fromarray(np.array(voc_palette(256), dtype=np.uint8)[read_mask(mask)]).save(mask)
    np.testing.assert_array_equal(data.dataset("val", augmented=False)[0]["mask"], expected)


def test_a_data_set_has_the_name_of_its_root_or_its_own(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FolderSegmentation(str(root)).name == "set"
    assert FolderSegmentation(f"{root}/").name == "set"
    assert FolderSegmentation(str(root), name="Our streets").name == "Our streets"
    (tmp_path / "link").symlink_to(root)
    assert FolderSegmentation(str(tmp_path / "link")).name == "link"
    monkeypatch.chdir(root / "images")
    assert FolderSegmentation("..").name == "set"
    monkeypatch.chdir(root)
    assert FolderSegmentation(".").name == "set"
    assert FolderSegmentation("/", class_names=["a"]).name == "FolderSegmentation"


def test_no_classes_anywhere(root: Path) -> None:
    (root / "classes.yaml").unlink()
    with pytest.raises(
        UserError, match=r"set/classes\.yaml with the line \"class_names: \[.*data\.init_args\.class_na"
    ):
        FolderSegmentation(str(root))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("class_names: [a, b", "is not YAML that can be read"),
        ("[" * 5000, "is not YAML that can be read"),
        ("- a\n- b", 'must hold "class_names: '),
        ("", 'must hold "class_names: '),
        ("classes: [a]", 'must hold "class_names: '),
        ("class_names: a", "class_names must be a list of words"),
        ("class_names: [no, yes]", "class_names must be a list of words"),
        ("class_names: [1, 2]", "class_names must be a list of words"),
        ("class_names: [a]\npalette: [[1, 2]]", "palette must be a list of colours"),
        ("class_names: [a]\npalette: [[1, 2, 256]]", "palette must be a list of colours"),
        ("class_names: [a]\npalette: red", "palette must be a list of colours"),
    ],
)
def test_a_wrong_classes_file_is_named(root: Path, content: str, reason: str) -> None:
    (root / "classes.yaml").write_text(content)
    with pytest.raises(DataError) as caught:
        FolderSegmentation(str(root))
    assert str(caught.value).startswith(f"{root / 'classes.yaml'}: {reason}")
    assert "\n" not in str(caught.value)


def test_names_and_colours_must_be_as_many(root: Path) -> None:
    with pytest.raises(UserError, match="2 class names, but 3 colours"):
        FolderSegmentation(str(root), class_names=["a", "b"], palette=FOLDER_PALETTE)


def test_files(root: Path) -> None:
    (root / "images" / "train" / "notes.txt").write_text("no image")
    (root / "images" / "train" / "._a.jpg").write_text("a left-over")
    (root / "images" / "train" / ".cache").mkdir()
    (root / "images" / "train" / ".cache" / "x.jpg").write_text("hidden")
    (root / "images" / "train" / "a.jpg").rename(root / "images" / "train" / "a.JPG")
    data = FolderSegmentation(str(root))
    data.prepare_data()
    pairs = data.pairs("train")
    names = [str(pair.image.relative_to(root / "images" / "train")) for pair in pairs]
    assert names == ["a.JPG", *FOLDER_IMAGES["train"][1:]]
    stems = [str(pair.mask.relative_to(root / "masks" / "train")) for pair in pairs]
    assert stems == ["a.png", "b.png", "nested/c.png", "nested/d.png"]
    dataset = data.dataset("train", augmented=False)
    for index, pair in enumerate(pairs):
        mask = dataset[index]["mask"].numpy()
        np.testing.assert_array_equal(mask, read_mask(pair.mask))
        assert set(np.unique(mask)) == {0, 1, 2, 255}


def test_other_names_of_folders_and_masks(root: Path) -> None:
    (root / "images").rename(root / "img")
    (root / "masks").rename(root / "ann")
    for mask in list((root / "ann").rglob("*.png")):
        mask.rename(mask.with_name(mask.stem + "_labels.png"))
    data = FolderSegmentation(str(root), images="img", masks="ann", mask_suffix="_labels.png")
    assert [pair.mask.name for pair in data.pairs("val")] == ["e_labels.png", "f_labels.png"]


def test_masks_in_colours(root: Path) -> None:
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:3], table[255] = FOLDER_PALETTE, (224, 224, 192)
    data = FolderSegmentation(str(root))
    expected = [data.dataset("val", augmented=False)[k]["mask"] for k in range(2)]
    for pair in data.pairs("val"):
        Image.fromarray(table[read_mask(pair.mask)]).save(pair.mask)
    for k, mask in enumerate(expected):
        np.testing.assert_array_equal(data.dataset("val", augmented=False)[k]["mask"], mask)


def test_an_image_without_mask(root: Path) -> None:
    (root / "masks" / "train" / "nested" / "c.png").unlink()
    with pytest.raises(DataError, match=r"masks/train/nested/c\.png: there is no such mask for .*nested/c\.png"):
        FolderSegmentation(str(root)).pairs("train")


def test_a_split_without_folder(root: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*set/images/test with the images of the split 'test'"):
        FolderSegmentation(str(root)).pairs("test")


def test_an_empty_split(root: Path) -> None:
    shutil.rmtree(root / "images" / "val")
    (root / "images" / "val").mkdir()
    with pytest.raises(UserError, match="FolderSegmentation has no samples in the split 'val'"):
        FolderSegmentation(str(root)).val_dataloader()


def test_a_typo_in_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^There is no folder .*/typo: correct data\.init_args\.root\.$"):
        FolderSegmentation(str(tmp_path / "typo"))
    data = FolderSegmentation(str(tmp_path / "typo"), class_names=["a", "b"])
    for call in (data.prepare_data, lambda: data.pairs("train"), data.train_dataloader):
        with pytest.raises(UserError, match=r"^There is no folder .*/typo: correct data\.init_args\.root\.$"):
            call()


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_missing_folder_is_said_before_anything_is_read(root: Path, folder: str) -> None:
    shutil.rmtree(root / folder)
    with pytest.raises(UserError, match=rf"^There is no folder .*/set/{folder}: correct .*init_args\.{folder}\.$"):
        FolderSegmentation(str(root)).prepare_data()


@pytest.mark.parametrize("name", ["a.JPG", "a.png"])
def test_two_images_with_one_mask_are_refused_by_name(root: Path, name: str) -> None:
    first, second = sorted([root / "images/train/a.jpg", root / "images/train" / name])
    (root / "images/train" / name).write_bytes((root / "images/train/b.jpg").read_bytes())
    with pytest.raises(DataError) as caught:
        FolderSegmentation(str(root)).dataset("train", augmented=True)
    said = f"{second}: has the same mask {root / 'masks/train/a.png'} as {first}. Take one of them out, or give it a "
    assert str(caught.value) == said + "name of its own."


def to_binary(root: Path, foreground: int, files: slice = slice(None)) -> None:
    """Masks of two classes, as tools for photos save them: 0 and 255."""
    for file in sorted((root / "masks").rglob("*.png"))[files]:
        Image.fromarray(np.where(read_mask(file) == 1, foreground, 0).astype(np.uint8)).save(file)


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_of_0_and_255_only_are_refused_and_none_is_lost_silently(root: Path, split: str) -> None:
    to_binary(root, 255)
    with pytest.raises(UserError, match=r"the masks hold 0 and 255 only\..*disc never occurs: where 255 stands for it"):
        FolderSegmentation(str(root), class_names=["ground", "disc"]).dataset(split, augmented=split == "train")
    FolderSegmentation(str(root), class_names=["all"]).dataset(split, augmented=False)  # there is nothing to lose


def test_a_class_that_is_rare_is_enough(root: Path) -> None:
    to_binary(root, 255, slice(3))
    to_binary(root, 1, slice(3, 4))
    FolderSegmentation(str(root), class_names=["ground", "disc"]).dataset("train", augmented=True)


def test_a_data_set_without_foreground_is_no_mistake_of_255(root: Path) -> None:
    to_binary(root, 0)
    FolderSegmentation(str(root), class_names=["ground", "disc"]).dataset("train", augmented=True)
