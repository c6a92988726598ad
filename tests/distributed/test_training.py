"""A training on two processes: stopped, resumed, its loaders made anew every epoch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segvid.cli import main
from tests.small_runs import ROOT, words

HERE = "tests.distributed.training"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", HERE]
LIGHTNING = ["-m", HERE]  # which starts the second process


def train(launcher: list[str], notes: Path, *arguments: str, stop: str = "-1 -1") -> "subprocess.CompletedProcess[str]":
    """Runs the program on two processes; each adds what it sees to its notes."""
    notes.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *launcher, str(notes / "RANK.jsonl"), *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "STOP": stop},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def seen(notes: Path) -> dict[tuple[int, int, int], list[str]]:
    """Scenes by epoch, batch and process; none may be noted twice."""
    found: dict[tuple[int, int, int], list[str]] = {}
    for rank in range(2):
        for line in (notes / f"{rank}.jsonl").read_text().splitlines():
            epoch, batch, names = json.loads(line)
            assert (epoch, batch, rank) not in found
            found[epoch, batch, rank] = names
    return found


def test_two_processes_share_an_epoch_also_after_a_stop_inside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "fit", *words("fcn"), "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp",
        "--trainer.deterministic=true", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3",
        "--trainer.reload_dataloaders_every_n_epochs=1", "--data.init_args.num_workers=0",
    ]  # fmt: skip
    done = train(TORCHRUN, tmp_path / "all", *options, f"--trainer.default_root_dir={tmp_path / 'through'}")
    assert done.returncode == 0, done.stderr[-3000:]
    through = seen(tmp_path / "all")
    epochs = [[name for (e, _, _), names in through.items() if e == epoch for name in names] for epoch in range(3)]
    assert all(sorted(names) == sorted(f"train scene {index}" for index in range(32)) for names in epochs)
    assert epochs[0] != epochs[1] != epochs[2]

    # the second process alone is told to stop, in the second epoch of 4 batches
    root = f"--trainer.default_root_dir={tmp_path / 'cut'}"
    done = train(LIGHTNING, tmp_path / "parts", *options, root, stop="1 5")
    assert done.returncode == 143, done.stderr[-3000:]
    assert [folder.name for folder in (tmp_path / "cut" / "DigitScenes-FCNHead").iterdir()] == ["version_0"]
    run = tmp_path / "cut" / "DigitScenes-FCNHead" / "version_0"
    assert f"stopped at step 6, saved in {run / 'checkpoints' / 'last.ckpt'}" in done.stderr

    capsys.readouterr()
    assert main(["resume", str(run), "--trainer.devices=1", "--trainer.strategy=auto"]) == 1
    torch.use_deterministic_algorithms(False)
    assert "after 2 of 4 batches, with processes 2. With processes 1 some samples" in capsys.readouterr().err

    done = train(TORCHRUN, tmp_path / "parts", "resume", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert seen(tmp_path / "parts") == through
    last = [next((tmp_path / name).rglob("last.ckpt")) for name in ("through", "cut")]
    whole, resumed = (torch.load(file, weights_only=True)["state_dict"] for file in last)
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key
