"""Checkpoints of a training, `best.ckpt` and `last.ckpt`: when they are written, and that they are written whole."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from segvid.errors import UserError
from segvid.stopping import whole_step
from segvid.text import plain


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file and then takes its place.

    Lightning writes to the system's temporary folder and moves the file; from another file system that is a copy over
    the old checkpoint, and a process that dies in it, or a full disk, leaves neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replaces the file in one step."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        try:
            with partial.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())  # a power cut leaves the old or the new one
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


class Checkpoints(ModelCheckpoint):
    """`best.ckpt`, and `last.ckpt`, the state at every validation and at the end of training, better or worse.

    ModelCheckpoint's own `save_last` goes with the best: a training that gets no better would leave an early state.
    Without a logger a training has no folder, and nothing is written unless `dirpath` says where.
    """

    last_step: int | None = None
    keep: bool | None = None  # whether anything is written; known since setup
    stop_later = False  # a limit of time was reached inside a step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder."""
        if self.keep is None:
            self.keep = bool(trainer.loggers) or self.dirpath is not None
            if not self.keep:
                self.save_top_k = 0
                if stage == "fit":
                    say(trainer, "without a logger nothing is kept; --checkpoint.dirpath FOLDER keeps the weights.")
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed training that has nothing left to do leaves its checkpoint alone."""
        super().on_train_start(trainer, pl_module)
        self.last_step = trainer.global_step or None
        epochs = trainer.fit_loop.epoch_progress.current
        if epochs.completed == epochs.ready:
            # After a whole epoch the next begins; under max_steps Lightning would repeat the last one without a batch.
            trainer.fit_loop.epoch_loop.restarting = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lets `max_time` end a training after a whole step only; Lightning calls this callback after all others."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.stop_later |= trainer.should_stop
        trainer.should_stop = self.stop_later and whole_step(trainer, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is due."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.write_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last state, if training did not stop at a validation."""
        if trainer.global_step != self.last_step:
            self.write_last(trainer)

    @property
    def last(self) -> Path:
        """`last.ckpt`."""
        assert self.dirpath is not None  # since setup
        return Path(self.dirpath) / "last.ckpt"

    def write_last(self, trainer: Trainer) -> None:
        """Replaces `last.ckpt`."""
        if self.keep and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.last, self.save_weights_only)
            self.last_step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """An epoch that `max_steps` ended inside is not done: extended later, the training goes on inside it."""
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]["current"]["processed"]
        counted = epochs["current"]["processed"] == epochs["current"]["started"]
        if counted and 0 < batches < trainer.num_training_batches:
            for counts in epochs.values():
                counts["completed"] = counts["processed"] = counts["processed"] - 1
            checkpoint["epoch"] = epochs["current"]["processed"]

    def count_last_evaluation(self, trainer: Trainer, figures: Mapping[str, Any]) -> None:
        """Takes the last state for the best, if the evaluation after the end of the training says so.

        Args:
            trainer: after that evaluation.
            figures: of the training and of the evaluation.

        Raises:
            UserError: what is monitored is none of them.
        """
        candidates = {**figures, **self._monitor_candidates(trainer)}
        if self.monitor is not None and self.monitor not in candidates:
            raise UserError(f"checkpoint.monitor is {self.monitor}, which is none of {', '.join(sorted(candidates))}.")
        if self.keep and self.last.is_file():
            self._save_topk_checkpoint(trainer, candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Writes a checkpoint that is among the best; after the training that is the last one."""
        if trainer.state.fn == "fit":
            super()._save_checkpoint(trainer, filepath)
        elif trainer.is_global_zero:
            content = torch.load(self.last, map_location="cpu", weights_only=True)
            if "callbacks" in content:
                content["callbacks"][self.state_key] = self.state_dict()  # what is the best from now on
            for file in (Path(filepath), self.last):
                WholeCheckpointIO().save_checkpoint(content, file)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves a training that is told to stop, which happens after a whole step; says how to go on."""
        super().on_exception(trainer, pl_module, exception)
        if not self.keep or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stopped = isinstance(exception, SIGTERMException)
        if trainer.state.fn == "fit" and stopped and trainer.global_step == 0:
            say(trainer, "stopped before the first step: nothing to save.")
        elif trainer.state.fn == "fit" and stopped:
            if trainer.global_step != self.last_step:
                self.write_last(trainer)
            say(trainer, f"stopped at step {trainer.global_step}, saved in {plain(self.last)}. {self.go_on()}")
        elif self.last_step is not None and not isinstance(exception, UserError):
            say(trainer, f"the state of step {self.last_step} is saved in {plain(self.last)}. {self.go_on()}")

    def go_on(self) -> str:
        """How to go on."""
        folder = self.last.parent.parent
        if self.last.parent.name == "checkpoints" and (folder / "config.yaml").is_file():
            return f"Go on: segvid resume {plain(folder)}"
        return f"Go on: the same command with --ckpt_path {plain(self.last)}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Knows its best again, where they are still there, also if the folder has been moved or is named otherwise."""
        assert self.dirpath is not None
        here = {path: str(Path(self.dirpath) / Path(path).name) for path in state_dict["best_k_models"]}
        here = {path: new for path, new in here.items() if Path(new).is_file()}
        best, kth = (here.get(state_dict[key], "") for key in ("best_model_path", "kth_best_model_path"))
        scores = {new: state_dict["best_k_models"][path] for path, new in here.items()}
        state_dict = state_dict | {"dirpath": self.dirpath, "best_k_models": scores, "last_model_path": ""}
        super().load_state_dict(state_dict | {"best_model_path": best, "kth_best_model_path": kth})


def say(trainer: Trainer, message: str) -> None:
    """A line for the user, once; a terminal that is lost does not matter any more."""
    if trainer.is_global_zero:
        with contextlib.suppress(OSError):
            print(f"segvid fit: {message}", file=sys.stderr, flush=True)
