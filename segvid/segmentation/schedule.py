"""The field's learning-rate schedule: polynomial decay a step, after a linear warm-up."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from segvid.errors import UserError

OPTION = "--model.init_args.lr_scheduler.init_args.total_steps"


class PolyLR(LRScheduler):
    """`lr = base * max((1 - step / total_steps) ** power, min_ratio)`, times `(step + 1) / warmup_steps` at the start.

    Args:
        optimizer: whose learning rates are set.
        total_steps: length of the training; the task fills it in when it is None. A resumed training keeps the length
            that it began with, unless another is given here.
        power: of the decay, 0.9 in the papers.
        warmup_steps: steps over which the learning rate rises linearly.
        min_ratio: the learning rate does not fall below this share of the base (mmsegmentation: 0.01).
        last_epoch: the last step done, -1 at the start.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        *,
        power: float = 0.9,
        warmup_steps: int = 0,
        min_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = total_steps
        self.filled_in = False
        self.power = power
        self.warmup_steps = warmup_steps
        self.min_ratio = min_ratio
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of every group at the present step."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def set_total_steps(self, total_steps: int) -> None:
        """Fills in the length of the training."""
        self.total_steps = total_steps
        self.filled_in = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a schedule was saved; a length that was given, not filled in, holds from here on.

        Raises:
            UserError: the training has become longer than the schedule, and nothing says what the rest is trained with.
        """
        length, filled_in = self.total_steps, self.filled_in
        super().load_state_dict(state_dict)
        self.filled_in = filled_in
        if length is None or self.total_steps is None or length == self.total_steps:
            return
        if filled_in:
            if length > self.total_steps:
                raise UserError(
                    f"the learning rate of this training falls over {self.total_steps} steps, and the training is now "
                    f"{length} steps long. Either the rate falls from here on as in a training of {length} steps: "
                    f"{OPTION} {length}; or it stays where it ends: {OPTION} {self.total_steps}."
                )
            return
        self.total_steps = length
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def factor(self, step: int) -> float:
        """What the base learning rate is multiplied with at `step`."""
        progress = min(step / self.total_steps, 1.0) if self.total_steps else 0.0
        decay = max((1.0 - progress) ** self.power, self.min_ratio)
        warmup = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return float(decay * warmup)
