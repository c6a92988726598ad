"""`segvid lr_find`: the loss at rising learning rates, with a suggestion (Smith, WACV 2017, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.tuner.tuning import Tuner
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from torch.optim import Optimizer

from segvid.errors import UserError
from segvid.files import write_text, write_whole
from segvid.segmentation.task import SegmentationTask
from segvid.text import plain
from segvid.training import SegvidCLI, prepare

SKIPPED = 10  # first losses, before their smoothed mean has settled
# The steepest place is near the edge where training fails, and moves by a factor of two from seed to seed.
MARGIN = 3


@dataclass(frozen=True)
class LearningRateRange:
    """What `segvid lr_find` tries.

    Args:
        min_lr: the first learning rate.
        max_lr: the last one.
        steps: training steps in between; each has the rate of the one before times the same factor.
        output: folder for `lr_find.csv` and `lr_find.png`.
    """

    min_lr: float = 1e-6
    max_lr: float = 1.0
    steps: int = 100
    output: str = "runs/lr_find"

    def __post_init__(self) -> None:
        if not 0 < self.min_lr < self.max_lr:
            raise UserError(f"lr_find: min_lr {self.min_lr} and max_lr {self.max_lr} have to be 0 < min_lr < max_lr.")
        if self.steps < SKIPPED + 10:
            raise UserError(f"lr_find.steps is {self.steps}: {SKIPPED + 10} are the least that show a curve.")


class LearningRateFinder(SegvidCLI):
    """The program of `fit` that trains along a range of learning rates and keeps no weights."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the range."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(LearningRateRange, "lr_find")

    def before_instantiate_classes(self) -> None:
        """Refuses a checkpoint: its learning rates would be those of another training.

        Raises:
            UserError: one is named.
        """
        if self._get(self.config, "ckpt_path") is not None:
            raise UserError("lr_find starts from the first weights: leave --ckpt_path out.")

    def fit(self, model: SegmentationTask, **options: Any) -> None:
        """Runs Lightning's range test and reports.

        Raises:
            UserError: the loss was a number too seldom to suggest anything, or the trainer makes no real steps.
        """
        tried: LearningRateRange = self._get(self.config_init, "lr_find")
        model.stop_at_wrong_loss = False  # rates at which the loss explodes are what is looked for
        self.trainer.fit_loop.max_epochs = tried.steps  # as many as it takes
        self.trainer.fit_loop.epoch_loop.max_steps = tried.steps
        finder = Tuner(self.trainer).lr_find(
            model,
            datamodule=options["datamodule"],
            min_lr=tried.min_lr,
            max_lr=tried.max_lr,
            num_training=tried.steps,
            update_attr=False,
        )
        if finder is None:
            raise UserError("lr_find needs real steps: take out trainer.fast_dev_run.")
        rates, losses = (np.array(finder.results[name][SKIPPED:]) for name in ("lr", "loss"))
        fastest = steepest(rates, losses)
        suggestion = fastest / MARGIN
        if self.trainer.is_global_zero:
            report(Path(tried.output), rates, losses, fastest)
            print(
                f"For {named(self.trainer.optimizers[0])}, a third of it is on the safe side: "
                f"--model.init_args.optimizer.init_args.lr={suggestion:.3g}. Another optimiser needs another rate."
            )
            if model.head_lr_multiplier != 1:
                print(
                    f"All weights had one rate; with head_lr_multiplier {model.head_lr_multiplier:g} the heads would "
                    f"have it at lr={suggestion / model.head_lr_multiplier:.3g}."
                )

    def after_fit(self) -> None:
        """There are no weights to evaluate."""


def steepest(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> float:
    """The rate at which the loss falls the most against the logarithm of the rate.

    Lightning's own suggestion takes the slope against the rate itself, which is steep wherever rates are small.

    Raises:
        UserError: fewer than two losses are numbers.
    """
    known = np.isfinite(losses)
    if known.sum() < 2:
        raise UserError("the loss was a number too seldom for a suggestion. Lower lr_find.max_lr.")
    slopes = np.gradient(losses[known], np.log(rates[known]))
    return float(rates[known][slopes.argmin()])


def report(folder: Path, rates: NDArray[np.float64], losses: NDArray[np.float64], fastest: float) -> None:
    """Writes table and picture; prints where they are, and where the loss falls the most."""
    rows = "".join(f"{rate},{loss}\n" for rate, loss in zip(rates.tolist(), losses.tolist(), strict=True))
    write_text(folder / "lr_find.csv", f"lr,loss\n{rows}")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.semilogx(rates, losses)
    axes.axvline(fastest, color="tab:red", linestyle=":", label=f"steepest: {fastest:.3g}")
    axes.axvline(fastest / MARGIN, color="tab:red", linestyle="--", label=f"suggested: {fastest / MARGIN:.3g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss (smoothed)")
    axes.legend()
    write_whole(folder / "lr_find.png", lambda partial: figure.savefig(partial, dpi=120))
    plt.close(figure)
    print(f"Curve: {plain(folder / 'lr_find.png')} and lr_find.csv")
    print(f"The loss falls the most at a learning rate of {fastest:.3g}.")


def named(optimizer: Optimizer) -> str:
    """The optimiser's class, and what its rate goes with."""
    given = [
        f"{name} {optimizer.defaults[name]:g}" for name in ("momentum", "weight_decay") if optimizer.defaults.get(name)
    ]
    return type(optimizer).__name__ + (f" ({', '.join(given)})" if given else "")


def lr_find(words: Sequence[str]) -> int:
    """Runs the command with the words that follow it; returns the exit code."""
    prepare()
    quiet = ["--trainer.logger=false", "--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"]
    LearningRateFinder(args=["fit", *words, *quiet], save_config_callback=None)
    return 0
