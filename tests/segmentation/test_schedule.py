"""PolyLR against its closed form at every step."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from segvid.errors import UserError
from segvid.segmentation.schedule import PolyLR

TOTAL = 20


def optimizer(*rates: float, kind: type[Optimizer] = SGD) -> Optimizer:
    return kind([{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates])  # type: ignore[call-arg]


def rates(schedule: PolyLR, steps: int) -> list[list[float]]:
    """The learning rates that the next steps use, group by group."""
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return seen


def closed_form(step: int, power: float = 0.9, warmup_steps: int = 0, min_ratio: float = 0.0) -> float:
    decay = max((1 - step / TOTAL) ** power, min_ratio) if step < TOTAL else min_ratio
    return decay * ((step + 1) / warmup_steps if step < warmup_steps else 1)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
@pytest.mark.parametrize("warmup_steps", [0, 1, 6])
@pytest.mark.parametrize("min_ratio", [0.0, 0.1])
def test_every_step(power: float, warmup_steps: int, min_ratio: float) -> None:
    options = {"power": power, "warmup_steps": warmup_steps, "min_ratio": min_ratio}
    seen = rates(PolyLR(optimizer(0.02), TOTAL, **options), TOTAL + 3)  # type: ignore[arg-type]
    expected = [0.02 * closed_form(step, **options) for step in range(TOTAL + 3)]  # type: ignore[arg-type]
    assert [rate for (rate,) in seen] == pytest.approx(expected, abs=1e-12)


def test_values_by_hand() -> None:
    seen = [rate for (rate,) in rates(PolyLR(optimizer(1.0), 4, power=2.0), 6)]
    assert seen == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16, 0, 0])  # and no complex number after the end
    # the rate rises from the first step on, which is not lost with a rate of 0
    warm = [rate for (rate,) in rates(PolyLR(optimizer(1.0), 4, power=1.0, warmup_steps=2), 4)]
    assert warm == pytest.approx([1 / 2, 3 / 4, 2 / 4, 1 / 4])
    floor = [rate for (rate,) in rates(PolyLR(optimizer(1.0), 4, power=1.0, min_ratio=0.4), 5)]
    assert floor == pytest.approx([1, 0.75, 0.5, 0.4, 0.4])


def test_every_group_keeps_its_own_base() -> None:
    seen = rates(PolyLR(optimizer(0.01, 0.1, 0.5, kind=AdamW), TOTAL, warmup_steps=3), TOTAL)
    for step, groups in enumerate(seen):
        factor = closed_form(step, warmup_steps=3)
        assert groups == pytest.approx([0.01 * factor, 0.1 * factor, 0.5 * factor])


def test_the_length_can_be_filled_in() -> None:
    # the task knows the length only after the optimiser and the schedule are made
    late = PolyLR(optimizer(0.02), warmup_steps=4)
    assert late.total_steps is None
    late.set_total_steps(TOTAL)
    assert rates(late, TOTAL) == rates(PolyLR(optimizer(0.02), TOTAL, warmup_steps=4), TOTAL)


@pytest.mark.parametrize("stop", [1, 3, 11])
def test_a_saved_schedule_resumes_at_the_same_rates(stop: int) -> None:
    options = {"warmup_steps": 5, "min_ratio": 0.05}
    whole = rates(PolyLR(optimizer(0.01, 0.1), TOTAL, **options), TOTAL)  # type: ignore[arg-type]

    first = PolyLR(optimizer(0.01, 0.1), TOTAL, **options)  # type: ignore[arg-type]
    rates(first, stop)
    saved, saved_optimizer = first.state_dict(), first.optimizer.state_dict()
    assert "optimizer" not in saved

    # made anew with other numbers: all of it must come from the state
    second = PolyLR(optimizer(1.0, 1.0), warmup_steps=1)
    second.set_total_steps(7)  # the training is to be shorter now: it stays on the schedule that it began with
    second.optimizer.load_state_dict(saved_optimizer)
    second.load_state_dict(saved)
    assert rates(second, TOTAL - stop) == whole[stop:]


def test_a_training_that_outgrows_its_schedule_is_refused_until_a_length_is_given() -> None:
    first = PolyLR(optimizer(0.01, 0.1), TOTAL)
    rates(first, TOTAL)
    saved, saved_optimizer = first.state_dict(), first.optimizer.state_dict()
    longer = PolyLR(optimizer(0.01, 0.1))
    longer.set_total_steps(2 * TOTAL)
    option = r"--model\.init_args\.lr_scheduler\.init_args\.total_steps"
    with pytest.raises(UserError, match=rf"{2 * TOTAL} steps long.*{option} {2 * TOTAL};.*{option} {TOTAL}\."):
        longer.load_state_dict(saved)
    # as a training of twice the length is from its middle on
    stretched = PolyLR(optimizer(0.01, 0.1), 2 * TOTAL)
    stretched.optimizer.load_state_dict(saved_optimizer)
    stretched.load_state_dict(saved)
    assert rates(stretched, TOTAL) == rates(PolyLR(optimizer(0.01, 0.1), 2 * TOTAL), 2 * TOTAL)[TOTAL:]
    # or on at the end of the old one
    kept = PolyLR(optimizer(0.01, 0.1), TOTAL)
    kept.optimizer.load_state_dict(saved_optimizer)
    kept.load_state_dict(saved)
    assert rates(kept, 3) == [[0.0, 0.0]] * 3
