"""The random numbers of a training follow from its seed, which is read once and handed over."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomStreams(Callback):
    """Seeds torch anew before every batch, from the run's seed, epoch, batch and process.

    So a training that is resumed, wherever it stopped, has the dropout that it would have had. (Its crops follow from
    seed, epoch and index: `segvid.data.sampling`.)

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds."""
        words = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))
