"""A training that is stopped: by a signal it saves and says where; killed it can still be resumed."""

import errno
import fcntl
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from segvid.cli import main
from segvid.segmentation.task import SegmentationTask
from tests.data.miniature import make_folder
from tests.small_runs import HEADS, ROOT, words

LONG = ["--trainer.max_epochs=400", "--trainer.check_val_every_n_epoch=400", "--trainer.enable_progress_bar=false"]
HEAD = "DigitScenes-FCNHead"
PATIENCE = 300  # seconds; a busy machine may take long, a state that never comes is waited for in vain


def hear_signals() -> None:
    """Also where the tests run under nohup, or in the background of a script, which ignore some."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def start(tmp_path: Path, *more: str, **streams: Any) -> "subprocess.Popen[str]":
    """A training that has made its first steps."""
    options = [
        "--data.init_args.num_workers=0",
        "--trainer.log_every_n_steps=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "segvid", "fit", *words("fcn"), *LONG, *options, *more]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": hear_signals} | streams
    process = subprocess.Popen(command, text=True, **streams)
    metrics = tmp_path / HEAD / "version_0" / "metrics.csv"
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 3:
            return process
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"no step was made: {process.communicate()[0]}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path)
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE)
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


def test_a_training_whose_terminal_is_lost_saves(tmp_path: Path) -> None:
    terminal, inside = pty.openpty()

    def own_terminal() -> None:
        hear_signals()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = {"stdin": inside, "stdout": inside, "stderr": inside}
    process = start(tmp_path, preexec_fn=own_terminal, start_new_session=True, **streams)
    os.close(inside)
    os.close(terminal)
    assert process.wait(timeout=PATIENCE) == 143
    saved = tmp_path / HEAD / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] > 0


class Trainings:
    """Trainings of three epochs of 8 batches, and which batches they saw.

    Args:
        root: folder for the runs.
        patch: for the step.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.seen: dict[tuple[int, int], list[float]] = {}
        self.count = 0
        self.at: dict[int, Callable[[SegmentationTask], object]] = {}
        original = SegmentationTask.training_step

        def step(task: SegmentationTask, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.at.get(self.count, lambda _: None)(task)
            self.count += 1
            self.seen[task.trainer.current_epoch, batch_idx] = [float(image.sum()) for image in batch["image"]]
            return original(task, batch, batch_idx)

        patch.setattr(SegmentationTask, "training_step", step)

    def fit(self, name: str, *options: str, at: dict[int, Callable[[SegmentationTask], object]] | None = None) -> int:
        """Trains; `at` says what happens in which batch. Gives the exit code."""
        self.count, self.at, self.seen = 0, at or {}, {}
        schedule = "--model.init_args.lr_scheduler.init_args.total_steps=24"
        epochs = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3", "--trainer.deterministic=true"]
        root = f"--trainer.default_root_dir={self.root / name}"
        code = main(["fit", *words("danet"), schedule, *epochs, root, *options])
        torch.use_deterministic_algorithms(False)
        return code

    def resume(self, name: str, *options: str) -> int:
        """Goes on, as another process in another state would."""
        self.count, self.at = 0, {}
        torch.manual_seed(123)
        code = main(["resume", str(self.folder(name)), *options])
        torch.use_deterministic_algorithms(False)
        return code

    def folder(self, name: str) -> Path:
        return self.root / name / "DigitScenes-DANetHead" / "version_0"

    def checkpoint(self, name: str) -> dict[str, Any]:
        """The last one."""
        found: dict[str, Any] = torch.load(self.folder(name) / "checkpoints" / "last.ckpt", weights_only=True)
        return found


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    return Trainings(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Trainings, dict[str, Any]]]:
    """Trainings without a stop, by the number of batches of a step: what they saw, and their last checkpoint."""
    root = tmp_path_factory.mktemp("whole")
    done: dict[int, tuple[Trainings, dict[str, Any]]] = {}

    def train(accumulated: int) -> tuple[Trainings, dict[str, Any]]:
        if accumulated not in done:
            with pytest.MonkeyPatch.context() as patch:
                trainings = Trainings(root, patch)
                options = ["--data.init_args.num_workers=0", f"--trainer.accumulate_grad_batches={accumulated}"]
                assert trainings.fit(str(accumulated), *options) == 0
            assert set(trainings.seen) == {(epoch, batch) for epoch in range(3) for batch in range(8)}
            done[accumulated] = trainings, trainings.checkpoint(str(accumulated))
        return done[accumulated]

    return train


def stop(task: SegmentationTask, number: signal.Signals | None) -> None:
    """Tells a training to end."""
    if number is None:
        task.trainer.should_stop = True
    else:
        signal.raise_signal(number)


def assert_equal(cut: dict[str, Any], through: dict[str, Any]) -> None:
    """The same steps and weights, to the bit."""
    assert cut["global_step"] == through["global_step"]
    assert cut["epoch"] == through["epoch"]
    for key, value in through["state_dict"].items():
        assert torch.equal(cut["state_dict"][key], value), key


