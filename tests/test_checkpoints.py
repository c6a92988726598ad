"""A checkpoint file is the old one or the new one, whatever happens while it is written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from segvid.checkpoints import WholeCheckpointIO
from segvid.cli import main
from tests.small_runs import words


def test_written_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "last.ckpt"
    for step in (1, 2):
        WholeCheckpointIO().save_checkpoint({"step": step}, file)
        assert torch.load(file, weights_only=True) == {"step": step}
    assert [f.name for f in file.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays_when_writing_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, file)

    def fails(content: Any, stream: Any) -> None:
        stream.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(type(error)):
        WholeCheckpointIO().save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]


def test_trainings_write_beside_the_file_and_not_by_way_of_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = []
    original = Path.replace

    def watch(self: Path, target: Any) -> Path:
        replaced.append((self.parent, Path(target).name))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    epoch = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    assert main(["fit", *words("fcn"), *epoch, f"--trainer.default_root_dir={tmp_path}"]) == 0
    (folder,) = tmp_path.glob("*/version_0/checkpoints")
    assert {(folder, "last.ckpt"), (folder, "best.ckpt")} <= set(replaced)
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
