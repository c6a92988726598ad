"""Pyramid pooling against cells and bilinear weights written out."""

import pytest
import torch

from segvid.attention.context import PyramidPooling
from tests import reference
from tests.reference import assert_same_with_gradients, norm_weights, permutation_gap, random_input, randomise


def expected_output(block: PyramidPooling, x: torch.Tensor, bins: tuple[int, ...]) -> torch.Tensor:
    weights = [branch[0].weight for branch in block.branches]
    return reference.pyramid_pooling(x, bins, weights, [norm_weights(branch[1]) for branch in block.branches])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grid", [(7, 5), (3, 8), (1, 6), (6, 6), (2, 1)], ids=str)
def test_equals_definition(grid, training):
    """Also on maps smaller than the finest pooled grid."""
    bins = (1, 2, 3, 6)
    block = randomise(PyramidPooling(5, bins=bins, branch_channels=3)).train(training)
    x = random_input(3, 5, *grid)
    assert_same_with_gradients(block(x), expected_output(block, x, bins), [x, *block.parameters()])


def test_other_bins_in_the_order_given():
    block = randomise(PyramidPooling(4, bins=(4, 1))).eval()
    x = random_input(2, 4, 5, 7)
    torch.testing.assert_close(block(x), expected_output(block, x, (4, 1)), rtol=1e-10, atol=1e-10)


def test_input_comes_first_and_unchanged():
    x = random_input(2, 8, 5, 7)
    y = randomise(PyramidPooling(8)).eval()(x)
    assert torch.equal(y[:, :8], x)


def test_default_channels_double_the_input():
    """Bins 1, 2, 3, 6 with C / 4 channels each."""
    block = PyramidPooling(8)
    assert block.bins == (1, 2, 3, 6)
    assert block.out_channels == 16
    assert block.eval()(torch.randn(1, 8, 5, 7)).shape == (1, 16, 5, 7)


def test_parameter_count():
    """2048 channels: 4 branches of 2048 * 512 + 2 * 512."""
    assert sum(p.numel() for p in PyramidPooling(2048).parameters()) == 4_198_400


def test_does_not_commute_with_permutations_of_the_positions():
    x = random_input(2, 4, 3, 5)
    assert permutation_gap(randomise(PyramidPooling(4)).eval(), x) > 1e-2
    # The 1x1 bin alone knows no places: it is the grids that do.
    assert permutation_gap(randomise(PyramidPooling(4, bins=(1,))).eval(), x) < 1e-10


def test_one_sample_cannot_be_trained_with_a_single_bin():
    """Batch norm has one value a channel there; with two samples it works."""
    block = PyramidPooling(8).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 8, 5, 7))
    assert block(torch.randn(2, 8, 5, 7)).isfinite().all()


def test_gradcheck():
    block = randomise(PyramidPooling(4, bins=(1, 2, 3))).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 4, 3))
