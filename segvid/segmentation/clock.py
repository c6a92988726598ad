"""How long a training took and how much memory it held."""

import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class TrainingClock(Callback):
    """Time spent training, without the validations in between, over all resumptions; peak memory.

    Attributes:
        seconds: of training so far.
        samples: trained so far, on all devices.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = 0
        self.started: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts."""
        self.started = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops while the model is validated."""
        self.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on."""
        if trainer.training or trainer.state.fn == "fit":
            self.started = None if trainer.sanity_checking else time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        self.samples += len(batch["image"]) * trainer.world_size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops."""
        self.stop()

    def stop(self) -> None:
        """Adds the time since the last start."""
        if self.started is not None:
            self.seconds += time.monotonic() - self.started
            self.started = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        running = 0.0 if self.started is None else time.monotonic() - self.started
        return {"seconds": self.seconds + running, "samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]

    @property
    def images_per_second(self) -> float:
        """Training throughput."""
        return self.samples / self.seconds if self.seconds else 0.0


def training_clock(trainer: Trainer) -> TrainingClock | None:
    """The clock of a trainer that has one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, TrainingClock)), None)


def peak_memory_mb() -> float:
    """Peak memory of this process so far: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource  # not on Windows, where training on a GPU must not fail for want of it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**10 if sys.platform != "darwin" else peak / 2**20
