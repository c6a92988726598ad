"""A training over two nodes, rehearsed on one machine: two launchers that meet on the loopback interface."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from tests.small_runs import ROOT, words


def test_two_nodes_train_and_evaluate_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        *words("emanet"), "--config", str(ROOT / "configs/trainer/many_gpus.yaml"),
        "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=2",
        "--trainer.sync_batchnorm=false",  # torch has it for GPUs only
        "--data.init_args.val_scenes=9", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    nodes = [
        subprocess.Popen(
            [*launch, f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}",
             "-m", "segvid", "fit", *options],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [f.name for f in (tmp_path / "DigitScenes-EMANetHead").iterdir()] == ["version_0"]
    folder = tmp_path / "DigitScenes-EMANetHead" / "version_0"
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 * 32 // (4 * 2)  # epochs x scenes / (batch x nodes)
    confusion = json.loads((folder / "val.json").read_text())["confusion"]
    assert sum(map(sum, confusion)) == 9 * 48 * 48  # nine scenes on two nodes, each once
