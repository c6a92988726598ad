"""A training that is told to stop ends at a whole step, on all its processes at the same one, and is saved."""

import contextlib
import os
import signal
import stat
import threading
from types import FrameType, TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

# SIGHUP: the terminal is lost. Windows has none.
SIGNALS = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class GentleStop(Callback):
    """Takes the signals that end a program, and ends the training after the optimiser step that is being made.

    A step of accumulated gradients counts as one: gradients are in no checkpoint. Before the training, and after it, a
    signal ends the program at once, and so does a second Ctrl-C. What is ignored (SIGHUP under `nohup`) stays ignored.

    As a context it puts the handlers back that were there before.
    """

    def __init__(self) -> None:
        self.asked = False
        self.training = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "GentleStop":
        if threading.current_thread() is threading.main_thread():  # only there may signals be handled
            self.before = {number: signal.getsignal(number) for number in SIGNALS}
            self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def take(self) -> None:
        """Handles the signals from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self.ask)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if number not in (signal.SIGTERM, signal.SIGINT):
            silence()
        if not self.training:
            raise SIGTERMException
        if number == signal.SIGINT:
            if self.asked:
                raise KeyboardInterrupt
            with contextlib.suppress(OSError):
                os.write(2, b"\nStopping after this step; Ctrl-C once more to end at once.\n")
        self.asked = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back: Lightning has put a handler of its own in the place, which stops anywhere."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        self.training = True
        self.take()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops, if that was a whole step."""
        self.settle(trainer, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops after a validation inside the training."""
        if self.training and not trainer.sanity_checking:
            self.settle(trainer, trainer.fit_loop.batch_idx)

    def settle(self, trainer: Trainer, batch_idx: int) -> None:
        """All processes stop if one of them was asked to."""
        if whole_step(trainer, batch_idx) and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            # Lightning raises SIGTERMException where the loops can go on from, after this batch or this epoch.
            trainer._signal_connector.received_sigterm = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now is not stopped gently."""
        self.training = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Likewise."""
        self.training = False


def whole_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the gradients of a batch are used with it, and not accumulated."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def silence() -> None:
    """A terminal that is lost takes no more output: writing to it would end the training before it is saved."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                empty = os.open(os.devnull, os.O_WRONLY)
                os.dup2(empty, stream)
                os.close(empty)
