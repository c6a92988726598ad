"""The field's learning-rate schedule: polynomial decay a step, after a linear warm-up."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class PolyLR(LRScheduler):
    """`lr = base * max((1 - step / total_steps) ** power, min_ratio)`, times `(step + 1) / warmup_steps` at the start.

    Args:
        optimizer: whose learning rates are set.
        total_steps: length of the training; the task fills it in when it is None.
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

    def factor(self, step: int) -> float:
        """What the base learning rate is multiplied with at `step`."""
        progress = min(step / self.total_steps, 1.0) if self.total_steps else 0.0
        decay = max((1.0 - progress) ** self.power, self.min_ratio)
        warmup = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return float(decay * warmup)
