"""What a stranger's config or checkpoint can do: nothing but be refused."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from segvid.allowed import MORE
from segvid.cli import main
from tests.small_runs import words

SOURCE = """
open({mark!r}, "w").close()
from segvid.segmentation.heads import FCNHead
class Head(FCNHead):
    pass
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be found, and the file that it leaves when it runs."""
    mark = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(SOURCE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(os.environ, MORE, "")
    sys.modules.pop("evil_module", None)
    return mark


def commands(checkpoint: Path, picture: Path) -> list[list[str]]:
    file = ["--ckpt_path", str(checkpoint)]
    return [
        ["validate", *words("ccnet"), *file],
        ["test", *words("ccnet"), *file],
        ["fit", *words("ccnet"), *file],
        ["predict", *file, str(picture)],
        ["attention", *file, "--image", str(picture), "--point", "1,1"],
    ]


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("number", range(5))
def test_a_checkpoint_with_foreign_pickles_is_refused(
    number: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    checkpoint, mark = tmp_path / "bomb.ckpt", tmp_path / "ran"
    torch.save(content | {"data": Bomb(mark)}, checkpoint)
    assert main(commands(checkpoint, run / "val_confusion.png")[number]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(checkpoint) in error or checkpoint.name in error
    assert "it holds more than data" in error
    assert not mark.exists()


@pytest.mark.parametrize("number", [3, 4])
def test_a_checkpoint_that_names_foreign_classes_is_refused(
    number: int,
    run: Path,
    tmp_path: Path,
    evil: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """predict and attention build the model that the checkpoint describes."""
    monkeypatch.chdir(tmp_path)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"]["head"] = {"class_path": "evil_module.Head", "init_args": {}}
    torch.save(content, tmp_path / "other.ckpt")
    words = commands(tmp_path / "other.ckpt", run / "val_confusion.png")[number]
    assert main(words) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert "evil_module" in error[-1]
    assert "not allowed" in error[-1]
    assert len(error) == 1
    assert not evil.exists()
    assert "evil_module" not in sys.modules


def test_an_option_lets_a_package_of_ones_own_in(
    tmp_path: Path, evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--model.init_args.head", "evil_module.Head", "--trainer.max_steps=2"]
    shipped = [*words("fcn"), f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    assert main(["fit", *shipped, *own, "--allow_import", "other_module"]) == 1
    assert "not allowed" in capsys.readouterr().err
    assert not evil.exists()
    assert main(["fit", *shipped, *own, "--allow_import", "evil_module"]) == 0
    assert evil.exists()
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert (
        main(["predict", "--ckpt_path", str(checkpoint), str(tmp_path / "runs"), "--output", str(tmp_path / "o")]) == 0
    )
