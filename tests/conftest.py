"""Every test runs on one thread: on a busy machine several are slower, and results do not depend on the machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

from pathlib import Path

import pytest
import torch

from tests.small_runs import UNEQUAL, words

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training of CCNet with recurrence 2."""
    from segvid.cli import main

    root = tmp_path_factory.mktemp("runs")
    options = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]
    assert main(["fit", *words("ccnet"), *UNEQUAL, *options, f"--trainer.default_root_dir={root}"]) == 0
    return root / "DigitScenes-CCNetHead" / "version_0"
