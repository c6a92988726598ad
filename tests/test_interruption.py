"""A training that is stopped: by a signal it saves and says where; killed it can still be resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segvid.cli import main
from tests.small_runs import words

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
