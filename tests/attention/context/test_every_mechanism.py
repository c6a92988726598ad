"""What all mechanisms have in common, and which of them have not."""

import re

import pytest
import torch

from segvid.attention import context
from tests.reference import randomise

# Output (channels, times the size) of 16 channels, where it is not the input's.
OTHERS = {
    "ASPP": (256, 1),
    "AdaptivePyramidContext": (16 + 4 * 4, 1),
    "CARAFE": (16, 2),
    "PyramidObjectContext": (2 * 4 * 16, 1),
    "PyramidPooling": (16 + 4 * 4, 1),
}
MORE_TO_SAY = {"AdaptiveContext", "AsymmetricFusion"}  # a scale; a second map


@pytest.mark.parametrize("name", context.__all__)
@pytest.mark.parametrize("grid", [(5, 7), (8, 8)], ids=str)
def test_a_mechanism_keeps_the_shape_unless_the_docstring_names_it(name, grid):
    make = getattr(context, name)
    named = re.findall(r"\w+", context.__doc__.rpartition("except seven")[2])
    assert (name in named) == (name in OTHERS or name in MORE_TO_SAY)
    if name in MORE_TO_SAY:
        with pytest.raises(TypeError):
            make(16)(torch.zeros(2, 16, *grid))
        return
    module = randomise(make(16)).eval()
    channels, scale = OTHERS.get(name, (16, 1))
    assert getattr(module, "out_channels", 16) == channels
    assert module(torch.randn(2, 16, *grid, dtype=torch.float64)).shape == (2, channels, *(scale * n for n in grid))
