"""`segvid data`: every fault of a damaged data set is found and named, and the counts are those of the files."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segvid.cli import main
from segvid.commands import options
from segvid.data import Cityscapes, FolderSegmentation
from segvid.data import check as checking
from segvid.data.check import check, class_weights
from segvid.errors import UserError
from tests.data.miniature import make_cityscapes, make_folder, make_sbd, make_voc
from tests.data.test_folder import to_binary

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "configs" / "segmentation" / "recipes"


def data_words(recipe: str, root: Path) -> list[str]:
    words = ["--config", str(RECIPES / f"{recipe}.yaml"), "--data.init_args.root", str(root)]
    return words + (["--data.init_args.class_names", "null"] if recipe == "folder" else [])


@pytest.mark.parametrize(("recipe", "make"), [("folder", make_folder), ("cityscapes", make_cityscapes)])
def test_a_sound_data_set(recipe: str, make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "set")  # type: ignore[operator]
    assert main(["data", "check", *data_words(recipe, tmp_path / "set"), "--output", str(tmp_path / "o/c.json")]) == 0
    assert "No errors." in capsys.readouterr().out
    report = json.loads((tmp_path / "o/c.json").read_text())
    assert report["faults"] == []
    assert set(report["splits"]) == {"train", "val"}


def test_voc_with_its_augmented_list(tmp_path: Path) -> None:
    make_voc(tmp_path)
    make_sbd(tmp_path)
    assert main(["data", "check", *data_words("voc", tmp_path), "--output", str(tmp_path / "c.json")]) == 0
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["splits"]["train"]["images"] == 7
    assert report["splits"]["train"]["ignored"] > 0


def test_counts_are_those_of_the_masks(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data = FolderSegmentation(str(tmp_path))
    report = check(data, ["val"])
    masks = [np.asarray(Image.open(pair.mask)) for pair in data.pairs("val")]
    (split,) = report.splits
    assert split.images == len(masks) == 2
    assert split.pixels.tolist() == [sum(int((m == index).sum()) for m in masks) for index in range(3)]
    assert split.ignored == sum(int((m == 255).sum()) for m in masks)
    assert split.sizes.total() == 2
    assert all(mask.shape in split.sizes for mask in masks)


def images_of(root: Path) -> list[Path]:
    return sorted(p for p in (root / "images" / "train").rglob("*") if p.is_file())


def mask_of(root: Path, image: Path) -> Path:
    return root / "masks" / image.relative_to(root / "images").with_suffix(".png")


def damage_mask_missing(root: Path) -> Path:
    file = mask_of(root, images_of(root)[0])
    file.unlink()
    return file


def damage_image_missing(root: Path) -> Path:
    image = images_of(root)[0]
    image.unlink()
    return mask_of(root, image)


def damage_truncated_image(root: Path) -> Path:
    image = images_of(root)[0]
    image.write_bytes(image.read_bytes()[:-200])
    return image


def damage_no_image(root: Path) -> Path:
    image = images_of(root)[1]
    image.write_text("not an image")
    return image


def damage_truncated_mask(root: Path) -> Path:
    file = mask_of(root, images_of(root)[0])
    file.write_bytes(file.read_bytes()[:60])
    return file


def damage_foreign_id(root: Path) -> Path:
    file = mask_of(root, images_of(root)[1])
    mask = np.asarray(Image.open(file)).copy()
    mask[0, 0] = 17
    Image.fromarray(mask).save(file)
    return file


def damage_other_size(root: Path) -> Path:
    file = mask_of(root, images_of(root)[0])
    mask = Image.open(file)
    mask.crop((0, 0, mask.width - 1, mask.height)).save(file)
    return file


def damage_deep_image(root: Path) -> Path:
    image = root / "images/train/nested/c.png"
    height, width = np.asarray(Image.open(image)).shape[:2]
    Image.fromarray(np.full((height, width), 4000, dtype=np.uint16)).save(image)
    return image


def damage_colours(root: Path) -> Path:
    file = mask_of(root, images_of(root)[0])
    image = Image.open(file)
    Image.new("RGB", image.size, (1, 2, 3)).save(file)
    return file


def damage_all_ignored(root: Path) -> Path:
    file = mask_of(root, images_of(root)[0])
    image = Image.open(file)
    Image.new("L", image.size, 255).save(file)
    return file


def damage_same_content_in_both_splits(root: Path) -> Path:
    """Another name and another encoding, the same pixels."""
    source = root / "images/train/nested/c.png"
    copy = root / "images/val/other.png"
    Image.open(source).save(copy, compress_level=1)
    shutil.copy(mask_of(root, source), root / "masks/val/other.png")
    return copy


def damage_jpeg_as_png(root: Path) -> Path:
    file = mask_of(root, images_of(root)[0])
    Image.open(file).save(file, format="JPEG")
    return file


def damage_one_mask_for_two(root: Path) -> Path:
    shutil.copy(root / "images/train/b.jpg", root / "images/train/a.png")
    return root / "images/train/a.png"


def damage_turned(root: Path) -> Path:
    file = root / "images/train/nested/c.png"
    image, exif = Image.open(file), Image.Exif()
    exif[0x0112] = 3
    image.save(file, exif=exif)
    return file


DAMAGES = {
    damage_jpeg_as_png: "is a lossy JPEG, whatever its name says",
    damage_one_mask_for_two: r"has the same mask .*a\.png as .*a\.jpg",
    damage_turned: "has the EXIF orientation 3",
    damage_mask_missing: "there is no such mask for",
    damage_image_missing: "there is no image for this mask",
    damage_truncated_image: "cannot be read as an image",
    damage_no_image: "is not an image that can be read",
    damage_truncated_mask: "cannot be read as an image",
    damage_foreign_id: r"label ids \[17\]",
    damage_other_size: "pixels, but its image",
    damage_deep_image: "more than 8 bits",
    damage_colours: "colours that the palette does not have",
    damage_all_ignored: "no labelled pixel",
    damage_same_content_in_both_splits: "shows the same as",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_found_and_named(damage: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "set")
    file = damage(root)  # type: ignore[operator]
    output = tmp_path / "c.json"
    assert main(["data", "check", *data_words("folder", root), "--output", str(output)]) == 1
    (fault,) = json.loads(output.read_text())["faults"]
    assert fault["file"] == str(file)
    assert re.search(DAMAGES[damage], fault["reason"])  # type: ignore[index]
    said = capsys.readouterr().out
    assert str(file) in said
    assert "1 errors." in said


def test_all_damages_at_once_are_all_found(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    files = {
        damage_mask_missing(root),
        damage_no_image(root),
        damage_same_content_in_both_splits(root),
        damage_deep_image(root),
    }
    report = check(FolderSegmentation(str(root)), ["train", "val"])
    # the copy's source is unreadable now: no longer the same content
    assert {fault.file for fault in report.faults} == files - {root / "images/val/other.png"}


def test_masks_of_0_and_255_only_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "set")
    to_binary(root, 255)
    words = [*data_words("folder", root)[:-1], "[ground,disc]"]
    assert main(["data", "check", *words]) == 1
    said = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"error: {split}: the masks hold 0 and 255 only. 255 means ignored, so that disc never occurs" in said
    assert main(["data", "weights", *words]) == 1
    assert "255 only" in capsys.readouterr().err


def test_some_masks_of_0_and_255_among_two_classes_are_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "set")
    to_binary(root, 1)
    assert check(FolderSegmentation(str(root), class_names=["ground", "disc"]), ["train"]).notes == []
    file = mask_of(root, images_of(root)[0])
    Image.fromarray(np.asarray(Image.open(file)) * np.uint8(255)).save(file)
    assert main(["data", "check", *data_words("folder", root)[:-1], "[ground,disc]"]) == 0
    assert f"note: train: 1 masks hold 0 and 255 only, such as {file}. 255 means ignored" in capsys.readouterr().out


NASTY = ["sign [/]", "road [paved]", "$\\x$", "=1+1", ":smile: **b**", "a\x1b[31mb", "x\ny", "\u202eevil"]


def test_names_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = make_folder(tmp_path / "a [set]")
    (root / "images/train/no [b]mask[b].jpg").write_bytes((root / "images/train/a.jpg").read_bytes())
    (root / "images/train/te\x1b[2Jxt.jpg").write_text("")
    shutil.copy(root / "masks/train/a.png", root / "masks/train/te\x1b[2Jxt.png")
    classes = ["--data.init_args.class_names", json.dumps(NASTY)]
    assert main(["data", "check", *data_words("folder", root)[:-2], *classes]) == 1
    said = capsys.readouterr().out
    for shown in ("sign [/]", "road [paved]", "$\\x$", "=1+1", ":smile: **b**", r"a\x1b[31mb", r"x\ny", r"\u202eevil"):
        assert f"{shown} " in said
    assert f"error: {root}/masks/train/no [b]mask[b].png: there is no such mask" in said
    assert rf"error: {root}/images/train/te\x1b[2Jxt.jpg: is not an image" in said
    assert "\x1b" not in said
    for file in root.rglob("images/train/*[[]*"):
        file.unlink()
    (root / "masks/train/te\x1b[2Jxt.png").unlink()
    assert main(["data", "weights", *data_words("folder", root)[:-2], *classes]) == 0
    said = capsys.readouterr().out
    assert "\nroad [paved]: " in said
    assert "\na\\x1b[31mb: 0.0000\n" in said


def test_files_are_read_by_processes_but_no_more_than_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "set")
    read, folder = checking.read_stored_image, tmp_path / "pids"
    folder.mkdir()

    def recorded(path: Path) -> Any:
        (folder / str(os.getpid())).touch()
        return read(path)

    monkeypatch.setattr(checking, "read_stored_image", recorded)
    monkeypatch.setattr(checking, "CHUNK", 1)
    expected = check(FolderSegmentation(str(root), num_workers=0), ["train", "val"])
    assert [file.name for file in folder.iterdir()] == [str(os.getpid())]
    for processors, most in ((2, 2), (1, 1)):
        for file in folder.iterdir():
            file.unlink()
        monkeypatch.setattr(os, "cpu_count", lambda processors=processors: processors)
        found = check(FolderSegmentation(str(root), num_workers=8), ["train", "val"])
        assert found.asdict() == expected.asdict()
        assert [split.contents for split in found.splits] == [split.contents for split in expected.splits]
        pids = {file.name for file in folder.iterdir()}
        assert str(os.getpid()) not in pids
        assert len(pids) == 2 * most  # those of each split


def test_a_process_that_is_killed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = FolderSegmentation(str(make_folder(tmp_path / "set")), num_workers=1)
    monkeypatch.setattr(checking, "read_stored_image", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"was killed, .* Lower data\.init_args\.num_workers"):
        check(data, ["train"])


def test_a_log_says_how_far_the_check_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "INTERVAL", 0.0)
    assert main(["data", "check", *data_words("folder", make_folder(tmp_path / "set"))]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^data check: train: 1 of 4 files, \d+ s left$", said, re.MULTILINE)
    assert re.search(r"^data check: val: 2 of 2 files, 0 s left$", said, re.MULTILINE)


def test_the_help_needs_no_torch() -> None:
    code = "import sys; from segvid.cli import main; main(['data', 'check', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: segvid data check")
    assert done.stdout.endswith("False\n")


def test_an_empty_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "set")
    shutil.rmtree(root / "images/val")
    assert main(["data", "check", *data_words("folder", root)]) == 1
    assert "error: val: There is no folder" in capsys.readouterr().out
    (root / "images/val").mkdir()
    shutil.rmtree(root / "masks/val")
    assert main(["data", "check", *data_words("folder", root)]) == 1
    assert "error: val: there are no images in this split" in capsys.readouterr().out


def test_masks_without_images_of_cityscapes(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    data = Cityscapes(str(tmp_path))
    pair = data.pairs("train")[1]
    pair.image.unlink()
    assert [(f.file, f.split) for f in check(data, ["train"]).faults] == [(pair.mask, "train")]


def test_weights_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares 0.5, 0.3, 0.2 and a class that never occurs."""
    median = class_weights(np.array([50, 30, 20, 0]), "median_frequency")
    raw = [0.3 / 0.5, 1.0, 0.3 / 0.2]
    assert median == pytest.approx([3 * w / sum(raw) for w in raw] + [0.0])
    raw = [1 / math.log(1.02 + share) for share in (0.5, 0.3, 0.2)]
    assert class_weights(np.array([50, 30, 20, 0]), "inverse_log") == pytest.approx(
        [3 * w / sum(raw) for w in raw] + [0]
    )
    root = make_folder(tmp_path / "set")
    assert main(["data", "weights", *data_words("folder", root)]) == 0
    said = capsys.readouterr().out
    (split,) = check(FolderSegmentation(str(root)), ["train"]).splits
    numbers = [f"{weight:.4f}" for weight in class_weights(split.pixels, "median_frequency")]
    assert f"--model.init_args.loss.init_args.class_weights=[{','.join(numbers)}]" in said
    damage_foreign_id(root)
    assert main(["data", "weights", *data_words("folder", root)]) == 1
    assert "Run segvid data check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chekc"], "no command 'data chekc'"),
        (["check"], "no data set is named"),
        (["check", "--config", "nowhere.yaml"], "no file nowhere.yaml"),
        (["check", "--config", str(RECIPES / "digits.yaml")], "DigitScenes generates its samples"),
        (["check", "--config", str(RECIPES / "folder.yaml"), "--data.init_args.rot", "x"], "Did you mean root?"),
        (["check", "--config", str(RECIPES / "folder.yaml"), "--data.init_args.root", "no"], "There is no folder no"),
        (["weights", "--method", "guess"], "--method"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("content", [b"data: " + b"[" * 5000, b"\xff\xfe\x00", b"data: [1"])
def test_a_recipe_that_cannot_be_read_is_one_sentence(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert main(["data", "check", "--config", str(tmp_path / "recipe.yaml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"segvid data: {tmp_path / 'recipe.yaml'} is not YAML that can be read (")
    assert len(error.strip().splitlines()) == 1
    assert len(error) < 500
