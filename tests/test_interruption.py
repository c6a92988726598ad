"""A training that is stopped: by a signal it saves and says where; killed it can still be resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch

from segvid.cli import main
from segvid.segmentation.task import SegmentationTask
from tests.data.miniature import make_folder
from tests.small_runs import HEADS, ROOT, words

LONG = ["--trainer.max_epochs=400", "--trainer.check_val_every_n_epoch=400", "--trainer.enable_progress_bar=false"]
HEAD = "DigitScenes-FCNHead"


def start(tmp_path: Path, *more: str) -> "subprocess.Popen[str]":
    options = [
        "--data.init_args.num_workers=0",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "segvid", "fit", *words("fcn"), *LONG, *options, *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / HEAD / "version_0" / "metrics.csv"
    for _ in range(600):
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 3:
            return process
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"no step was made: {process.communicate()[0]}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    folder = tmp_path / HEAD / "version_0"
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    step = checkpoint["global_step"]
    assert step > 0
    saved = folder / "checkpoints" / "last.ckpt"
    assert f"segvid fit: stopped at step {step}, saved in {saved}. Go on: segvid resume {folder}" in said
    assert "Traceback" not in said
    epochs = step // 8 + 2
    assert main(["resume", str(folder), f"--trainer.max_epochs={epochs}", "--trainer.check_val_every_n_epoch=1"]) == 0
    again = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert again["global_step"] == 8 * epochs  # no step is lost or made twice


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_stopped_inside_an_epoch_ends_with_the_weights_of_one_that_never_stopped(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM at step 13, in the second epoch of 8: no scene of the epoch is seen twice or left out."""
    seen: dict[str, dict[int, list[str]]] = {"whole": {}, "cut": {}}
    options = [*words("danet"), "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3"]
    options += [f"--data.init_args.num_workers={workers}", "--trainer.deterministic=true"]
    original = SegmentationTask.training_step

    def watch(name: str, stop: int | None) -> None:
        def step(task: SegmentationTask, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            if task.global_step == stop:
                signal.raise_signal(signal.SIGTERM)  # Lightning finishes the step
            seen[name][task.global_step] = [str(float(image.sum())) for image in batch["image"]]
            return original(task, batch, batch_idx)

        monkeypatch.setattr(SegmentationTask, "training_step", step)

    watch("whole", None)
    assert main(["fit", *options, f"--trainer.default_root_dir={tmp_path / 'whole'}"]) == 0
    watch("cut", 12)
    assert main(["fit", *options, f"--trainer.default_root_dir={tmp_path / 'cut'}"]) == 143
    assert "stopped at step 13" in capsys.readouterr().err
    assert set(seen["cut"]) == set(range(13))
    watch("cut", None)
    torch.manual_seed(123)  # another process, another state
    (run,) = tmp_path.glob("cut/*/version_0")
    assert main(["resume", str(run)]) == 0
    torch.use_deterministic_algorithms(False)
    assert seen["cut"] == seen["whole"]
    assert set(seen["whole"]) == set(range(24))
    whole, resumed = (
        torch.load(next(tmp_path.glob(f"{name}/*/version_0/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for name in ("whole", "cut")
    )
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_ends_with_the_weights_of_one_that_never_stopped(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: the same crops, the same dropout, the same schedule."""
    folder = make_folder(tmp_path / "set")
    recipe = ["--config", str(ROOT / "configs/segmentation/recipes/folder.yaml"), "--config", str(HEADS / "danet.yaml")]
    options = [
        *("--data.init_args.root", str(folder), "--data.init_args.class_names", "null"),
        *("--data.init_args.batch_size", "2", "--data.init_args.eval_batch_size", "1"),
        *("--data.init_args.image_size", "[32,48]", "--data.init_args.augmentation.crop_size", "[32,32]"),
        *("--data.init_args.num_workers", str(workers), "--trainer.deterministic", "true"),
        *("--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "1", "--trainer.precision", "32-true"),
    ]
    assert main(["fit", *recipe, *options, f"--trainer.default_root_dir={tmp_path / 'whole'}"]) == 0
    original = SegmentationTask.training_step

    def power_cut(task: SegmentationTask, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if task.global_step == 5:
            raise RuntimeError("power cut")
        return original(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            main(["fit", *recipe, *options, f"--trainer.default_root_dir={tmp_path / 'cut'}"])
    torch.manual_seed(123)  # another process, another state
    (run,) = tmp_path.glob("cut/*/version_0")
    assert main(["resume", str(run)]) == 0
    whole, resumed = (
        torch.load(next(tmp_path.glob(f"{name}/*/version_0/checkpoints/last.ckpt")), weights_only=True)
        for name in ("whole", "cut")
    )
    assert whole["global_step"] == resumed["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key


@pytest.mark.slow
def test_killed_twenty_times_a_training_still_ends(tmp_path: Path) -> None:
    """SIGKILL at random moments, also while a checkpoint is written: the last one can always be loaded and resumed."""
    random = Random(0)
    epochs = 150
    every = [
        f"--trainer.max_epochs={epochs}",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.enable_progress_bar=false",
    ]
    few = ["--data.init_args.num_workers=0", f"--trainer.default_root_dir={tmp_path}", "--panels.images=0"]
    folder = tmp_path / HEAD / "version_0"
    saved = folder / "checkpoints" / "last.ckpt"
    command = [sys.executable, "-m", "segvid", "fit", *words("fcn"), *every, *few]
    kills, seen = 0, 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = saved.stat().st_mtime_ns if saved.is_file() else None
        while process.poll() is None and (not saved.is_file() or saved.stat().st_mtime_ns == before):
            time.sleep(0.02)
        if kills < 20 and process.poll() is None:
            time.sleep(random.uniform(0, 0.4))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            step = torch.load(saved, weights_only=True)["global_step"]
            assert step >= seen
            seen = step
            command = [sys.executable, "-m", "segvid", "resume", str(folder)]
            continue
        said, _ = process.communicate()
        assert process.returncode == 0, said
        break
    assert kills == 20
    assert torch.load(saved, weights_only=True)["global_step"] == 8 * epochs
