"""Objects that say how they were made."""

import copy
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segvid.backbones import ConvNet
from segvid.recorded import Recorded, as_config
from segvid.segmentation.heads import DANetHead
from segvid.segmentation.losses import CrossEntropy, WeightedSum


class Part(Recorded, nn.Module):
    """Of one's own."""

    def __init__(self, width: int, *more: int, depth: int = 1, **options: Any) -> None:
        super().__init__()
        self.width = width


class Inner(Part):
    """Its own constructor calls that of its base with other arguments."""

    def __init__(self, size: int) -> None:
        super().__init__(2 * size, depth=3)


def path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"a": [1, 2.5, "x", True, (3,)]}, {"a": [1, 2.5, "x", True, [3]]}),
        (ConvNet((4, 6, 8)), {"class_path": path(ConvNet), "init_args": {"widths": [4, 6, 8]}}),
        (ConvNet(), {"class_path": path(ConvNet), "init_args": {}}),
        (DANetHead, {"class_path": path(DANetHead)}),
        (partial(DANetHead, channels=8), {"class_path": path(DANetHead), "init_args": {"channels": 8}}),
        (Part(3, depth=2, x=1), {"class_path": path(Part), "init_args": {"width": 3, "depth": 2, "x": 1}}),
        (Inner(4), {"class_path": path(Inner), "init_args": {"size": 4}}),
        (
            WeightedSum([CrossEntropy([1.0])], weights=[2.0]),
            {
                "class_path": path(WeightedSum),
                "init_args": {
                    "losses": [{"class_path": path(CrossEntropy), "init_args": {"class_weights": [1.0]}}],
                    "weights": [2.0],
                },
            },
        ),
    ],
)
def test_what_a_config_would_hold(value: Any, expected: Any) -> None:
    assert as_config(value) == expected


class Main(Recorded):
    pass


Main.__module__ = "__main__"


@pytest.mark.parametrize(
    "value",
    [
        lambda channels, classes: None,
        partial(DANetHead, 8),
        partial(DANetHead, channels=np.int64(8)),
        np.float64(1.0),
        Part(1, 2),
        Part(1, x=torch.zeros(1)),
        Part(1, x=nn.ReLU()),
        Main(),
        type("Local", (Part,), {})(1),
        {1: 2},
    ],
)
def test_what_cannot_be_written_down(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        as_config(value)


def test_copies_know_it_too() -> None:
    part = Part(3, depth=2)
    for other in (copy.copy(part), copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert as_config(other) == as_config(part)
        assert other.width == 3
