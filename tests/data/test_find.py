"""Data are looked for before anything else is: a model's weights may take minutes to fetch."""

from pathlib import Path

import pytest

from segvid.cli import main
from segvid.training import folder_name
from tests.small_runs import HEADS, ROOT

RECIPES = ROOT / "configs" / "segmentation" / "recipes"


@pytest.mark.parametrize(
    ("command", "recipe", "said"),
    [
        ("fit", "voc", "Pascal VOC 2012 is not at"),
        ("lr_find", "voc", "Pascal VOC 2012 is not at"),
        ("validate", "folder", "There is no folder"),
        ("test", "cityscapes", "Cityscapes is not at"),
    ],
)
def test_missing_data_are_said_before_weights_are_tried(
    command: str,
    recipe: str,
    said: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def tried(*words: object, **options: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("timm.create_model", tried)
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(RECIPES / f"{recipe}.yaml"), "--config", str(HEADS / "danet.yaml")]
    words += [f"--data.init_args.root={tmp_path / 'nowhere'}"]
    words += ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")] if command in ("validate", "test") else []
    assert main([command, *words]) == 1
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["DigitScenes", "camvid", "CamVid_2.0", "x" * 80])
def test_harmless_names_are_kept_for_folders(name: str) -> None:
    assert folder_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "../x", "[/x]", "$(rm)", "a b", "ü", "x" * 81, "a\n"])
def test_other_names_become_harmless(name: str) -> None:
    made = folder_name(name)
    assert made.isascii()
    assert len(made) < 100
    assert not set(made) & set("/ []$()\n")
    assert not made.startswith(".")