@pytest.mark.parametrize(
    ("workers", "accumulated", "batch", "step", "number"),
    [
        (0, 1, 12, 13, signal.SIGTERM),
        (2, 1, 12, 13, signal.SIGHUP),
        (0, 3, 4, 2, signal.SIGINT),  # steps are made after 3, 6 and 8 batches
        (2, 3, 11, 5, signal.SIGTERM),
        (0, 3, 4, 2, None),  # a limit of time, of Lightning
    ],
)
def test_a_training_stopped_inside_an_epoch_ends_with_the_weights_of_one_that_never_stopped(
    workers: int,
    accumulated: int,
    batch: int,
    step: int,
    number: signal.Signals | None,
    trainings: Trainings,
    whole: Callable[[int], tuple[Trainings, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also inside a step of several batches. No scene of the epoch is seen twice or left out."""
    through, expected = whole(accumulated)
    before = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT)}
    hear_signals()
    try:
        options = [f"--data.init_args.num_workers={workers}", f"--trainer.accumulate_grad_batches={accumulated}"]
        assert trainings.fit("cut", *options, at={batch: lambda task: stop(task, number)}) == (143 if number else 0)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert trainings.checkpoint("cut")["global_step"] == step
    assert (f"stopped at step {step}, saved in" in capsys.readouterr().err) == (number is not None)
    first = dict(trainings.seen)
    assert trainings.resume("cut") == 0
    assert trainings.count == 24 - len(first)
    assert first | trainings.seen == through.seen
    assert_equal(trainings.checkpoint("cut"), expected)
    assert (trainings.folder("cut") / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (["--trainer.max_steps=12", "--trainer.max_epochs=-1"], ["--trainer.max_steps=-1", "--trainer.max_epochs=3"]),
        (["--trainer.max_steps=12", "--trainer.max_epochs=-1"], ["--trainer.max_steps=24"]),
        (["--trainer.max_epochs=2"], ["--trainer.max_steps=24", "--trainer.max_epochs=-1"]),
    ],
)
def test_a_training_that_is_extended_ends_as_if_it_had_been_that_long_from_the_start(
    first: list[str],
    then: list[str],
    trainings: Trainings,
    whole: Callable[[int], tuple[Trainings, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    through, expected = whole(1)
    assert trainings.fit("cut", *first) == 0
    seen = dict(trainings.seen)
    if len(seen) == 12:  # inside an epoch
        capsys.readouterr()
        assert trainings.resume("cut", *then, "--data.init_args.batch_size=8") == 1
        said = capsys.readouterr().err
        assert "after 4 of 8 batches, with batch_size 4. With batch_size 8 some samples" in said
    assert trainings.resume("cut", *then) == 0
    assert trainings.count == 24 - len(seen)
    assert seen | trainings.seen == through.seen
    assert_equal(trainings.checkpoint("cut"), expected)


def test_a_run_that_is_made_longer_than_its_schedule_asks_what_the_learning_rate_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ["--trainer.check_val_every_n_epoch=9", "--trainer.log_every_n_steps=1", "--data.init_args.num_workers=0"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", *words("fcn"), *quiet, "--trainer.max_epochs=1", root]) == 0
    folder = tmp_path / HEAD / "version_0"
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    assert main(["resume", str(folder), "--trainer.max_epochs=2"]) == 1
    said = capsys.readouterr().err
    option = "--model.init_args.lr_scheduler.init_args.total_steps"
    assert f"{option} 16; or it stays where it ends: {option} 8." in said
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    assert main(["resume", str(folder), "--trainer.max_epochs=2", option, "16"]) == 0
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 16
    assert last["lr_schedulers"][0]["total_steps"] == 16
    assert main(["resume", str(folder), "--trainer.max_epochs=3", option, "16"]) == 0
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["lr_schedulers"][0]["total_steps"]) == (24, 16)


def test_a_loader_whose_worker_is_killed_is_one_sentence(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system does for want of memory."""

    def kill(_: SegmentationTask) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    options = ["--data.init_args.num_workers=1", "--trainer.check_val_every_n_epoch=1"]
    assert trainings.fit("lost", *options, at={12: kill}) == 1
    *_, hint, said = capsys.readouterr().err.strip().splitlines()
    assert f"the state of step 8 is saved in {trainings.folder('lost') / 'checkpoints' / 'last.ckpt'}. Go on" in hint
    assert said.startswith("segvid fit: a process that loads data was ended from outside")


@pytest.mark.parametrize("saved", [0, 8])
def test_a_full_disk_advises_to_go_on_only_where_there_is_something_to_go_on_from(
    saved: int, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = torch.save

    def save(content: Any, file: Any, *more: Any, **options: Any) -> None:
        if content.get("global_step", 0) > saved:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, file, *more, **options)

    monkeypatch.setattr(torch, "save", save)
    options = ["--data.init_args.num_workers=0", "--trainer.check_val_every_n_epoch=1"]
    assert trainings.fit("full", *options) == 1
    said = capsys.readouterr().err
    assert "the disk is full" in said.splitlines()[-1]
    assert ("resume" in said) == (saved > 0)


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
