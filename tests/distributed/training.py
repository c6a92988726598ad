"""A training on several processes that notes what it sees: `torchrun ... -m tests.distributed.training NOTES WORDS`.

NOTES is the file of a process, with its rank in the place of RANK. The environment variable STOP, "rank step", sends
SIGTERM to one process in that step.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from segvid.cli import main
from segvid.segmentation.task import SegmentationTask


def note(file: Path) -> None:
    """Lets every training step add a line: epoch, batch, names of the scenes."""
    original = SegmentationTask.training_step
    rank, step = (int(word) for word in os.environ.get("STOP", "-1 -1").split())

    def noted(task: SegmentationTask, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if (task.global_rank, task.global_step) == (rank, step):
            signal.raise_signal(signal.SIGTERM)
        with file.open("a") as lines:
            lines.write(json.dumps([task.current_epoch, batch_idx, batch["name"]]) + "\n")
        return original(task, batch, batch_idx)

    SegmentationTask.training_step = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    note(Path(sys.argv[1].replace("RANK", os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))))
    sys.exit(main(sys.argv[2:]))
