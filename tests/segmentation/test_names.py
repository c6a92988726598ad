"""Names of classes and of folders are text through a whole training and its evaluation, whatever they are."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segvid.cli import main
from segvid.data.record import complete
from segvid.segmentation.pictures import panel, sheet
from segvid.text import cell, plain
from tests.small_runs import HEADS, ROOT
from tests.test_text import NASTY

NAMES = [name for name in NASTY if name.strip()]  # a class without a name is none


def make_data(root: Path) -> None:
    """Two images a split; every class has a stripe of the masks."""
    classes = np.repeat(np.arange(len(NAMES), dtype=np.uint8), 2)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for name in ("a", "b"):
            Image.fromarray(np.tile(classes, (24, 1))).save(root / "masks" / split / f"{name}.png")
            Image.fromarray(np.full((24, len(classes), 3), 120, np.uint8)).save(root / "images" / split / f"{name}.png")
    (root / "classes.yaml").write_text(yaml.safe_dump({"class_names": NAMES}))


def test_forty_nasty_names_of_classes_through_fit_and_validate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path / "data")
    runs = tmp_path / "[/x] $\\y$ [bold]"
    options = [
        "--config", str(ROOT / "configs/segmentation/recipes/folder.yaml"), "--config", str(HEADS / "fcn.yaml"),
        f"--data.init_args.root={tmp_path / 'data'}", "--data.init_args.class_names=null",
        "--data.init_args.batch_size=2", "--data.init_args.num_workers=0", "--data.init_args.image_size=null",
        "--data.init_args.augmentation.crop_size=[24,32]", "--data.init_args.augmentation.scale=[1.0,1.0]",
        "--model.init_args.backbone=ConvNet", "--model.init_args.backbone.init_args.widths=[4,6,8]",
        "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", f"--trainer.default_root_dir={runs}",
    ]  # fmt: skip
    capsys.readouterr()
    assert main(["fit", *options]) == 0
    (folder,) = runs.glob("*/version_0")
    shown = capsys.readouterr().out
    checkpoint = ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    assert main(["validate", "--config", str(folder / "config.yaml"), *checkpoint]) == 0
    again = capsys.readouterr().out
    for said in (shown, again):
        assert not set(said) & {"\x07", "\x00", "\u202e", "\u2028", "\udcff"}
        assert "\x1b[31m" not in said
        assert "\x1b]0;" not in said
        for name in ("sign [/]", "road [paved]", "[bold red]x[/bold red]", r"$\x$", ":smile:", r"\x1b[31mred\x1b[0m"):
            assert name in said
        assert f"step 1: {folder}" in said.replace("\n", "")
    for place in (folder, folder / "evaluations" / "val-last"):
        assert json.loads((place / "val.json").read_text())["class_names"] == NAMES
        with (place / "val.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert [row[0] for row in rows[1:-1]] == [cell(name) for name in NAMES]
        assert not any(row[0].lstrip().startswith(("=", "+", "-", "@")) for row in rows)
        for picture in (place / "val_confusion.png", place / "panels" / "step_0000001.png"):
            with Image.open(picture) as image:
                assert image.width > 100


@pytest.mark.parametrize("name", NAMES)
def test_a_legend_shows_the_name(name: str) -> None:
    """As wide as it needs, one line high; a long name is cut."""
    data = complete({"class_names": [name, "other"]}, 2, "here")
    classes = np.array([[0, 1]], np.uint8).repeat(8, 0).repeat(8, 1)
    rows = [panel(np.zeros((8, 16, 3), np.uint8), classes, classes, data)]
    picture, least = sheet(rows, [0, 1], data), sheet(rows, [1], data)
    assert picture.shape[1] == least.shape[1]
    assert least.shape[0] <= picture.shape[0] <= least.shape[0] + 18
    assert (picture[-40:] < 128).sum() > (least[-40:] < 128).sum()
    assert plain(name)
