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


def steps(root: Path) -> dict[str, int]:
    """The step of every checkpoint of the only run."""
    (folder,) = root.glob("*/version_0/checkpoints")
    return {file.stem: torch.load(file, weights_only=True)["global_step"] for file in folder.iterdir()}


@pytest.mark.parametrize(("mode", "best"), [("max", 12), ("min", 8)])
def test_the_evaluation_after_the_last_step_counts(mode: str, best: int, tmp_path: Path) -> None:
    """An epoch is 8 steps; what is monitored is the step itself."""
    options = ["--trainer.max_steps=12", "--trainer.check_val_every_n_epoch=1", "--checkpoint.monitor=step"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", *words("fcn"), *options, f"--checkpoint.mode={mode}", root]) == 0
    assert steps(tmp_path) == {"best": best, "last": 12}
    (folder,) = tmp_path.glob("*/version_0/checkpoints")
    best_ones, last_ones = (torch.load(folder / f"{n}.ckpt", weights_only=True) for n in ("best", "last"))
    same = all(torch.equal(best_ones["state_dict"][key], value) for key, value in last_ones["state_dict"].items())
    assert same == (best == 12)


def test_a_training_shorter_than_an_epoch_has_a_best_checkpoint_which_a_resumed_one_knows(tmp_path: Path) -> None:
    schedule = "--model.init_args.lr_scheduler.init_args.total_steps=16"
    monitor = ["--checkpoint.monitor=step", "--checkpoint.mode=min", "--trainer.check_val_every_n_epoch=1"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", *words("fcn"), schedule, *monitor, "--trainer.max_steps=5", root]) == 0
    assert steps(tmp_path) == {"best": 5, "last": 5}
    (folder,) = tmp_path.glob("*/version_0")
    assert main(["resume", str(folder), "--trainer.max_steps=10"]) == 0
    assert steps(tmp_path) == {"best": 5, "last": 10}
    (folder / "checkpoints" / "best.ckpt").unlink()
    assert main(["resume", str(folder), "--trainer.max_steps=10"]) == 0  # nothing is left to train
    assert steps(tmp_path) == {"best": 10, "last": 10}


def test_what_is_monitored_and_is_no_figure_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.max_steps=2", "--checkpoint.monitor=val/miou", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words("fcn"), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("segvid fit: checkpoint.monitor is val/miou, which is none of ")
    assert "val/mIoU" in said
